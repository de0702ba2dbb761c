//! Reading a plan: strictly everything; whatever does not fit is first of all asked for its version.

use ron::Options;
use ron::extensions::Extensions;
use serde::Deserialize;

use super::{Plan, VERSION};
use crate::error::{Error, Result};

/// Only the version, whatever else the file holds.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Plan {
    /// Reads a plan from RON text. `name` is the file's, for messages.
    ///
    /// # Errors
    /// If the text is not a plan, or one of another version. What a plan *does* is not judged here: see [`crate::verify`].
    pub fn from_ron(name: &str, text: &str) -> Result<Self> {
        let options = Options::default().with_default_extension(Extensions::UNWRAP_NEWTYPES);
        let error = match options.from_str::<Self>(text) {
            Ok(plan) if plan.version == VERSION => return Ok(plan),
            Ok(plan) => return Err(other_version(name, text, plan.version)),
            Err(error) => error,
        };
        Err(match options.from_str::<Versioned>(text) {
            Ok(Versioned { version }) if version != VERSION => other_version(name, text, version),
            _ => crate::error::from_ron(name, text, &error).help("a plan is what `dualweave compile` writes"),
        })
    }
}

fn other_version(name: &str, text: &str, version: u32) -> Error {
    let place = text.find("version:").unwrap_or(0);
    let length = text[place..].find([',', '\n']).unwrap_or(text.len() - place);
    Error::new(format!("this is a plan of version {version}; this dualweave reads version {VERSION}"))
        .help("compile the job again with this dualweave, or use the one that wrote the plan")
        .at(name, text, place..place + length, "the plan's version")
}
