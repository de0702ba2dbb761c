//! Whether the numbers of a plan fit each other, as far as every runtime relies on it before it looks any closer.

use crate::error::{Error, Result};
use crate::ir::{Placement, Unit};
use crate::plan::Plan;
use crate::runtime::host::Shape;

/// Most tokens of a micro-batch of one replica: far more than attention, whose work grows with their square, can do.
const MOST_TOKENS: u64 = 1 << 24;

/// `shape` is the plan's, or differs in what models leave open.
///
/// # Errors
/// If the plan uses tensor parallelism, its stages are not its model, or its numbers do not fit each other.
pub fn check(plan: &Plan, shape: &Shape) -> Result<()> {
    let (origin, layout) = (&plan.origin, &plan.layout);
    let wrong = |message: &str| Err(Error::new(message).help("`dualweave verify` says what is wrong with the plan"));
    if origin.tp > 1 {
        return Err(Error::new(format!(
            "the plan has tensor parallelism over {} GPUs, which this runtime has not",
            origin.tp
        ))
        .help("compile the job with `--tp 1`"));
    }
    shape.model.check()?;
    let experts = shape.model.moe.as_ref().map_or(0, |moe| moe.experts);
    let divides = |part: u32, whole: u32| part > 0 && whole.is_multiple_of(part);
    if origin.tp == 0 || origin.dp == 0 || !divides(origin.ep, origin.dp) || !divides(origin.ep, experts) {
        return wrong("the plan's GPUs cannot share the experts: `ep` must divide `dp` and the experts");
    }
    let (ranks, stages) = (u64::from(layout.ranks), u64::from(layout.stages));
    let fits = match layout.placement {
        Placement::Linear | Placement::Bidirectional => stages == ranks,
        Placement::V => stages == 2 * ranks,
        Placement::Loop => stages.checked_rem(ranks) == Some(0),
    };
    if !fits || ranks == 0 || plan.ranks.len() as u64 != ranks || plan.stages.len() as u64 != stages {
        return wrong("the plan's lists do not fit its layout");
    }
    let tokens = u64::from(origin.micro_batch_size) * u64::from(origin.sequence);
    if tokens == 0 || tokens > MOST_TOKENS {
        return wrong(&format!("the plan's micro-batches have {tokens} tokens; 1 to {MOST_TOKENS} can be run"));
    }
    let units: Vec<Unit> = plan.stages.iter().flat_map(|stage| stage.units.iter().copied()).collect();
    if units != shape.units() {
        return wrong("the plan's stages together are not its model");
    }
    Ok(())
}
