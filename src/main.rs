//! The `dualweave` command. Everything is in the library; see `dualweave::cli`.

fn main() -> std::process::ExitCode {
    dualweave::cli::main()
}
