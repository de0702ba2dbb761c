//! The few shapes that rules have: a count within limits, a rate that is a sensible number, a value that fits with others.

use crate::error::{Error, Result};

/// A count must be from `least` to `most`.
pub(super) fn count(field: &str, value: u64, least: u64, most: u64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::new(format!("`{field}` is {value}")).help(format!("give a number from {least} to {most}")).field(field))
}

/// A measure must be a number from `least` to `most`; `unit` is said in the help.
pub(super) fn measure(field: &str, value: f64, least: f64, most: f64, unit: &str) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::new(format!("`{field}` is {value}")).help(format!("give {least} to {most} {unit}")).field(field))
}

/// The values nearest to `value`, below and above, from 1 to `most`, that fit: `"4 or 8"`; `None` if none do.
pub(super) fn nearest(value: u64, most: u64, fits: impl Fn(u64) -> bool) -> Option<String> {
    let below = (1..value.min(most + 1)).rev().find(|&n| fits(n));
    let above = (value.saturating_add(1)..=most).find(|&n| fits(n));
    match (below, above) {
        (Some(below), Some(above)) => Some(format!("{below} or {above}")),
        (Some(one), None) | (None, Some(one)) => Some(one.to_string()),
        (None, None) => None,
    }
}

/// Help for a value that does not fit, from what [`nearest`] found.
pub(super) fn suggest(field: &str, nearest: Option<String>) -> String {
    match nearest {
        Some(values) => format!("nearest values of `{field}` that would do: {values}"),
        None => format!("no value of `{field}` would do: change the other side"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_values_stand_on_both_sides() {
        let divides_12 = |n: u64| 12 % n == 0;
        assert_eq!(nearest(5, 12, divides_12).as_deref(), Some("4 or 6"));
        assert_eq!(nearest(0, 12, divides_12).as_deref(), Some("1"));
        assert_eq!(nearest(u64::MAX, 12, divides_12).as_deref(), Some("12"));
        assert_eq!(nearest(5, 12, |_| false), None);
    }

    #[test]
    fn no_measure_is_nan_or_infinite() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 0.0, 11.0] {
            assert!(measure("x", value, 0.5, 10.0, "m").is_err(), "{value}");
        }
        assert!(measure("x", 10.0, 0.5, 10.0, "m").is_ok());
    }
}
