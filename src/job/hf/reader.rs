//! Typed, strict access to the keys of a JSON object, with the place of each for errors.
//!
//! Every key that an importer asks for is remembered. [`Config::refuse_unread`] then refuses what nobody asked for and that
//! sounds like arithmetic: another spelling of the number of experts must not make a model dense.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::job::source::offset_in;

/// Pieces of names of keys that shape the arithmetic in some family or other.
const SHAPING: [&str; 15] = [
    "bias",
    "chunk_size",
    "expert",
    "head_dim",
    "intermediate",
    "layer_type",
    "lora_rank",
    "moe",
    "mtp",
    "nextn",
    "qk_norm",
    "shared",
    "sliding",
    "sparse",
    "window",
];

/// A JSON object of a config file.
pub(super) struct Config<'a> {
    file: &'a str,
    /// The whole file, also for a nested object.
    text: &'a str,
    entries: Vec<Entry<'a>>,
    asked: BTreeSet<&'static str>,
    /// `tie_word_embeddings` of the object around this one.
    tied_outside: Option<bool>,
}

/// A key and its value.
struct Entry<'a> {
    key: String,
    value: &'a str,
}

impl<'a> Config<'a> {
    /// Reads a file.
    pub fn parse(file: &'a str, text: &'a str) -> Result<Self> {
        let entries = match serde_json::from_str::<Object<'a>>(text) {
            Ok(Object(entries)) => entries,
            Err(error) => {
                let at = offset(text, error.line(), error.column());
                let message = error.to_string();
                let message = message.split(" at line ").next().unwrap_or(&message);
                return Err(Error::new(format!("`{file}` is not a JSON object: {message}"))
                    .help("give the config.json of a model")
                    .at(file, text, at, "here"));
            }
        };
        let config = Self { file, text, entries, asked: BTreeSet::new(), tied_outside: None };
        config.refuse_twice()?;
        Ok(config)
    }

    /// The object under `key`.
    pub fn nested(&mut self, key: &'static str) -> Result<Self> {
        let Object(entries) = self.required(key, "an object")?;
        let tied_outside = self.optional_flag("tie_word_embeddings")?;
        let nested = Self { file: self.file, text: self.text, entries, asked: BTreeSet::new(), tied_outside };
        nested.refuse_twice()?;
        Ok(nested)
    }

    /// Whether there is such a key.
    pub fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// A number from 1 on.
    pub fn count(&mut self, key: &'static str) -> Result<u32> {
        match self.required::<u32>(key, "a whole number")? {
            0 => Err(self.refuse(key, format!("`{key}` is 0"), "give a number from 1 on")),
            count => Ok(count),
        }
    }

    /// A number from 0 on.
    pub fn number(&mut self, key: &'static str) -> Result<u32> {
        self.required(key, "a whole number")
    }

    /// A number, or null for none; the key must be there.
    pub fn number_or_null(&mut self, key: &'static str) -> Result<u32> {
        Ok(self.required::<Option<u32>>(key, "a whole number or null")?.unwrap_or(0))
    }

    /// A number from 1 on, or null; the key must be there.
    pub fn count_or_null(&mut self, key: &'static str) -> Result<Option<u32>> {
        if self.required::<Option<u32>>(key, "a whole number or null")?.is_none() {
            return Ok(None);
        }
        self.count(key).map(Some)
    }

    /// A number from 1 on, where the key is there and not null.
    pub fn optional_count(&mut self, key: &'static str) -> Result<Option<u32>> {
        self.asked.insert(key);
        if self.has(key) { self.count_or_null(key) } else { Ok(None) }
    }

    /// A truth value.
    pub fn flag(&mut self, key: &'static str) -> Result<bool> {
        self.required(key, "`true` or `false`")
    }

    /// A truth value, where the key is there and not null.
    pub fn optional_flag(&mut self, key: &'static str) -> Result<Option<bool>> {
        self.optional(key, "`true` or `false`")
    }

    /// A text.
    pub fn text(&mut self, key: &'static str) -> Result<String> {
        self.required(key, "a text")
    }

    /// A list, where the key is there and not null.
    pub fn optional_list<T: DeserializeOwned>(&mut self, key: &'static str, what: &str) -> Result<Option<Vec<T>>> {
        self.optional(key, what)
    }

    /// The head is tied to the embedding; the key may also stand in the object around this one.
    pub fn tied_embedding(&mut self) -> Result<bool> {
        let key = "tie_word_embeddings";
        match (self.optional_flag(key)?, self.tied_outside) {
            (Some(inside), Some(outside)) if inside != outside => {
                let message = format!("`{key}` is {inside} here and {outside} in the object around it");
                Err(self.refuse(key, message, "make them agree: it decides whether the head has parameters of its own"))
            }
            (Some(tied), _) | (None, Some(tied)) => Ok(tied),
            (None, None) => self.flag(key),
        }
    }

    /// `architectures`, where it is given, must be just this class.
    pub fn class_is(&mut self, class: &str) -> Result<()> {
        let key = "architectures";
        match self.optional_list::<String>(key, "a list of class names")? {
            Some(classes) if classes != [class] => {
                let model_type = self.text("model_type")?;
                let message = format!("`{key}` is {classes:?}, but `model_type` is `{model_type}`");
                Err(self.refuse(key, message, format!("this model type goes with `{class}`: one of the two is wrong")))
            }
            _ => Ok(()),
        }
    }

    /// Keys that are known to shape nothing in this family.
    pub fn pass_over(&mut self, keys: &[&'static str]) {
        self.asked.extend(keys);
    }

    /// Refuses keys that nobody asked for and that sound like arithmetic, unless they are empty, zero or false.
    pub fn refuse_unread(&self) -> Result<()> {
        let idle = |value: &str| matches!(value, "null" | "false" | "0" | "0.0" | "\"\"" | "[]" | "{}");
        let shaping = |key: &str| SHAPING.iter().any(|piece| key.to_lowercase().contains(piece));
        let unread = self
            .entries
            .iter()
            .find(|entry| !self.asked.contains(entry.key.as_str()) && shaping(&entry.key) && !idle(entry.value));
        let Some(entry) = unread else {
            return Ok(());
        };
        let family = self.family();
        Err(self.refuse(
            &entry.key,
            format!("`{}` is not a key that `{family}` has, and it may change the arithmetic", entry.key),
            "if it does not, delete it; if it does, write the model out in RON",
        ))
    }

    /// An error at a key; without that key, at the model type.
    pub fn refuse(&self, key: &str, message: impl Into<String>, help: impl Into<String>) -> Error {
        let error = Error::new(message).help(help);
        match (self.place(key), self.place("model_type")) {
            (Some(span), _) => error.at(self.file, self.text, span, "here"),
            (None, Some(span)) => error.at(self.file, self.text, span, format!("`{key}` belongs beside this")),
            (None, None) => error.at(self.file, self.text, 0..self.text.len().min(1), "in this object"),
        }
    }

    /// Key and value; of a value over several lines only the first.
    pub fn place(&self, key: &str) -> Option<Range<usize>> {
        let value = offset_in(self.text, self.entry(key)?.value);
        // Between a key and its value stands nothing but a colon and white space.
        let before = self.text[..value.start].trim_end().strip_suffix(':')?.trim_end();
        let start = before.strip_suffix('"')?.rfind('"')?;
        let lines = self.text[start..value.end].lines();
        Some(start..start + lines.map(str::len).next()?)
    }

    fn entry(&self, key: &str) -> Option<&Entry<'a>> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The model type, for messages.
    fn family(&self) -> String {
        let named = self.entry("model_type").and_then(|entry| serde_json::from_str(entry.value).ok());
        named.unwrap_or_else(|| "this model".into())
    }

    fn required<T: Deserialize<'a>>(&mut self, key: &'static str, what: &str) -> Result<T> {
        self.asked.insert(key);
        let Some(entry) = self.entry(key) else {
            let message = format!("`{}` has no `{key}`, which shapes the arithmetic of `{}`", self.file, self.family());
            return Err(self.refuse(key, message, format!("add `\"{key}\": ..` ({what}) as the model was published")));
        };
        serde_json::from_str(entry.value).map_err(|_| {
            let value = entry.value.lines().next().unwrap_or_default();
            self.refuse(key, format!("`{key}` is not {what}"), format!("it is {value}: give {what}"))
        })
    }

    fn optional<T: DeserializeOwned>(&mut self, key: &'static str, what: &str) -> Result<Option<T>> {
        self.asked.insert(key);
        if self.has(key) { self.required(key, what) } else { Ok(None) }
    }

    /// JSON readers disagree about which of two equal keys counts.
    fn refuse_twice(&self) -> Result<()> {
        let mut seen = BTreeSet::new();
        match self.entries.iter().find(|entry| !seen.insert(&entry.key)) {
            Some(entry) => {
                let message = format!("`{}` has the key `{}` twice", self.file, entry.key);
                Err(self.refuse(&entry.key, message, "keep one"))
            }
            None => Ok(()),
        }
    }
}

/// Byte offset of a line and a column (in bytes), both from 1, moved to the start of a character.
fn offset(text: &str, line: usize, column: usize) -> Range<usize> {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let mut at = (start + column.saturating_sub(1)).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let length = text[at..].chars().next().map_or(0, char::len_utf8);
    at..at + length
}

/// Keys and values of an object, in order, the values as they are written.
struct Object<'a>(Vec<Entry<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, &'de RawValue>()? {
                    entries.push(Entry { key, value: value.get() });
                }
                Ok(Object(entries))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}
