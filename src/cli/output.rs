//! Reading and writing for the commands: whole files or nothing, and every failure an error.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;

use miette::MietteHandlerOpts;
use textwrap::WordSplitter;

use crate::error::{Error, Result};

/// What the names of files begin with that are still being written.
const UNFINISHED: &str = ".dualweave-";

/// Files above this are not read: no job or plan is that large, and a device file never ends.
const LARGEST_FILE: u64 = 1 << 30;

/// Prints an error to stderr as a diagnostic, in colour where a person looks.
pub fn report(error: Error) {
    // Flags (`--memory-limit-gb`) are not broken over lines. Fails only if a hook is there, and this is the first.
    let _ = miette::set_hook(Box::new(|_| {
        Box::new(MietteHandlerOpts::new().word_splitter(WordSplitter::NoHyphenation).build())
    }));
    let text = format!("{:?}", miette::Report::new(error));
    // Nothing is left to do if even stderr is closed.
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Prints a line of talk to stderr.
pub fn note(text: impl AsRef<str>) {
    let _ = writeln!(anstream::stderr(), "{}", text.as_ref());
}

/// Writes data to stdout; colour codes are dropped when it is not a terminal.
///
/// # Errors
/// If stdout is closed or full.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = anstream::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| unwritten(&error))
}

/// That stdout cannot be written.
pub fn unwritten(error: &io::Error) -> Error {
    Error::new(format!("standard output cannot be written: {error}"))
}

/// Columns of the terminal that stdout is, if it is one.
pub fn terminal_width() -> Option<usize> {
    let (terminal_size::Width(columns), _) = terminal_size::terminal_size_of(io::stdout())?;
    io::stdout().is_terminal().then_some(usize::from(columns))
}

/// Columns of a report: the terminal's, or 120 where it goes into a file or a pipe.
pub fn report_width() -> usize {
    terminal_width().unwrap_or(120)
}

/// Columns of the terminal that stderr is; 120 if it is none.
pub fn talk_width() -> usize {
    terminal_size::terminal_size_of(io::stderr()).map_or(120, |(terminal_size::Width(columns), _)| columns.into())
}

/// `value` as indented JSON with a final line break.
///
/// # Errors
/// If it holds what JSON cannot: a number that is not finite.
pub fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n").map_err(|error| Error::new(format!("this cannot be written as JSON: {error}")))
}

/// The text of a file.
///
/// # Errors
/// If it is not there, not a file, larger than 1 GiB, or not UTF-8.
pub fn read(path: &Path) -> Result<String> {
    crate::job::read_text(path, LARGEST_FILE)
}

/// A file of any size, to be read piece by piece.
///
/// # Errors
/// If it is not there, or not a file.
pub fn open(path: &Path) -> Result<fs::File> {
    crate::job::open(path)
}

/// Whether a path means standard output.
pub fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Refuses to write a command's result over the file that it was made from.
///
/// # Errors
/// If both paths lead to the same file.
pub fn keep_apart(input: &Path, output: &Path) -> Result<()> {
    match (fs::canonicalize(input), fs::canonicalize(output)) {
        (Ok(from), Ok(to)) if from == to && !is_stdout(output) => {
            let message = format!("`{}` would be overwritten by what is made from it", input.display());
            Err(Error::new(message).help("name another file to write to"))
        }
        _ => Ok(()),
    }
}

/// Writes a whole file or leaves what was there; see [`write_with`].
///
/// # Errors
/// If it cannot be written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    if is_stdout(path) {
        return print(text);
    }
    write_with(path, |out| out.write_all(text.as_bytes()))
}

/// Writes a whole file piece by piece, or leaves what was there: the pieces go beside it first, and the file is renamed
/// when it is complete. `-` is stdout; what exists and is no regular file (a device, a pipe) is written to directly.
///
/// # Errors
/// If anything of that fails.
pub fn write_with(path: &Path, pieces: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> Result<()> {
    let refuse = |error: io::Error| Error::new(format!("`{}` cannot be written: {error}", path.display()));
    // Without the name of the temporary file, which is nobody's business.
    let refuse_beside = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            refuse(error.kind().into()).help("there is no such directory: make it, or name another")
        }
        kind => refuse(kind.into()),
    };
    let all = |file: &mut dyn io::Write| {
        let mut out = io::BufWriter::new(file);
        pieces(&mut out)?;
        out.flush()
    };
    if is_stdout(path) {
        return all(&mut io::stdout().lock()).map_err(|error| unwritten(&error));
    }
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => {
            return Err(Error::new(format!("`{}` is a directory", path.display())).help("name a file in it"));
        }
        Ok(there) if !there.is_file() => {
            return fs::OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|mut device| all(&mut device))
                .map_err(refuse);
        }
        _ => {}
    }
    // A link stays a link: its target is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut beside = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder).map_err(refuse_beside)?;
    all(beside.as_file_mut()).and_then(|()| beside.as_file().sync_all()).map_err(refuse)?;
    set_default_permissions(&beside).map_err(refuse)?;
    beside.persist(&target).map_err(|error| refuse(error.error))?;
    Ok(())
}

/// Removes what commands that were killed while they wrote have left in a folder.
///
/// # Errors
/// If the folder cannot be read, or such a file not removed.
pub fn remove_unfinished(folder: &Path) -> Result<()> {
    let refuse = |error: io::Error| Error::new(format!("`{}` cannot be tidied: {error}", folder.display()));
    for entry in fs::read_dir(folder).map_err(refuse)? {
        let entry = entry.map_err(refuse)?;
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            fs::remove_file(entry.path()).map_err(refuse)?;
        }
    }
    Ok(())
}

/// A temporary file is private; a plan is an ordinary file.
#[cfg(unix)]
fn set_default_permissions(file: &tempfile::NamedTempFile) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_default_permissions(_: &tempfile::NamedTempFile) -> io::Result<()> {
    Ok(())
}
