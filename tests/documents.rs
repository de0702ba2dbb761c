//! What the README and the guide show is what happens.
//!
//! What is done with a block of code depends on what stands behind its fence:
//!
//! - `console`: each line `$ dualweave ..` is run, all of a document one after the other, in a folder that has `examples` in it. The
//!   lines up to the next `$` or the end of the block are its stderr and then its stdout; a line `...` stands for any number of lines,
//!   none included. A last line `# exit code N` says how it ends where that is not 0. `> FILE` at the end puts its stdout there.
//! - `sh WHY`: commands that are not run, since they need what [`NOT_HERE`] says. The command line must understand them.
//! - `LANGUAGE FILE`: a file, which is there for the commands below.
//! - Any other holds no command.
//!
//! A figure (SVG) that a document shows and that its commands have written is that figure; `INSTA_UPDATE=always` puts it there. Commands in
//! running text must be understood too.

#[path = "documents/markdown.rs"]
mod markdown;
#[path = "documents/understood.rs"]
mod understood;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use markdown::{Block, Document};

/// Why a command is not run by tests.
const NOT_HERE: [(&str, &str); 3] =
    [("gpu", "NVIDIA GPUs"), ("install", "changes this computer, or runs everything"), ("torch", "PyTorch")];

/// Languages of blocks that hold no command.
const NO_COMMAND: [&str; 7] = ["", "csv", "python", "ron", "rust,no_run", "text", "toml"];

macro_rules! run {
    ($($name:ident: $path:literal,)*) => {
        /// The documents whose commands are run, each by a test of its own.
        const RUN: &[&str] = &[$($path),*];
        $(#[test]
        fn $name() {
            run_commands($path);
        })*
    };
}

run! {
    readme: "README.md",
    compile: "docs/compile.md",
    concepts: "docs/concepts.md",
    host_runtime: "docs/host-runtime.md",
    published_runs: "docs/published-runs.md",
    pytorch: "docs/pytorch.md",
    report: "docs/report.md",
    search: "docs/search.md",
    snapshot_tests: "docs/snapshot-tests.md",
    tune_sms: "docs/tune-sms.md",
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Markdown file, relative to the root, sorted.
fn documents() -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                walk(&path, found);
            } else if name.ends_with(".md") {
                let relative = path.strip_prefix(root()).expect("it is in there");
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), &mut found);
    found.sort();
    found
}

/// A command, and what a document says that it prints.
struct Shown<'a> {
    line: usize,
    command: &'a str,
    output: Vec<&'a str>,
    code: i32,
}

impl Shown<'_> {
    /// Its arguments, and the file that its stdout goes to.
    fn args(&self) -> (Vec<&str>, Option<&str>) {
        let words: Vec<&str> = self.command.split_whitespace().collect();
        match &words[..] {
            [args @ .., ">", file] => (args.to_vec(), Some(file)),
            _ => (words, None),
        }
    }
}

/// The commands of a `console` block.
fn shown<'a>(path: &str, block: &Block<'a>) -> Vec<Shown<'a>> {
    let mut commands: Vec<Shown> = Vec::new();
    for &(line, text) in &block.lines {
        if let Some(command) = text.strip_prefix("$ ") {
            let command = command.strip_prefix("dualweave ");
            let command = command.unwrap_or_else(|| panic!("{path}, line {line}: only dualweave is run here"));
            commands.push(Shown { line, command, output: Vec::new(), code: 0 });
            continue;
        }
        let shown = commands.last_mut().unwrap_or_else(|| panic!("{path}, line {line}: printed by no command"));
        match text.strip_prefix("# exit code ") {
            Some(code) => shown.code = code.parse().expect("a number after `# exit code`"),
            None => shown.output.push(text),
        }
    }
    commands
}

/// Whether the lines are those shown, where `...` stands for any.
fn matches(shown: &[&str], lines: &[&str]) -> bool {
    match shown {
        [] => lines.is_empty(),
        ["...", rest @ ..] => (0..=lines.len()).any(|skipped| matches(rest, &lines[skipped..])),
        [first, rest @ ..] => lines.first() == Some(first) && matches(rest, &lines[1..]),
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a new folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).expect("a copy")),
        }
    }
}

/// Runs what a document shows, and compares.
fn run_commands(path: &str) {
    let text = read(path);
    let document = Document::new(&text);
    let folder = tempfile::tempdir().expect("a folder");
    copy_folder(&root().join("examples"), &folder.path().join("examples"));
    for block in &document.blocks {
        match (block.language, block.note) {
            ("console", _) => shown(path, block).iter().for_each(|shown| run_one(path, folder.path(), shown)),
            ("sh", _) | (_, "") => {}
            (_, file) => {
                let lines: String = block.lines.iter().flat_map(|(_, line)| [line, "\n"]).collect();
                let file = folder.path().join(file);
                fs::create_dir_all(file.parent().expect("it is in the folder")).expect("a folder");
                fs::write(file, lines).expect("a file");
            }
        }
    }
    let written = |target: &str| target.ends_with(".svg") && folder.path().join(target).exists();
    for (number, target) in document.links().into_iter().filter(|(_, target)| written(target)) {
        let shown = root().join(path).with_file_name(target);
        let made = fs::read(folder.path().join(target)).expect("it was written");
        if std::env::var("INSTA_UPDATE").is_ok_and(|how| how == "always") {
            fs::write(&shown, &made).expect("the figure can be written");
        }
        let same = fs::read(&shown).is_ok_and(|shown| shown == made);
        assert!(same, "{path}, line {number}: {target} is another now; INSTA_UPDATE=always puts it there");
    }
}

fn run_one(path: &str, folder: &Path, shown: &Shown) {
    let (args, file) = shown.args();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dualweave"));
    let output = command.args(args).current_dir(folder).output().expect("the command starts");
    let mut printed = output.stderr;
    match file {
        Some(file) => fs::write(folder.join(file), output.stdout).expect("a file"),
        None => printed.extend(output.stdout),
    }
    let text = String::from_utf8(printed).expect("text");
    // Blank lines around it are the document's.
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let blank = shown.output.iter().rev().take_while(|line| line.is_empty()).count();
    let expected = &shown.output[..shown.output.len() - blank];
    let what = format!("{path}, line {}: dualweave {}", shown.line, shown.command);
    assert_eq!(output.status.code(), Some(shown.code), "{what}:\n{text}");
    assert!(matches(expected, &lines), "{what} prints\n{text}");
}

#[test]
fn every_document_that_shows_commands_is_run() {
    let with: Vec<String> = documents()
        .into_iter()
        .filter(|path| Document::new(&read(path)).blocks.iter().any(|block| block.language == "console"))
        .collect();
    let mut run = RUN.to_vec();
    run.sort_unstable();
    assert_eq!(with, run, "`run!` in tests/documents.rs lists them");
}

#[test]
fn every_block_says_what_it_is() {
    for path in documents() {
        for block in Document::new(&read(&path)).blocks {
            let Block { language, note, lines } = &block;
            let at = lines.first().map_or(0, |(line, _)| line - 1);
            match *language {
                "console" => assert_eq!(*note, "", "{path}, line {at}: what is run is run"),
                "sh" => {
                    let known = NOT_HERE.iter().any(|(why, _)| why == note);
                    assert!(known, "{path}, line {at}: `sh` and why it is not run, one of {NOT_HERE:?}; or `console`");
                }
                other => {
                    assert!(NO_COMMAND.contains(&other), "{path}, line {at}: `{other}` is none of {NO_COMMAND:?}");
                    let command = |line: &str| line.starts_with("$ ") || understood::command(line);
                    let command = lines.iter().find(|(_, line)| command(line));
                    assert_eq!(command, None, "{path}: a command stands in `console` or `sh WHY`");
                }
            }
        }
    }
}

#[test]
fn every_command_that_is_not_run_is_understood() {
    let mut wrong = String::new();
    for path in documents() {
        let text = read(&path);
        let document = Document::new(&text);
        let blocks = document.blocks.iter().filter(|block| block.language == "sh");
        for &(number, line) in blocks.flat_map(|block| &block.lines) {
            for refused in understood::commands(line).iter().filter_map(|words| understood::refused(words, false)) {
                wrong += &format!("{path}, line {number}: {line}\n{refused}\n");
            }
        }
        for (number, code) in document.code() {
            for refused in understood::in_text(&code).iter().filter_map(|words| understood::refused(words, true)) {
                wrong += &format!("{path}, paragraph of line {number}: {code}\n{refused}\n");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_link_leads_somewhere() {
    for path in documents() {
        let text = read(&path);
        for (number, target) in Document::new(&text).links() {
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let at = format!("{path}, line {number}: {target}");
            let folder = Path::new(&path).parent().expect("it is in a folder");
            let file = if file.is_empty() { PathBuf::from(&path) } else { folder.join(file) };
            let found = root().join(&file).canonicalize().unwrap_or_else(|error| panic!("{at}: {error}"));
            let guide = root().join("docs").canonicalize().expect("the guide");
            assert!(
                !path.starts_with("docs/") || found.starts_with(guide),
                "{at}: out of the guide, so not in the book"
            );
            if !anchor.is_empty() {
                let anchors = Document::new(&fs::read_to_string(found).expect("a document")).anchors();
                assert!(anchors.iter().any(|of| of == anchor), "{at}: there are {anchors:?}");
            }
        }
    }
}

#[test]
fn the_summary_has_every_page_once() {
    let text = read("docs/SUMMARY.md");
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for (_, target) in Document::new(&text).links() {
        *times.entry(format!("docs/{target}")).or_default() += 1;
    }
    let pages = documents().into_iter().filter(|path| path.starts_with("docs/") && path != "docs/SUMMARY.md");
    assert_eq!(times, pages.map(|path| (path, 1)).collect());
}

#[test]
fn dots_stand_for_any_number_of_lines() {
    let lines = ["a", "b", "c"];
    for same in
        [&["a", "b", "c"][..], &["..."], &["a", "..."], &["...", "c"], &["a", "...", "b", "c"], &["...", "b", "..."]]
    {
        assert!(matches(same, &lines), "{same:?}");
    }
    for other in [&["a", "b"][..], &["a", "...", "b"], &["...", "d", "..."], &[]] {
        assert!(!matches(other, &lines), "{other:?}");
    }
}
