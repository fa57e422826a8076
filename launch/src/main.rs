//! `ulpm_launch`: see `ulpm_launch --help`.

use std::process::ExitCode;

use clap::Parser;
use ulpm_control::exit;
use ulpm_launch::{options::Options, run};

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
        Err(error) => {
            ulpm_control::print_error("ulpm_launch", &error);
            ExitCode::from(error.exit_code())
        }
    }
}
