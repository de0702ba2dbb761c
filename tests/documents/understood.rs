//! Whether the command line understands a command, without running it.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Why it is not understood. Words in capitals stand for something; in running text a command may lack what it needs.
pub fn refused(words: &[&str], in_text: bool) -> Option<String> {
    let words = std::iter::once("dualweave").chain(words.iter().copied());
    let error = dualweave::cli::command().try_get_matches_from(words).err()?;
    let stands_for = || match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) if value.is_empty() => in_text,
        Some(ContextValue::String(value)) => value.chars().all(|c| c.is_ascii_uppercase()),
        _ => false,
    };
    let fine = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        ErrorKind::MissingRequiredArgument => in_text,
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => stands_for(),
        _ => false,
    };
    (!fine).then(|| error.to_string())
}

/// The commands in a line for a shell: what follows each word `dualweave`, to the end of its command.
pub fn commands(line: &str) -> Vec<Vec<&str>> {
    let ends = |word: &&str| ["&&", "||", "|", ">", ";"].contains(word);
    let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
    let starts = (0..words.len()).filter(|&at| words[at] == "dualweave");
    starts.map(|at| words[at + 1..].iter().copied().take_while(|word| !ends(word)).collect()).collect()
}

/// Whether a line begins with a command.
pub fn command(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let name = words.next() == Some("dualweave");
    name && words.next().is_some_and(|word| dualweave::cli::command().find_subcommand(word).is_some())
}

/// A command in running text: `dualweave compile JOB`, or `compile --schedule auto`.
pub fn in_text(code: &str) -> Vec<Vec<&str>> {
    let words: Vec<&str> = code.split_whitespace().collect();
    let command = dualweave::cli::command();
    let short = words.first().is_some_and(|first| command.find_subcommand(first).is_some());
    match short && words.iter().any(|word| word.starts_with("--")) {
        true => vec![words],
        // A name alone is no command.
        false => commands(code).into_iter().filter(|words| words.len() > 1).collect(),
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    let understood = |line: &str, in_text| {
        let words: Vec<&str> = line.split_whitespace().collect();
        refused(&words, in_text).is_none()
    };
    for line in ["compile JOB --schedule S", "compile job.ron --pp N", "compile --help", "verify plan.ron"] {
        assert!(understood(line, false), "{line}");
    }
    for line in ["compile --schedule auto", "simulate --report"] {
        assert!(understood(line, true) && !understood(line, false), "{line}");
    }
    for line in ["compile job.ron --shedule auto", "compile job.ron --schedule automatic", "complie job.ron"] {
        assert!(!understood(line, true), "{line}");
    }
    let line = "torchrun --x 2 dualweave run p.ron --check > log && dualweave doctor   # dualweave";
    assert_eq!(commands(line), [vec!["run", "p.ron", "--check"], vec!["doctor"]]);
    assert_eq!(in_text("dualweave overlap"), Vec::<Vec<&str>>::new());
    assert_eq!(in_text("run --check"), [vec!["run", "--check"]]);
}
