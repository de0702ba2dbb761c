//! Where things stand in the files of a job: reading RON with its own conventions, turning its errors into diagnostics, and
//! finding the place of a dotted field path (`training.pp`).
//!
//! Places are found by reading the text again with the same RON reader, one level at a time, so they cannot disagree with
//! what was read. Nothing here knows what a field means.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use ron::Options;
use ron::error::{Error as RonError, SpannedError};
use ron::extensions::Extensions;
use ron::value::RawValue;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, MapAccess, Visitor};

use crate::error::{Error, Result};

/// No job, model or config file is larger.
const LARGEST_FILE: u64 = 16 << 20;

/// A file and its name as the person wrote it.
#[derive(Clone, Debug)]
pub(super) struct File {
    /// For messages.
    pub name: String,
    /// All of it.
    pub text: String,
}

impl File {
    /// Reads it.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self { name: path.display().to_string(), text: super::read_text(path, LARGEST_FILE)? })
    }

    /// Reads `span` of the file as RON. Errors point to where they are in the whole file.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self, span: Range<usize>) -> Result<T> {
        let part = &self.text[span.clone()];
        options().from_str(part).map_err(|error| self.refuse(span.start, error))
    }

    /// The value that a RON file is, without the comments and attributes around it; all of a file that is not RON.
    pub fn body(&self) -> Range<usize> {
        match options().from_str::<&RawValue>(&self.text) {
            Ok(value) => offset_in(&self.text, value.trim().get_ron()),
            Err(_) => 0..self.text.len(),
        }
    }

    /// An error of the RON reader, met in the part of the text that begins at `start`.
    fn refuse(&self, start: usize, mut error: SpannedError) -> Error {
        let before = &self.text[..start];
        let lines = before.matches('\n').count();
        let columns = before.rsplit('\n').next().map_or(0, |line| line.chars().count());
        for position in [&mut error.span.start, &mut error.span.end] {
            if position.line == 1 {
                position.col += columns;
            }
            position.line += lines;
        }
        let refused = crate::error::from_ron(&self.name, &self.text, &error);
        match help(&error.code) {
            Some(help) => refused.help(help),
            None => refused,
        }
    }
}

/// RON as jobs are written: options without `Some`, and the fields of `Gqa(heads: 32)` without a second pair of brackets.
fn options() -> Options {
    Options::default().with_default_extension(
        Extensions::UNWRAP_NEWTYPES | Extensions::IMPLICIT_SOME | Extensions::UNWRAP_VARIANT_NEWTYPES,
    )
}

/// What to do about an error of the RON reader, where its text does not say it.
fn help(error: &RonError) -> Option<String> {
    Some(match error {
        RonError::IntegerOutOfBounds => format!("whole numbers here go from 0 to {}", u32::MAX),
        RonError::ExpectedInteger => format!("write a whole number from 0 to {}", u32::MAX),
        RonError::ExpectedString => "write text in double quotes".into(),
        RonError::ExpectedBoolean => "write `true` or `false`".into(),
        RonError::MissingStructField { field, .. } => format!("add `{field}: ..,`"),
        RonError::DuplicateStructField { field, .. } => format!("keep one `{field}`"),
        RonError::NoSuchStructField { expected, found, .. } => match nearest_name(found, expected) {
            Some(name) => format!("did you mean `{name}`?"),
            None => "remove it".into(),
        },
        RonError::NoSuchEnumVariant { expected, found, .. } => {
            format!("did you mean `{}`?", nearest_name(found, expected)?)
        }
        RonError::Eof | RonError::ExpectedStructLikeEnd => "a bracket that was opened is not closed".into(),
        RonError::ExpectedComma => "fields are separated by commas".into(),
        _ => return None,
    })
}

/// The name most like `found`, if one is alike at all: at most a third of its letters
/// differ.
pub(super) fn nearest_name<'a>(found: &str, names: &[&'a str]) -> Option<&'a str> {
    if found.len() > 64 {
        return None;
    }
    let (distance, name) = names.iter().map(|name| (edits(found, name), *name)).min()?;
    (distance * 3 <= found.chars().count().max(3)).then_some(name)
}

/// Levenshtein distance, case ignored.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// What a path led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The whole path is written; this is its value.
    Value(Range<usize>),
    /// The path is not written to its end; this is the name of the last part of it that is. `None`: not even the first.
    Enclosing(Option<Range<usize>>),
}

/// Finds a dotted `path` below the RON struct at `span` of `text`.
pub(super) fn find(text: &str, span: Range<usize>, path: &str) -> Place {
    let mut value = span;
    let mut name = None;
    for step in path.split('.') {
        match fields(text, value).into_iter().find(|field| &text[field.name.clone()] == step) {
            Some(field) => (name, value) = (Some(field.name), field.value),
            None => return Place::Enclosing(name),
        }
    }
    Place::Value(value)
}

/// A field as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Its name.
    pub name: Range<usize>,
    /// Its value, without comments around it.
    pub value: Range<usize>,
}

/// The fields of the RON struct, or enum variant with named fields, at `span` of `text`; none if it is something else.
pub(super) fn fields(text: &str, span: Range<usize>) -> Vec<Field> {
    let (_, body) = variant(text, span);
    let parsed = options().from_str::<Fields<'_>>(&text[body]);
    let place = |part: &str| offset_in(text, part);
    parsed
        .map(|Fields(fields)| fields.iter().map(|(name, raw)| Field { name: place(name), value: place(raw) }).collect())
        .unwrap_or_default()
}

/// Splits `Gqa(heads: 32)` into its name (empty if there is none) and what follows it.
pub(super) fn variant(text: &str, span: Range<usize>) -> (&str, Range<usize>) {
    let part = &text[span.clone()];
    let name = part.len() - part.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_').len();
    let gap = part[name..].len() - part[name..].trim_start().len();
    (&part[..name], span.start + name + gap..span.end)
}

/// Where `part`, a slice of `text`, stands in it.
pub(super) fn offset_in(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - text.as_ptr() as usize;
    start..start + part.len()
}

/// Names and values of any struct, in order.
struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a struct")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(name) = map.next_key_seed(Name)? {
                    fields.push((name, map.next_value::<&'de RawValue>()?.trim().get_ron()));
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_struct("", &[], Collect)
    }
}

/// The name of a field, borrowed from the text.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = &'de str;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = &'de str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_borrowed_str<E: de::Error>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "// é\n(\n    pp: 4, // ranks\n    attention: Gqa(heads: 32, /* of */ kv_heads: 8),\n    \
                        name: r#\"a, b: (c\"#,\n    moe: (\n        layers: From(3),\n    ),\n)";

    fn value(path: &str) -> Option<&'static str> {
        match find(TEXT, 6..TEXT.len(), path) {
            Place::Value(span) => Some(&TEXT[span]),
            Place::Enclosing(_) => None,
        }
    }

    #[test]
    fn a_path_leads_to_its_value() {
        assert_eq!(value("pp"), Some("4"));
        assert_eq!(value("attention"), Some("Gqa(heads: 32, /* of */ kv_heads: 8)"));
        assert_eq!(value("attention.kv_heads"), Some("8"));
        assert_eq!(value("name"), Some("r#\"a, b: (c\"#"));
        assert_eq!(value("moe.layers"), Some("From(3)"));
    }

    #[test]
    fn a_path_that_is_not_written_leads_to_the_last_name_that_is() {
        let enclosing = |path| match find(TEXT, 6..TEXT.len(), path) {
            Place::Enclosing(name) => name.map(|span| &TEXT[span]),
            Place::Value(_) => panic!("{path} is not in the text"),
        };
        assert_eq!(enclosing("moe.experts"), Some("moe"));
        assert_eq!(enclosing("pp.more"), Some("pp"));
        assert_eq!(enclosing("sequence"), None);
    }

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(nearest_name("micro_batch", &["micro_batches", "micro_batch_size", "pp"]), Some("micro_batches"));
        assert_eq!(nearest_name("colour", &["pp", "ep", "sequence"]), None);
    }
}
