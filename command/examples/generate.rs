//! Writes shell completions and manual pages of all tools to a directory:
//! `cargo run -p ulpm-command --example generate -- DIR`.

use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::Shell;

fn main() -> std::io::Result<()> {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: generate DIR");
        std::process::exit(64);
    };
    let tools = [
        ulpm_command::options::Options::command(),
        ulpm_coordinator::options::Options::command(),
        ulpm_launch::options::Options::command(),
        ulpm_restart::options::Options::command(),
    ];
    for tool in tools {
        generate(&dir, tool)?;
    }
    Ok(())
}

fn generate(dir: &Path, mut tool: Command) -> std::io::Result<()> {
    let name = tool.get_name().to_owned();
    let completions = dir.join("completions");
    let man = dir.join("man/man1");
    std::fs::create_dir_all(&completions)?;
    std::fs::create_dir_all(&man)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut tool, &name, &completions)?;
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(tool).render(&mut page)?;
    std::fs::write(man.join(format!("{name}.1")), page)
}
