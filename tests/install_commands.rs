//! What goes into a system beside the binary: `dualweave completions` in a real bash, `dualweave man` through a real formatter.

use std::fs;
use std::process::{Command, Output};

fn dualweave(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dualweave")).args(args).output().expect("the command starts")
}

fn printed(args: &[&str]) -> String {
    let output = dualweave(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Names of all commands, and their long options.
fn commands() -> Vec<(String, Vec<String>)> {
    let mut command = dualweave::cli::command();
    command.build();
    let own = command.get_subcommands().filter(|command| command.get_name() != "help");
    let long = |command: &clap::Command| {
        command.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?))).collect()
    };
    own.map(|command| (command.get_name().to_owned(), long(command))).collect()
}

/// What bash offers for a line that ends with what is to be completed.
fn offered(line: &str) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("dualweave.bash");
    fs::write(&script, printed(&["completions", "bash"])).expect("the script");
    let words: Vec<&str> = line.split(' ').collect();
    let last = words.len() - 1;
    let before = words[last.saturating_sub(1)];
    let ask = format!(
        "source '{}' && complete -p dualweave >&2 && COMP_WORDS=({line}) COMP_CWORD={last} && [ -n '{}' ] || COMP_WORDS+=('')
         _dualweave dualweave '{}' '{before}' && printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        words[last],
        words[last],
    );
    let output = Command::new("bash").args(["--norc", "-c", &ask]).output().expect("bash starts");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_values() {
    let all = offered("dualweave ");
    for (name, options) in commands() {
        assert!(all.contains(&name), "{name} is not in {all:?}");
        let offered = offered(&format!("dualweave {name} --"));
        for option in options {
            assert!(offered.contains(&option), "{name} {option} is not in {offered:?}");
        }
    }
    assert_eq!(offered("dualweave simu"), ["simulate"]);
    assert_eq!(offered("dualweave compile --schedule dual"), ["dualpipe", "dualpipev"]);
}

#[test]
fn every_shell_gets_a_script_with_all_commands() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completions", shell]);
        for (name, _) in commands() {
            assert!(script.contains(&name), "{name} is not in the script for {shell}");
        }
    }
    assert_eq!(dualweave(&["completions", "tcsh"]).status.code(), Some(2));
}

/// A page as a person reads it, without warnings; `None` where there is no formatter.
fn formatted(page: &std::path::Path) -> Option<String> {
    let mut man = Command::new("man");
    man.args(["--warnings=w", "-l"]).env("MANPAGER", "cat").env("MANWIDTH", "100").env("LC_ALL", "C.UTF-8");
    let mut mandoc = Command::new("mandoc");
    mandoc.args(["-T", "utf8", "-W", "error"]);
    let output = [man, mandoc].iter_mut().find_map(|formatter| formatter.arg(page).output().ok())?;
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{}: {complaints}", page.display());
    // Without overstriking, which is how bold is printed.
    let mut text = String::new();
    for c in String::from_utf8(output.stdout).expect("text").chars() {
        match c {
            '\u{8}' => _ = text.pop(),
            _ => text.push(c),
        }
    }
    Some(text)
}

#[test]
fn manual_pages_say_everything() {
    let folder = tempfile::tempdir().expect("a folder");
    let pages = folder.path().join("share/man1");
    let written = dualweave(&["man", "-o", &pages.display().to_string()]);
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let main = fs::read_to_string(pages.join("dualweave.1")).expect("the page of the command");
    assert_eq!(printed(&["man"]), main);

    let commands = commands();
    let mut names: Vec<String> = commands.iter().map(|(name, _)| format!("dualweave-{name}.1")).collect();
    names.push("dualweave.1".to_owned());
    names.sort();
    let entries = fs::read_dir(&pages).expect("the folder").map(|entry| entry.expect("an entry").file_name());
    let mut there: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    there.sort();
    assert_eq!(there, names);

    let Some(text) = formatted(&pages.join("dualweave.1")) else {
        println!("skipped: there is neither man nor mandoc to read the pages with");
        return;
    };
    for (name, options) in commands {
        assert!(text.contains(&format!("dualweave-{name}(1)")), "{name} is not in\n{text}");
        let page = formatted(&pages.join(format!("dualweave-{name}.1"))).expect("as before");
        for option in options {
            assert!(page.contains(&option), "{option} of {name} is not in\n{page}");
        }
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_refused() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let refused = dualweave(&["man", "-o", &file.path().display().to_string()]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("cannot be made"));
}
