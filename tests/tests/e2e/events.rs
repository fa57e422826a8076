//! Objects that tell of events.

use ulpm_tests::Program;

use crate::whole_life;

whole_life! {
    eventfd => Program::guest("eventfd", 200);
    epoll => Program::guest("epoll", 200);
}
