//! `dualweave import --format kineto`: a trace of PyTorch's profiler, by the components of a layer.

use std::path::PathBuf;
use std::str::FromStr;

use super::{Args, reports};
use crate::cli::{Verdict, output};
use crate::error::Result;
use crate::interop::kineto::{self, Rules, Selection};
use crate::view::breakdown;

/// What only this format has.
#[derive(clap::Args)]
#[group(skip)]
#[command(next_help_heading = "With --format kineto")]
pub struct Options {
    /// What annotations and kernels stand for, beside the names that DeepSeek, Megatron, PyTorch and torchtitan use: a file such as
    /// examples/traces/rules.ron.
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// The GPU, if the trace has several.
    #[arg(long, value_name = "N")]
    device: Option<u32>,
    /// Only what was launched in these steps of the profiler: `7`, or the first and the last, `7..9`.
    #[arg(long, value_name = "A..B")]
    steps: Option<Steps>,
}

impl Options {
    /// The first of these that is given, for formats that have none of them.
    pub fn given(&self) -> Option<&'static str> {
        let Self { rules, device, steps } = self;
        let given = [(rules.is_some(), "--rules"), (device.is_some(), "--device"), (steps.is_some(), "--steps")];
        given.into_iter().find_map(|(given, name)| given.then_some(name))
    }
}

/// The first and the last of some steps.
#[derive(Clone, Copy)]
struct Steps(u64, u64);

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self(first, last)),
            (Ok(_), Ok(_)) => Err("the last step is before the first".to_owned()),
            _ => Err("write one number, or two as `7..9`".to_owned()),
        }
    }
}

/// Runs it.
pub(super) fn run(args: &Args) -> Result<Verdict> {
    let options = &args.kineto;
    let rules = match &options.rules {
        Some(path) => Rules::read(&path.display().to_string(), &output::read(path)?)?,
        None => Rules::default(),
    };
    let name = args.file.display().to_string();
    let selection = Selection { device: options.device, steps: options.steps.map(|Steps(first, last)| (first, last)) };
    let found = kineto::read(&name, output::open(&args.file)?, &rules, selection)?;
    let components = args.output.as_ref().map(|_| kineto::components(&name, &found)).transpose()?;
    if reports(args) {
        output::print(&match args.json {
            true => output::to_json(&breakdown::Json::new(&found))?,
            false => breakdown::to_text(&name, &found, output::report_width()),
        })?;
    }
    if let Some((path, text)) = args.output.as_ref().zip(components) {
        output::write(path, &text)?;
    }
    Ok(Verdict::Yes)
}
