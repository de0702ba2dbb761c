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

    /// The value that the file holds, without the comments and attributes around it.
    ///
    /// # Errors
    /// If the file is not RON. After this only what the value means can be wrong.
    pub fn body(&self) -> Result<Range<usize>> {
        match options().from_str::<&RawValue>(&self.text) {
            Ok(value) => Ok(offset_in(&self.text, value.trim().get_ron())),
            Err(error) => Err(self.not_ron(&error)),
        }
    }

    /// Reads the RON value at `span`. Errors name the field at fault, as a path that starts with `root`, and point to it.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self, root: &str, span: Range<usize>) -> Result<T> {
        options().from_str(&self.text[span.clone()]).map_err(|error| self.misfit(root, span, &error))
    }

    /// An error of syntax.
    fn not_ron(&self, error: &SpannedError) -> Error {
        let refused = crate::error::from_ron(&self.name, &self.text, error);
        let end = crate::error::offset(&self.text, error.span.end.line, error.span.end.col);
        if self.text.trim().is_empty() {
            return refused.help("the file is empty");
        }
        if end >= self.text.trim_end().len() {
            return refused.help("the file ends too early: something that was opened is not closed");
        }
        match &error.code {
            RonError::ExpectedComma if self.text.contains("hf(\"") => refused.help(
                "fields are separated by commas; `hf(\"..\")` takes a path alone, with more it is \
                 `hf(config: \"..\", precision: (..))`",
            ),
            RonError::ExpectedComma => refused.help("fields are separated by commas"),
            RonError::TrailingCharacters => refused.help("one pair of brackets holds all of it: remove what follows"),
            _ => refused,
        }
    }

    /// An error in what the value at `span` means.
    fn misfit(&self, root: &str, span: Range<usize>, error: &SpannedError) -> Error {
        let part = &self.text[span.clone()];
        let within = |at: ron::error::Position| span.start + crate::error::offset(part, at.line, at.col);
        let (start, end) = (within(error.span.start), within(error.span.end));
        // That a field is missing shows at the closing bracket, which the last field before it may touch.
        let missing = matches!(error.code, RonError::MissingStructField { .. });
        let (path, field) = self.field_at(root, span.clone(), start, !missing);
        let path = if path == JOB { "the job".to_owned() } else { format!("`{path}`") };
        // What is said about a struct points to its name, or to its bracket if it has none.
        let head = match &field {
            Some(field) => field.name.clone(),
            None => span.start..(span.start + 1).min(span.end),
        };
        let value = field.map_or(span, |field| field.value);
        let at = |error: Error, span: Range<usize>, label: &str| error.at(&self.name, &self.text, span, label);
        match &error.code {
            RonError::MissingStructField { field, .. } => {
                let error = Error::new(format!("{path} has no `{field}`, which has no default"));
                at(error.help(format!("add `{field}: ..,`")), head, &format!("`{field}` belongs in here"))
            }
            RonError::DuplicateStructField { field, .. } => {
                let error = Error::new(format!("{path} has `{field}` twice"));
                at(error.help("keep one"), start..end, "the second")
            }
            RonError::NoSuchStructField { expected, found, .. } => {
                let error = Error::new(format!("{path} has no field `{found}`"));
                at(error.help(choices(found, expected)), start..end, "here")
            }
            RonError::NoSuchEnumVariant { expected, found, .. } => {
                let error = Error::new(format!("{path} cannot be `{found}`"));
                at(error.help(choices(found, expected)), start..end, "here")
            }
            code => {
                let line = self.text[value.clone()].lines().next().unwrap_or_default();
                let error = Error::new(format!("{path} cannot be `{line}`"));
                at(error.help(expectation(code)), value.start..value.start + line.len(), "here")
            }
        }
    }

    /// The innermost field around a place, and its path. `touching`: also if the place is just behind it.
    fn field_at(&self, root: &str, span: Range<usize>, at: usize, touching: bool) -> (String, Option<Field>) {
        let (mut path, mut inner, mut found) = (root.to_owned(), span, None);
        loop {
            let around = |field: &Field| field.name.start <= at && at < field.value.end + usize::from(touching);
            let Some(field) = fields(&self.text, inner).into_iter().find(around) else {
                return (path, found);
            };
            // The name of a field that does not exist belongs to the struct around it.
            if at < field.name.end {
                return (path, found);
            }
            let name = &self.text[field.name.clone()];
            path = if path == JOB { name.to_owned() } else { format!("{path}.{name}") };
            inner = field.value.clone();
            found = Some(field);
        }
    }
}

/// The root of paths in a job file: `training`, not `job.training`.
pub(super) const JOB: &str = "job";

/// RON as jobs are written: options without `Some`, and the fields of `Gqa(heads: 32)` without a second pair of brackets.
pub(super) fn options() -> Options {
    Options::default().with_default_extension(
        Extensions::UNWRAP_NEWTYPES | Extensions::IMPLICIT_SOME | Extensions::UNWRAP_VARIANT_NEWTYPES,
    )
}

/// What to write instead of a name that does not exist.
fn choices(found: &str, names: &[&str]) -> String {
    match nearest_name(found, names) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("there are {}", names.join(", ")),
    }
}

/// What to write instead of a value that does not fit.
fn expectation(error: &RonError) -> String {
    match error {
        // In text that is RON, a comma or another digit is missed only behind the whole part of a fraction.
        RonError::IntegerOutOfBounds
        | RonError::ExpectedInteger
        | RonError::ExpectedComma
        | RonError::InvalidIntegerDigit { .. } => format!("write a whole number from 0 to {}", u32::MAX),
        RonError::ExpectedFloat => "write a number".into(),
        RonError::ExpectedString => "write text in double quotes".into(),
        RonError::ExpectedBoolean => "write `true` or `false`".into(),
        RonError::ExpectedArray => "write a list, `[ .. ]`".into(),
        RonError::ExpectedStructLike | RonError::ExpectedNamedStructLike(_) => {
            "write its fields in brackets, `( .. )`".into()
        }
        RonError::ExpectedIdentifier => "write a name, without quotes".into(),
        other => other.to_string(),
    }
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
