//! What a test runs.

use std::path::{Path, PathBuf};

use crate::{Result, guest_path, program_path};

/// How a test knows where in its work a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// It prints `step N` for each step, and takes none beyond the number in the file `GUEST_LIMIT`.
    Steps,
    /// It prints lines at its own pace.
    Lines,
    /// It prints nothing before the end: its processor time tells.
    Cpu,
}

/// What of two runs must be equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The whole output.
    Output,
    /// The lines from the first that begins with `ok`; those before it come in any order.
    FromOk,
}

/// What is written to standard input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Feed {
    /// Standard input is /dev/null.
    #[default]
    Nothing,
    /// A pipe that the test writes to.
    Pipe,
}

/// A program and how to deal with it.
#[derive(Clone, Debug)]
pub struct Program {
    /// For messages and job names.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the environment.
    pub env: Vec<(String, String)>,
    /// Options of `ulpm_launch`.
    pub options: Vec<String>,
    /// How its progress is seen.
    pub pace: Pace,
    /// What is compared.
    pub compare: Compare,
    /// Standard input.
    pub feed: Feed,
    /// Copied into the working directory first.
    pub folder: Option<PathBuf>,
    /// Files in the working directory that must be equal as well.
    pub files: Vec<String>,
    /// Whether it removes or replaces files while it works.
    pub changes_files: bool,
}

impl Program {
    /// A command that paces itself as `pace` says.
    #[must_use]
    pub fn new(name: &str, argv: &[&str], pace: Pace) -> Self {
        Self {
            name: name.into(),
            argv: argv.iter().map(|&argument| argument.into()).collect(),
            env: Vec::new(),
            options: Vec::new(),
            pace,
            compare: Compare::Output,
            feed: Feed::Nothing,
            folder: None,
            files: Vec::new(),
            changes_files: false,
        }
    }

    /// A guest from `guests/`, which takes this many steps. It is compiled when the program starts.
    #[must_use]
    pub fn guest(name: &str, steps: u64) -> Self {
        Self::new(name, &[&format!("guest:{name}"), &steps.to_string()], Pace::Steps)
    }

    /// A script from `programs/`, run by `interpreter`, which takes this many steps.
    #[must_use]
    pub fn script(interpreter: &str, name: &str, steps: u64) -> Self {
        let path = program_path(name);
        Self::new(name, &[interpreter, &path.to_string_lossy(), &steps.to_string()], Pace::Steps)
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.argv.push(argument.into());
        self
    }

    /// Adds to the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Adds an option of `ulpm_launch`.
    #[must_use]
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// Gives it a pipe as standard input.
    #[must_use]
    pub fn fed(mut self) -> Self {
        self.feed = Feed::Pipe;
        self
    }

    /// Compares only from the first line that begins with `ok`.
    #[must_use]
    pub fn from_ok(mut self) -> Self {
        self.compare = Compare::FromOk;
        self
    }

    /// Copies a folder into the working directory first.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Compares a file of the working directory as well.
    #[must_use]
    pub fn file(mut self, name: &str) -> Self {
        self.files.push(name.into());
        self
    }

    /// Says that it removes or replaces files while it works: it is killed within the freeze then, so that
    /// they are for the restart as they were at the checkpoint.
    #[must_use]
    pub fn changes_files(mut self) -> Self {
        self.changes_files = true;
        self
    }

    /// Program and arguments, with guests compiled.
    pub(crate) fn resolved(&self) -> Result<Vec<String>> {
        self.argv
            .iter()
            .map(|argument| match argument.strip_prefix("guest:") {
                Some(name) => Ok(guest_path(name)?.to_string_lossy().into_owned()),
                None => Ok(argument.clone()),
            })
            .collect()
    }

    /// What is compared of a run with this output in this working directory.
    pub(crate) fn result(&self, output: &str, dir: &Path) -> Result<String> {
        let lines = output.lines().filter(|line| !line.starts_with("note "));
        let mut result: String = match self.compare {
            Compare::Output => lines.map(|line| format!("{line}\n")).collect(),
            Compare::FromOk => lines
                .skip_while(|line| !line.starts_with("ok"))
                .map(|line| format!("{line}\n"))
                .collect(),
        };
        for name in &self.files {
            let content =
                std::fs::read(dir.join(name)).map_err(|error| format!("{name}: {error}"))?;
            let sum = content.iter().fold(14_695_981_039_346_656_037_u64, |sum, byte| {
                (sum ^ u64::from(*byte)).wrapping_mul(1_099_511_628_211)
            });
            result += &format!("{name}: {} bytes, {sum:016x}\n", content.len());
        }
        Ok(result)
    }
}
