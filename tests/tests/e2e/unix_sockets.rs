//! Unix sockets.

use ulpm_tests::Program;

use crate::whole_life;

whole_life! {
    streams => Program::guest("unix_streams", 200);
    messages => Program::guest("unix_messages", 200);
    rights => Program::guest("unix_rights", 200);
}
