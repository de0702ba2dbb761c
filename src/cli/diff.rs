//! `dualweave diff`: what changed between two plans.

use std::path::PathBuf;

use similar::TextDiff;

use super::{Verdict, output};
use crate::error::Result;
use crate::plan::Plan;
use crate::view::difference::{difference, to_text};
use crate::view::plan_text::render;

/// Arguments of `diff`.
#[derive(clap::Args)]
pub struct Args {
    /// The plan that was.
    old: PathBuf,
    /// The plan that is.
    new: PathBuf,
    /// Every line that differs, as `diff -u` would show the plans as texts.
    #[arg(long, conflicts_with = "json")]
    full: bool,
    /// Print everything as JSON: nanoseconds, bytes.
    #[arg(long)]
    json: bool,
}

/// Compares. That they differ is the verdict `No`.
///
/// # Errors
/// If one cannot be read or simulated.
pub fn run(args: &Args) -> Result<Verdict> {
    let read = |path: &PathBuf| Plan::from_ron(&path.display().to_string(), &output::read(path)?);
    let (old, new) = (read(&args.old)?, read(&args.new)?);
    let of = difference(&old, &new)?;
    let text = match (args.json, args.full) {
        (true, _) => output::to_json(&of)?,
        (false, true) => {
            let (before, after) = (render(&old), render(&new));
            let names = [&args.old, &args.new].map(|path| path.display().to_string());
            TextDiff::from_lines(&before, &after)
                .unified_diff()
                .context_radius(2)
                .header(&names[0], &names[1])
                .to_string()
        }
        (false, false) => to_text(&of, output::report_width()),
    };
    output::print(&text)?;
    Ok(if of.same { Verdict::Yes } else { Verdict::No })
}
