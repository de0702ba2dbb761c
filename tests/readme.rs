//! What the README shows is what happens.
//!
//! In its `console` blocks, a line `$ dualweave ..` is run, in a folder that has `examples` in it, all of them one after
//! the other. The lines up to the next `$` or the end of the block are its stderr and then its stdout; a line `...` stands
//! for any number of lines, none included. A last line `# exit code N` says how it ends where that is not 0.

use std::fs;
use std::path::Path;
use std::process::Command;

/// A command, and what the README says that it prints.
struct Shown<'a> {
    line: usize,
    args: Vec<&'a str>,
    output: Vec<&'a str>,
    code: i32,
}

fn commands(readme: &str) -> Vec<Shown<'_>> {
    let mut commands: Vec<Shown> = Vec::new();
    let (mut in_block, mut in_output) = (false, false);
    for (number, line) in (1..).zip(readme.lines()) {
        if line.starts_with("```") {
            (in_block, in_output) = (line == "```console", false);
        } else if let Some(command) = line.strip_prefix("$ ").filter(|_| in_block) {
            let args = command.strip_prefix("dualweave ");
            in_output = args.is_some();
            if let Some(args) = args {
                let args = args.split_whitespace().collect();
                commands.push(Shown { line: number, args, output: Vec::new(), code: 0 });
            }
        } else if let Some(shown) = commands.last_mut().filter(|_| in_output) {
            match line.strip_prefix("# exit code ") {
                Some(code) => shown.code = code.parse().expect("a number after `# exit code`"),
                None => shown.output.push(line),
            }
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

#[test]
fn every_command_prints_what_is_shown() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("the README");
    let folder = tempfile::tempdir().expect("a folder");
    copy_folder(&root.join("examples"), &folder.path().join("examples"));
    let commands = commands(&readme);
    assert!(!commands.is_empty());
    for shown in commands {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dualweave"));
        let output = command.args(&shown.args).current_dir(folder.path()).output().expect("the command starts");
        let text = String::from_utf8([output.stderr, output.stdout].concat()).expect("text");
        // Blank lines around it are the README's.
        let lines: Vec<&str> = text.trim_end().lines().collect();
        let blank = shown.output.iter().rev().take_while(|line| line.is_empty()).count();
        let expected = &shown.output[..shown.output.len() - blank];
        let what = format!("README.md, line {}: dualweave {}", shown.line, shown.args.join(" "));
        assert_eq!(output.status.code(), Some(shown.code), "{what}:\n{text}");
        assert!(matches(expected, &lines), "{what} prints\n{text}");
    }
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
