//! `dualweave verify`: prove that a plan is safe to run.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Verdict, output};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::verify::{Report, Rule, verify};

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The plan, as `dualweave compile` writes it.
    plan: PathBuf,
    /// Print the verdict as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs it. A plan that is not safe is the verdict `No`.
pub fn run(args: Args) -> Result<Verdict> {
    let plan = Plan::from_ron(&args.plan.display().to_string(), &output::read(&args.plan)?)?;
    let report = verify(&plan);
    let sealed = plan.digest == plan.digest_now();
    if !sealed {
        output::note(format!(
            "note: `{}` was edited after it was compiled: its digest is another",
            args.plan.display()
        ));
    }
    let text = if args.json { as_json(&args.plan, &report, sealed)? } else { as_text(&args.plan, &report) };
    output::print(&text)?;
    Ok(if report.is_safe() { Verdict::Yes } else { Verdict::No })
}

/// One line if the plan is safe; else a line, and one for each violation.
fn as_text(path: &Path, report: &Report) -> String {
    let checked = &report.checked;
    let path = path.display();
    if report.is_safe() {
        return format!(
            "{path}: safe: {}, {}, {}, {}\n",
            count(checked.ranks as u64, "rank"),
            count(checked.items as u64, "item"),
            count(checked.programs as u64, "program"),
            count(checked.rules as u64, "rule")
        );
    }
    let rules = count(report.counts.len() as u64, "rule");
    let mut text = format!("{path}: not safe: {} of {rules}\n", count(report.total(), "violation"));
    for &rule in report.counts.keys() {
        for violation in report.violations.iter().filter(|violation| violation.rule == rule) {
            text.push_str(&format!("{violation}\n"));
        }
        let more = report.unlisted(rule);
        if more > 0 {
            text.push_str(&format!("… and {} more [{rule}]\n", grouped(more)));
        }
    }
    let unasked = Rule::ALL.len() - checked.rules;
    if unasked > 0 {
        let others = count(unasked as u64, "other rule");
        text.push_str(&format!("the {others} are asked once the plan is well-formed\n"));
    }
    text
}

fn as_json(path: &Path, report: &Report, sealed: bool) -> Result<String> {
    let value = json!({
        "plan": path.display().to_string(),
        "safe": report.is_safe(),
        "digest_matches": sealed,
        "checked": report.checked,
        "counts": report.counts,
        "violations": report.violations,
    });
    let text = serde_json::to_string_pretty(&value)
        .map_err(|error| Error::new(format!("the report cannot be written as JSON: {error}")))?;
    Ok(text + "\n")
}

/// A number with its noun: `1 rank`, `12 345 items`.
fn count(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
