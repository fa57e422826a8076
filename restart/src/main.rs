//! `ulpm_restart`: see `ulpm_restart --help`.

use std::process::ExitCode;

use clap::Parser as _;
use ulpm_control::exit;
use ulpm_restart::{options::Options, run, session};

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == session::KEEPER) {
        return session::keep();
    }
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    match run::run(&options) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            ulpm_control::print_error("ulpm_restart", &error);
            ExitCode::from(error.exit_code())
        }
    }
}
