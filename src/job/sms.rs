//! How many SMs communication gets.

use std::fmt;
use std::str::FromStr;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// SMs that dispatch and combine get. In a job: a number, `"best"` or `"each"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename_all = "lowercase"))]
pub enum CommunicationSms {
    /// One number for all of them, that the compiler finds best.
    #[default]
    Best,
    /// Dispatch and combine, forward and backward, each their own number, that the compiler finds best.
    Each,
    /// This number, for all of them.
    #[cfg_attr(test, schemars(untagged))]
    Fixed(u32),
}

impl CommunicationSms {
    /// The number, if it is given.
    pub fn fixed(self) -> Option<u32> {
        match self {
            Self::Fixed(sms) => Some(sms),
            Self::Best | Self::Each => None,
        }
    }
}

const EXPECTED: &str = "a number of SMs, \"best\" or \"each\"";

impl FromStr for CommunicationSms {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "best" => Ok(Self::Best),
            "each" => Ok(Self::Each),
            _ => text.parse().map(Self::Fixed).map_err(|_| format!("expected {}", EXPECTED.replace('"', "`"))),
        }
    }
}

/// As on the command line.
impl fmt::Display for CommunicationSms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(sms) => sms.fmt(f),
            Self::Best => f.write_str("best"),
            Self::Each => f.write_str("each"),
        }
    }
}

impl Serialize for CommunicationSms {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fixed(sms) => serializer.serialize_u32(*sms),
            Self::Best => serializer.serialize_str("best"),
            Self::Each => serializer.serialize_str("each"),
        }
    }
}

impl<'de> Deserialize<'de> for CommunicationSms {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrWord)
    }
}

struct NumberOrWord;

impl Visitor<'_> for NumberOrWord {
    type Value = CommunicationSms;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Self::Value, E> {
        u32::try_from(number).map(CommunicationSms::Fixed).map_err(|_| E::custom(format!("{number} is too large")))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Self::Value, E> {
        u64::try_from(number).map_err(|_| E::custom(format!("{number} is negative"))).and_then(|n| self.visit_u64(n))
    }

    fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Self::Value, E> {
        match word {
            "best" => Ok(CommunicationSms::Best),
            "each" => Ok(CommunicationSms::Each),
            _ => Err(E::custom(format!("`{word}` is not {EXPECTED}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_or_a_word() {
        for (text, meant) in [
            ("20", CommunicationSms::Fixed(20)),
            ("\"best\"", CommunicationSms::Best),
            ("\"each\"", CommunicationSms::Each),
        ] {
            assert_eq!(ron::from_str::<CommunicationSms>(text).expect("it reads"), meant);
            assert_eq!(ron::to_string(&meant).expect("it writes"), text);
            assert_eq!(meant.to_string().parse(), Ok(meant));
        }
        for wrong in ["-2", "2.5", "\"most\"", "5000000000", "best", "()"] {
            assert!(ron::from_str::<CommunicationSms>(wrong).is_err(), "{wrong}");
        }
        assert!("-2".parse::<CommunicationSms>().is_err());
    }
}
