//! The folder of `--checkpoint`, for every backend.

use std::fs;
use std::path::PathBuf;

use super::{Args, Numbers, output};
use crate::error::{Error, Result};
use crate::runtime::checkpoint::{Checkpoint, Progress};

/// The checkpoint's name in its folder.
const CHECKPOINT: &str = "checkpoint.safetensors";

/// Where a training's state is kept.
pub struct Folder {
    folder: PathBuf,
    file: PathBuf,
    every: u32,
    resume: bool,
}

impl Folder {
    /// None, if nothing is kept.
    pub fn of(args: &Args) -> Option<Self> {
        let folder = args.checkpoint.clone()?;
        Some(Self { file: folder.join(CHECKPOINT), folder, every: args.checkpoint_every, resume: args.resume })
    }

    /// The bytes of the file to go on from, if there is one to be. A checkpoint that is there is not written over.
    pub fn read(&self) -> Result<Option<Vec<u8>>> {
        let name = self.file.display();
        match self.resume {
            true if self.file.exists() && !self.file.is_file() => Err(Error::new(format!("`{name}` is no file"))),
            true => fs::read(&self.file).map(Some).map_err(|error| {
                Error::new(format!("`{name}` cannot be read: {error}"))
                    .help("begin without `--resume`, or name the folder of an earlier `--checkpoint`")
            }),
            false if self.file.exists() => Err(Error::new(format!("`{name}` is there already"))
                .help("go on from it with `--resume`, or name another folder")),
            false => Ok(None),
        }
    }

    /// Makes the folder, without what an earlier run has half written.
    pub fn make(&self) -> Result<()> {
        fs::create_dir_all(&self.folder)
            .map_err(|error| Error::new(format!("`{}` cannot be made: {error}", self.folder.display())))?;
        output::remove_unfinished(&self.folder)
    }

    /// Whether the state is written behind so many steps, of `last`.
    pub fn is_due(&self, steps: u32, last: u32) -> bool {
        steps == last || steps.is_multiple_of(self.every)
    }

    /// Writes the file.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        output::write_with(&self.file, |out| out.write_all(bytes))
    }
}

/// The checkpoint of a file, if a training can go on from it that would now begin so.
pub fn admitted<'a>(bytes: &'a [u8], now: &Progress) -> Result<Checkpoint<'a>> {
    let checkpoint = Checkpoint::read(bytes)?;
    let there = &checkpoint.progress;
    if there.precision != now.precision {
        let with = match there.precision == Numbers::AsPlanned.name() {
            true => format!("`--precision {}`, or with `--backend cuda`", there.precision),
            false => format!("`--backend host --precision {}`", there.precision),
        };
        return Err(Error::new(format!("the checkpoint was trained with `--precision {}`", there.precision))
            .help(format!("go on with {with}")));
    }
    if there.text != now.text {
        return Err(Error::new("the checkpoint was trained on another text").help("go on with the same `--data`"));
    }
    Ok(checkpoint)
}
