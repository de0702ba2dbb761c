//! Decimal numbers, exactly as they are written.

use std::str::FromStr;

/// Most decimal places of a cost.
pub const MOST_PLACES: u32 = 9;

/// A cost as it was written: `digits` / 10^`places`, without trailing zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decimal {
    /// All digits.
    pub digits: u64,
    /// Those behind the point.
    pub places: u32,
}

impl Decimal {
    /// In units of 10^-`places`, which must not be coarser than the number's own.
    pub fn scaled(self, places: u32) -> u128 {
        u128::from(self.digits) * 10_u128.pow(places - self.places)
    }
}

impl FromStr for Decimal {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text.starts_with('-') {
            return Err("a cost is not negative".to_owned());
        }
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let written = format!("{whole}{part}");
        if written.is_empty() || !written.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("a cost is a decimal number, like 2.4".to_owned());
        }
        let part = part.trim_end_matches('0');
        if part.len() > MOST_PLACES as usize {
            return Err(format!("a cost has at most {MOST_PLACES} decimal places"));
        }
        let digits = format!("0{whole}{part}").parse().map_err(|_| "the cost is too large".to_owned())?;
        Ok(Self { digits, places: part.len() as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_read_exactly() {
        let read = |text: &str| text.parse::<Decimal>().map(|cost| (cost.digits, cost.places));
        assert_eq!(read("2.4"), Ok((24, 1)));
        assert_eq!(read("2.400"), Ok((24, 1)));
        assert_eq!(read("10"), Ok((10, 0)));
        assert_eq!(read(".5"), Ok((5, 1)));
        assert_eq!(read("5."), Ok((5, 0)));
        assert_eq!(read(".0"), Ok((0, 0)));
        assert_eq!(read("0.000000001"), Ok((1, 9)));
        for bad in
            ["", ".", "-1", "-0.5", "1e3", "NaN", "inf", "+1", "1.2.3", "0.0000000001", "99999999999999999999", "١"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
