//! The units of a stage in few words.

use crate::ir::Unit;

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
