//! A layer's durations as `dualweave overlap --components` reads them.

use std::fmt::Write as _;

use super::breakdown::{Breakdown, Row};
use super::rules::{Part, Phase};
use crate::error::{Error, Result};

/// What a layer with experts has.
const PARTS: [Part; 4] = [Part::Attention, Part::Dispatch, Part::Mlp, Part::Combine];

/// The file of components of a breakdown from `name`: mean milliseconds of a run.
///
/// # Errors
/// If a component has no forward or no backward in the trace.
pub fn components(name: &str, breakdown: &Breakdown) -> Result<String> {
    let row = |part: Part, phase: Phase| -> Option<&Row> {
        // What communicates within a computation is no run of it.
        breakdown
            .rows
            .iter()
            .find(|row| row.part == part && row.phase == Some(phase) && (row.communicates == part.is_exchange()))
    };
    let mut missing: Vec<String> = Vec::new();
    let mut lines: Vec<(Part, Phase, &Row)> = Vec::new();
    for part in PARTS {
        let backward: Vec<_> =
            [Phase::I, Phase::B].into_iter().filter_map(|phase| Some((phase, row(part, phase)?))).collect();
        match row(part, Phase::F) {
            Some(row) => lines.push((part, Phase::F, row)),
            None => missing.push(format!("{} F", part.name())),
        }
        match backward[..] {
            [] => missing.push(format!("{} B", part.name())),
            [(phase, row)] => lines.push((part, phase, row)),
            _ => {
                let message = format!("`{name}` has {} both as I and as B", part.name());
                return Err(Error::new(message).help("let rules call all of its backward one of them"));
            }
        }
        if let Some(row) = row(part, Phase::W).filter(|_| !part.is_exchange()) {
            lines.push((part, Phase::W, row));
        }
    }
    if !missing.is_empty() {
        return Err(Error::new(format!("`{name}` does not show all of a layer: no {}", missing.join(", no ")))
            .help("annotate them with `record_function`, or name what is there in a file of rules (--rules)"));
    }
    let mut text = format!("# Means of the runs in {}, GPU {}", name.replace(['\n', '\r'], " "), breakdown.device);
    text.push_str(": time in which a kernel of the component runs.\n");
    if !lines.iter().any(|(_, phase, _)| *phase == Phase::W) {
        text.push_str("# Weight gradients are not told apart: the backward of attn and mlp has them in it.\n");
    }
    text.push_str("component,phase,ms\n");
    for (part, phase, row) in lines {
        // To the nanosecond, so that what is read is what was measured.
        let _ = writeln!(text, "{},{},{:.6}", part.name(), phase.letter(), row.mean().millis());
    }
    Ok(text)
}
