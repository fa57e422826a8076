//! `ulpm_command`: see `ulpm_command --help`.

use std::process::ExitCode;

use clap::Parser;
use ulpm_command::{options::Options, run};
use ulpm_control::exit;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    match run::run(&options) {
        Ok(code) => ExitCode::from(code),
        Err(error) if error.is_closed_pipe() => ExitCode::from(exit::IO),
        Err(error) => {
            ulpm_control::print_error("ulpm_command", &error);
            ExitCode::from(error.exit_code())
        }
    }
}
