//! Servers and their clients that nobody wrote for us.

use ulpm_tests::Program;

use crate::whole_life;

whole_life! {
    python_manager => Program::script("/usr/bin/python3", "unix_manager.py", 200);
}
