//! How many SMs an exchange needs so that a link, not they, limits it: DeepEP's analytic count.
//!
//! A sender reads each token once and writes it to a buffer for each node that the token visits; a forwarder there reads what
//! arrived and writes it to each GPU that wants it. The exchange takes as long as its slower link; in that time the SMs must
//! have read and written everything. The rule and its constants are the DeepEP
//! project's (`get_theoretical_num_sms`); which reads and writes it counts was worked out from its description and its published
//! results (12 SMs for two nodes, 6 for four).

/// What one SM reads, GB/s.
pub const SM_READ_GB_S: f64 = 200.0;
/// What one SM writes, GB/s.
pub const SM_WRITE_GB_S: f64 = 50.0;
/// Room for what the count does not see.
pub const MARGIN: f64 = 1.25;
/// No exchange gets fewer.
pub const LEAST_SMS: u32 = 4;

/// Where a token goes, on average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Visits {
    /// Nodes that have one of its experts.
    pub nodes: f64,
    /// Of them, other nodes than its own.
    pub other_nodes: f64,
    /// GPUs that have one of its experts.
    pub gpus: f64,
}

/// SMs that keep the slower of both links busy, from the rates of one GPU in GB/s: even, at least [`LEAST_SMS`].
pub fn sms_for_links(visits: Visits, nvlink_gb_s: f64, network_gb_s: f64) -> u32 {
    // Per byte of a token, in ns.
    let time = (visits.other_nodes / network_gb_s).max(visits.gpus / nvlink_gb_s);
    if time <= 0.0 {
        return LEAST_SMS;
    }
    let read = (1.0 + visits.nodes) / time;
    let written = (visits.nodes + visits.gpus) / time;
    let sms = (read / SM_READ_GB_S).max(written / SM_WRITE_GB_S) * MARGIN;
    (sms.ceil() as u32).max(LEAST_SMS).next_multiple_of(2)
}
