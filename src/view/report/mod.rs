//! Simulated plans as one page of HTML that needs nothing else: no network, no other file. Its numbers are text, there without a script and on
//! paper; the script draws the timelines. What it draws comes as columns of numbers.
//!
//! Names come from files, so nothing of them is ever markup: text is escaped, `<` in JSON is `\u003c`, the script only sets text, and the page's
//! own policy lets no other script run, nor anything be loaded.

mod columns;
mod tables;

use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

use super::palette::{Category, MEMORY};
use super::simulation::{Simulated, title};
use crate::interop::measured::Measured;
use columns::Columns;

/// A plan of a report.
pub struct Planned<'a> {
    /// The name of its file.
    pub name: &'a str,
    /// What was found.
    pub simulated: Simulated<'a>,
    /// A step of it that ran.
    pub measured: Option<&'a Measured>,
}

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
/// One script, a file for each subject, in the order in which they use each other.
const SCRIPT: [&str; 8] = [
    include_str!("script/plan.js"),
    include_str!("script/text.js"),
    include_str!("script/paint.js"),
    include_str!("script/timeline.js"),
    include_str!("script/memory.js"),
    include_str!("script/program.js"),
    include_str!("script/rank.js"),
    include_str!("script/page.js"),
];

/// Writes the page: of the first plan, beside the others.
///
/// # Errors
/// If `out` cannot be written to.
pub fn write(plans: &[Planned], out: &mut dyn Write) -> io::Result<()> {
    // In a script element nothing but `<` can end it, or open a comment.
    let data = serde_json::to_string(&Columns::new(plans))?.replace('<', "\\u003c");
    // No plan can hold the digest of what itself is part of: so no name can bring a script that may run.
    let nonce: String = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut rest = PAGE;
    while let Some((before, after)) = rest.split_once("{{") {
        out.write_all(before.as_bytes())?;
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        rest = after;
        match name {
            "title" => {
                let titles = plans.first().map(|plan| title(&plan.simulated)[0].clone());
                out.write_all(escaped(&titles.unwrap_or_default()).as_bytes())?;
            }
            "nonce" => out.write_all(nonce.as_bytes())?,
            "palette" => out.write_all(palette().as_bytes())?,
            "style" => out.write_all(STYLE.as_bytes())?,
            "data" => out.write_all(data.as_bytes())?,
            "script" => SCRIPT.iter().try_for_each(|file| out.write_all(file.as_bytes()))?,
            name => out.write_all(tables::of(name, plans).as_bytes())?,
        }
    }
    out.write_all(rest.as_bytes())
}

/// The colours as properties of the page: `--c0` .. for categories, `--m0` .. for memory.
fn palette() -> String {
    let one = |scheme: usize| {
        let categories = Category::ALL.iter().enumerate().map(|(at, of)| format!("--c{at}:{};", of.colours()[scheme]));
        let memory = MEMORY.iter().enumerate().map(|(at, of)| format!("--m{at}:{};", of[scheme]));
        categories.chain(memory).collect::<String>()
    };
    let (light, dark) = (one(0), one(1));
    format!(":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root:not([data-print]){{{dark}}}}}\n")
}

/// Text that stands for itself in HTML and SVG, in quotes too.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // Not allowed in XML, invisible in HTML.
            control if control.is_control() && !matches!(control, '\n' | '\t') => safe.push('\u{fffd}'),
            letter => safe.push(letter),
        }
    }
    safe
}
