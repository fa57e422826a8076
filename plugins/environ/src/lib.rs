//! Reads chosen environment variables anew when the job is restarted or has moved.
//!
//! `ULPM_ENVIRON=DISPLAY,SSH_AUTH_SOCK ulpm_launch --plugin environ PROGRAM`
//!
//! Each variable that is named gets the value that it has for `ulpm_restart`; one that is not set there stays as it was.
//! It happens while every thread of the program stands still, so that none sees half of it.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int};

use ulpm_plugin::{Event, Services, bit, event};

/// Which variables.
const ENV_NAMES: &str = "ULPM_ENVIRON";
/// Bytes of their names together, with a NUL behind each, and of one value with its NUL.
const NAMES: usize = 4096;
const VALUE: usize = 128 * 1024;

struct Memory<const N: usize>(UnsafeCell<[u8; N]>);
// SAFETY: the names are written before the program begins; all else is the manager's, which is one thread.
unsafe impl<const N: usize> Sync for Memory<N> {}

static CHOSEN: Memory<NAMES> = Memory(UnsafeCell::new([0; NAMES]));
static FOUND: Memory<VALUE> = Memory(UnsafeCell::new([0; VALUE]));

ulpm_plugin::plugin!(
    c"environ",
    c"1.0",
    bit(event::INIT) | bit(event::RESTORED),
    |event: &Event, services: &Services| if event.number == event::INIT {
        choose(services)
    } else {
        read_anew(services)
    }
);

fn choose(services: &Services) -> c_int {
    let names = std::env::var(ENV_NAMES).unwrap_or_default();
    // SAFETY: see `Memory`.
    let place = unsafe { &mut *CHOSEN.0.get() };
    if names.len() >= NAMES {
        services.log(c"the names in ULPM_ENVIRON are too long: no variable is read anew");
        return 1;
    }
    for (place, byte) in place.iter_mut().zip(names.bytes()) {
        *place = if byte == b',' { 0 } else { byte };
    }
    0
}

/// Without libc: every other thread stands still, maybe with one of its locks.
fn read_anew(services: &Services) -> c_int {
    let (Some(read), Some(set)) = (services.restart_variable, services.set_variable) else {
        return 1;
    };
    // SAFETY: see `Memory`.
    let mut rest: &[u8] = unsafe { &*CHOSEN.0.get() };
    let value: *mut c_char = FOUND.0.get().cast();
    let mut result = 0;
    while let Ok(name) = CStr::from_bytes_until_nul(rest) {
        rest = &rest[name.count_bytes() + 1..];
        if name.is_empty() {
            continue;
        }
        // SAFETY: strings, and memory of that length that nobody else uses.
        unsafe {
            let len = read(services, name.as_ptr(), value, VALUE as u64);
            // One that is cut short is left as it was.
            if (0..VALUE as i64).contains(&len) {
                result |= set(services, name.as_ptr(), value);
            }
        }
    }
    result
}
