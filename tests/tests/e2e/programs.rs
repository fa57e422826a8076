//! Programs that nobody wrote for us.

use ulpm_tests::{Guest, Lab, Pace, Program, Result, ensure, program_path};

use crate::whole_life;

const PYTHON: &str = "/usr/bin/python3";
const JEMALLOC: &str = "libjemalloc.so.2";

fn pipeline() -> Program {
    let path = program_path("pipeline.sh");
    let program =
        Program::new("pipeline", &["bash", &path.to_string_lossy(), "2500000"], Pace::Cpu);
    program.changes_files()
}

/// Told by inotify, if a file grows: the last line is there even where what had just been told was lost.
fn tail() -> Program {
    let path = program_path("growing.sh");
    let program = Program::new("tail", &["bash", &path.to_string_lossy(), "150"], Pace::Lines);
    program.file("log").changes_files()
}

fn make() -> Program {
    let program = Program::new("make", &["make", "-j4"], Pace::Lines).from_ok();
    let program = program.folder(program_path("tally")).changes_files();
    program.file("out.fast").file("tally-fast").file("tally-small")
}

fn awk() -> Program {
    let path = program_path("words.awk");
    Program::new("awk", &["gawk", "-f", &path.to_string_lossy()], Pace::Cpu)
        .env("AWK_LIMIT", "1000000")
}

fn bc() -> Program {
    Program::new("bc", &["bc", "-l", &program_path("digits.bc").to_string_lossy()], Pace::Cpu)
}

fn gcc() -> Program {
    let program =
        Program::new("gcc", &["gcc", "-O3", "-pipe", "-c", "-o", "many.o", "many.c"], Pace::Cpu);
    program.folder(program_path("unit")).file("many.o").changes_files()
}

/// A shell script, which runs other programs.
fn script(name: &str, pace: Pace) -> Program {
    let path = program_path(&format!("{name}.sh"));
    Program::new(name, &["bash", &path.to_string_lossy()], pace).changes_files()
}

/// A transaction in a write-ahead log, whose index is a file that is mapped shared.
fn sqlite_wal() -> Program {
    let program = Program::new("sqlite", &["sqlite3", "wal.db", ".read wal.sql"], Pace::Lines);
    program.folder(program_path("wal")).changes_files()
}

/// makes within makes, which share the tokens of one jobserver.
fn jobserver() -> Program {
    let program = Program::new("jobserver", &["make", "-j4"], Pace::Lines).from_ok();
    program.folder(program_path("jobs")).file("sum").changes_files()
}

whole_life! {
    python_threads => Program::script(PYTHON, "threads.py", 200);
    python_multiprocessing => Program::script(PYTHON, "pool.py", 200);
    numpy_matrix_product => Program::script(PYTHON, "matrix.py", 150);
    perl => Program::script("perl", "steps.pl", 200);
    bash_pipeline => pipeline();
    tail_of_a_growing_file => tail();
    make_j4 => make();
    gcc_itself => gcc();
    make_jobserver => jobserver();
    sqlite_wal_transaction => sqlite_wal();
    tar_and_gzip => script("tar", Pace::Cpu).from_ok();
    gawk => awk();
    bc_digits => bc();
    jemalloc => Program::guest("malloc_storm", 200).env("LD_PRELOAD", JEMALLOC);
}

// Not moved: what git has open when a move is asked for may be gone when the target looks for it, and is refused then.
#[test]
fn git_commits_clones_and_repacks() -> Result {
    Lab::one_host(|lab| ulpm_tests::checkpointed_equals_native(lab, &script("git", Pace::Lines), 5))
}

/// The rows of one part of a transaction.
fn part_of_transaction(part: u64) -> String {
    let mut sql = String::new();
    for row in part * 200..(part + 1) * 200 {
        sql += &format!("insert into numbers values({row}, hex(randomblob(20)), {row} * {row});\n");
    }
    sql + &format!("select 'part {part} ' || count(*) || ' ' || sum(square) from numbers;\n")
}

fn sqlite() -> Program {
    Program::new("sqlite", &["sqlite3", "test.db"], Pace::Lines).fed()
}

const BEGIN: &str =
    "pragma cache_size = 10;\ncreate table numbers(n primary key, text, square);\nbegin;\n";

fn end_transaction(guest: &Guest<'_>) -> Result {
    guest.write("commit;\npragma integrity_check;\nselect 'rows ' || count(*) from numbers;\n")?;
    guest.write("select 'sum ' || sum(square) from numbers;\n")
}

/// The sum of the squares of the first `count` numbers.
fn squares(count: u64) -> u64 {
    (0..count).map(|n| n * n).sum()
}

#[test]
fn sqlite_commits_a_transaction_that_began_five_restarts_ago() -> Result {
    Lab::one_host(|lab| {
        let mut guest = lab.launch(&sqlite())?;
        guest.write(BEGIN)?;
        for part in 0..6 {
            guest.write(&part_of_transaction(part))?;
            // All was read and done when the answer is there, so no file changes until more is written.
            guest.wait_for(&format!(
                "part {part} {} {}",
                (part + 1) * 200,
                squares((part + 1) * 200)
            ))?;
            if part < 5 {
                let checkpoint = lab.checkpoint(&guest)?;
                guest.kill_tree()?;
                guest = lab.restart(&guest, &checkpoint.path)?;
            }
        }
        end_transaction(&guest)?;
        guest.close_stdin();
        let finished = guest.finish()?.expect_code(0)?;
        ensure!(finished.stdout.contains("ok\nrows 1200\n"), "{}", finished.stdout);
        ensure!(
            finished.stdout.contains(&format!("sum {}\n", squares(1200))),
            "{}",
            finished.stdout
        );
        Ok(())
    })
}

#[test]
fn sqlite_rolls_a_transaction_back_after_a_restart() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&sqlite())?;
        guest.write(BEGIN)?;
        guest.write(&part_of_transaction(0))?;
        guest.wait_for("part 0")?;
        let checkpoint = lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        let twin = lab.restart(&guest, &checkpoint.path)?;
        twin.write(
            "rollback;\npragma integrity_check;\nselect 'rows ' || count(*) from numbers;\n",
        )?;
        twin.close_stdin();
        let finished = twin.finish()?.expect_code(0)?;
        ensure!(finished.stdout.contains("ok\nrows 0\n"), "{}", finished.stdout);
        Ok(())
    })
}
