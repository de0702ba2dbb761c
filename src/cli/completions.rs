//! `dualweave completions`: what makes a shell complete commands, options and their values.

use clap_complete::Shell;

use super::{Verdict, command, output};
use crate::error::Result;

/// Arguments of `completions`.
#[derive(clap::Args)]
pub struct Args {
    /// The shell.
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// If standard output cannot be written.
pub fn run(args: &Args) -> Result<Verdict> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "dualweave", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Verdict::Yes)
}
