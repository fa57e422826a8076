//! Files and pipes.

use ulpm_tests::Program;

use crate::whole_life;

whole_life! {
    files => Program::guest("files", 200);
    file_without_a_name => Program::guest("files", 200).arg("nameless");
    pipes => Program::guest("pipes", 200);
}
