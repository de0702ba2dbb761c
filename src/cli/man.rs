//! `dualweave man`: manual pages, in section 1.

use std::fs;
use std::path::PathBuf;

use clap_mangen::Man;

use super::{Verdict, command, output};
use crate::error::{Error, Result};

/// Arguments of `man`.
#[derive(clap::Args)]
pub struct Args {
    /// Where the pages of all commands go, a file for each; the folder is made if it is not there.
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// Prints the page of `dualweave`, or writes all.
///
/// # Errors
/// If the pages cannot be written.
pub fn run(args: &Args) -> Result<Verdict> {
    let mut command = command().disable_help_subcommand(true);
    command.build();
    let Some(folder) = &args.output else {
        output::print(&page(&Man::new(command))?)?;
        return Ok(Verdict::Yes);
    };
    fs::create_dir_all(folder).map_err(|error| {
        Error::new(format!("the folder `{}` cannot be made: {error}", folder.display())).help("name another")
    })?;
    let commands = command.get_subcommands().cloned().map(Man::new);
    let pages: Vec<Man> = commands.chain([Man::new(command.clone())]).collect();
    for man in &pages {
        output::write(&folder.join(man.get_filename()), &page(man)?)?;
    }
    output::note(format!("Wrote {} pages to {}.", pages.len(), folder.display()));
    Ok(Verdict::Yes)
}

/// A page in roff.
fn page(man: &Man) -> Result<String> {
    let mut roff = Vec::new();
    man.render(&mut roff).map_err(|error| Error::new(format!("the manual page cannot be made: {error}")))?;
    Ok(String::from_utf8_lossy(&roff).into_owned())
}
