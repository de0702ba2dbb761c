//! The units of a stage, and what stages compute again, in few words.

use crate::ir::Unit;
use crate::plan::Plan;

/// `embedding, dense 0–2, moe 3–4`: neighbours of one kind as a range.
pub fn runs(units: &[Unit]) -> String {
    let mut parts: Vec<(&'static str, Option<(u32, u32)>)> = Vec::new();
    for unit in units {
        let (name, number) = match *unit {
            Unit::Embedding => ("embedding", None),
            Unit::Head => ("head", None),
            Unit::Dense(number) => ("dense", Some(number)),
            Unit::Moe(number) => ("moe", Some(number)),
            Unit::Mtp(number) => ("mtp", Some(number)),
        };
        match (parts.last_mut(), number) {
            (Some((last, Some((_, end)))), Some(number)) if *last == name && number.checked_sub(1) == Some(*end) => {
                *end = number;
            }
            _ => parts.push((name, number.map(|number| (number, number)))),
        }
    }
    let text = |(name, range): (&str, Option<(u32, u32)>)| match range {
        None => name.to_owned(),
        Some((first, last)) if first == last => format!("{name} {first}"),
        Some((first, last)) => format!("{name} {first}–{last}"),
    };
    parts.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

/// `stages 0–3 norms,swiglu; 4 layer`: neighbours that compute the same again as a range.
pub fn computed_again(plan: &Plan) -> String {
    let mut runs: Vec<(usize, usize, String)> = Vec::new();
    for (number, stage) in plan.stages.iter().enumerate() {
        let names = stage.recompute.to_string();
        match runs.last_mut() {
            Some((_, end, same)) if *same == names => *end = number,
            _ => runs.push((number, number, names)),
        }
    }
    let text = |(first, last, names): (usize, usize, String)| match first == last {
        true => format!("{first} {names}"),
        false => format!("{first}–{last} {names}"),
    };
    format!("stages {}", runs.into_iter().map(text).collect::<Vec<_>>().join("; "))
}
