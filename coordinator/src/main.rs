//! `ulpm_coordinator`: see `ulpm_coordinator --help`.

use std::process::ExitCode;

use clap::Parser;
use ulpm_control::exit;
use ulpm_coordinator::options::Options;
use ulpm_coordinator::run::{self, RunError};

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    match run::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The background half has said why.
            if !matches!(error, RunError::Daemon(_)) {
                ulpm_control::print_error("ulpm_coordinator", &error);
            }
            ExitCode::from(error.exit_code())
        }
    }
}
