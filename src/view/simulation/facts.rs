//! What of a simulated step a person asks first, in the order in which it is told.

use serde_json::Number;

use super::Simulated;
use crate::sim::jitter::Disturbed;
use crate::sim::{RankTiming, Rates};
use crate::units::Nanos;
use crate::view::numbers::{count, percent, rate};

/// A number with its name, for a line or a cell.
pub struct Fact {
    /// Its key in the JSON of `simulate`; of memory, the key within the fullest rank's, and of disturbed steps, that within theirs.
    pub key: &'static str,
    /// What it is.
    pub name: &'static str,
    /// As people read it.
    pub value: String,
    /// As it is; `None` where there is no such number.
    pub number: Option<Number>,
    /// What else is to be said; may be empty.
    pub more: String,
}

/// What was simulated, in a few words; and its sizes.
pub fn title(simulated: &Simulated) -> [String; 2] {
    let (plan, origin) = (simulated.plan, &simulated.plan.origin);
    let mut sizes = vec![
        count(u64::from(plan.layout.ranks), "rank"),
        count(origin.gpus, "GPU"),
        count(u64::from(plan.layout.micro_batches), "micro-batch"),
    ];
    if origin.imbalance > 1.0 {
        sizes.push(format!("experts of the fullest GPU have {} × the mean of tokens", origin.imbalance));
    }
    [format!("{} on {} · {}", plan.model.name, origin.cluster, origin.schedule), sizes.join(" · ")]
}

/// All of them.
pub fn facts(simulated: &Simulated) -> Vec<Fact> {
    let Simulated { plan, simulation, memory, prices, disturbed } = simulated;
    let mut facts = Vec::new();
    let mut add = |key, name, value: String, number: Option<Number>, more: String| {
        facts.push(Fact { key, name, value, number, more });
    };
    let after = match simulation.step.saturating_sub(simulation.pipeline) {
        Nanos::ZERO => String::new(),
        after => format!("pipeline {}, then {after} of gradients and optimizer", simulation.pipeline),
    };
    add("step_ns", "step time", simulation.step.to_string(), Some(simulation.step.0.into()), after);
    if let Some(disturbed) = disturbed {
        let Disturbed { mean, median, p95, p99, .. } = disturbed;
        let longer = percent(disturbed.slowdown(*mean), 1.0);
        let mut more = format!(
            "mean of {}, {longer} longer; half take {median} at most, 95 % {p95}, 99 % {p99}",
            count(disturbed.samples.into(), "step")
        );
        if disturbed.pipelines > 1 {
            more += &format!("; {} side by side", count(disturbed.pipelines, "pipeline"));
        }
        if disturbed.peers > 1 {
            more += &format!("; {} of a rank go together", count(disturbed.peers, "GPU"));
        }
        add("mean_ns", "disturbed", mean.to_string(), Some(mean.0.into()), more);
    }
    match Rates::new(plan, simulation) {
        Some(rates) => {
            let number = Number::from_f64;
            let a_gpu = format!("{} on a GPU", rate(rates.tokens_s_gpu));
            add("tokens_per_s", "tokens/s", rate(rates.tokens_s), number(rates.tokens_s), a_gpu);
            let peak = format!("of the {:.0} TFLOP/s dense bf16 peak", plan.machine.bf16_flop_s / 1e12);
            add("mfu", "MFU", percent(rates.mfu, 1.0), number(rates.mfu), peak);
            let hours = rates.gpu_hours_per_trillion_tokens;
            let more = || "for a trillion tokens".to_owned();
            add("gpu_hours_per_trillion_tokens", "GPU hours", rate(hours), number(hours), more());
            if let Some(usd) = prices.usd(hours) {
                add("usd_per_trillion_tokens", "cost", format!("{} USD", rate(usd)), number(usd), more());
            }
            if let Some(mwh) = prices.mwh(hours) {
                add("mwh_per_trillion_tokens", "energy", format!("{} MWh", rate(mwh)), number(mwh), more());
            }
        }
        None => {
            let more = "the plan has no time, tokens, GPUs or peak to tell rates from".to_owned();
            add("tokens_per_s", "tokens/s", "–".to_owned(), None, more);
        }
    }
    let worst = |of: fn(&RankTiming) -> Nanos| {
        let rank = (0..simulation.ranks.len()).rev().max_by_key(|&rank| of(&simulation.ranks[rank])).unwrap_or(0);
        let time = simulation.ranks.get(rank).map(of).unwrap_or_default();
        format!("of rank time; most on rank {rank}, {}", percent(time.as_f64(), simulation.step.as_f64()))
    };
    let mut share = |key, name, of: fn(&RankTiming) -> Nanos| {
        let share = simulated.share(of);
        let value = share.map_or("–".to_owned(), |share| percent(share, 1.0));
        add(key, name, value, share.and_then(Number::from_f64), worst(of));
    };
    share("bubble_share", "bubble", |rank| rank.bubble);
    share("exposed_share", "exposed comm", |rank| rank.exposed);

    let fullest = simulated.fullest();
    if let Some(most) = memory.get(fullest) {
        let item = most.item.and_then(|item| plan.ranks[fullest].items.get(item as usize));
        let when = item.map_or(String::new(), |item| format!(", at {} with {}", most.at, item.0));
        let more = format!("of {} on rank {fullest}; most in use is {}{when}", plan.machine.memory, most.peak);
        let need = most.need.total();
        add("need_bytes", "memory", need.to_string(), Some(need.0.into()), more);
    }
    let certificate = plan.timetable;
    let more = match certificate.makespan.saturating_sub(certificate.lower_bound) {
        Nanos::ZERO => "no timetable of these programs is shorter".to_owned(),
        gap => {
            let gap = percent(gap.as_f64(), certificate.lower_bound.as_f64());
            format!("none is shorter than {}: gap at most {gap}", certificate.lower_bound)
        }
    };
    let makespan = certificate.makespan;
    add("timetable_makespan_ns", "timetable", makespan.to_string(), Some(makespan.0.into()), more);
    facts
}
