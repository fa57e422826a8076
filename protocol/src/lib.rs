//! What a manager thread and its coordinator share.
//!
//! [`manager`] holds the messages that travel over the coordinator's unix socket, and [`table`] the
//! job table, a file that every member of a job has mapped; [`restart`] what a rebuilt process is told. None
//! needs `std` nor an allocator, for the manager thread lives inside somebody else's process. [`handover`] is what
//! two coordinators decide by, and [`refused`] names what cannot be saved.

#![cfg_attr(not(test), no_std)]

pub mod handover;
pub mod manager;
pub mod refused;
pub mod restart;
pub mod table;
