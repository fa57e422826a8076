//! The definitions that ours stand in front of.
//!
//! `dlsym` takes the dynamic linker's lock, so it is called when a wrapper first needs a function,
//! which is a program's own call at a place where it could have called `dlsym` itself, and never in
//! the frozen world.

use core::ffi::{CStr, c_char, c_void};
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

#[link(name = "c")]
unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// glibc's `RTLD_NEXT`.
const RTLD_NEXT: *mut c_void = ptr::without_provenance_mut(usize::MAX);

/// A function that is looked up when it is first called; `F` is its type.
pub(crate) struct Next<F> {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
    function: PhantomData<F>,
}

impl<F: Copy> Next<F> {
    /// # Safety
    ///
    /// `F` is a function pointer type, and that of the symbol `name`.
    pub(crate) const unsafe fn new(name: &'static CStr) -> Self {
        assert!(size_of::<F>() == size_of::<*mut c_void>());
        Self { name, found: AtomicPtr::new(ptr::null_mut()), function: PhantomData }
    }

    /// The function; ends the process if there is none, for libc without it is not glibc.
    pub(crate) fn get(&self) -> F {
        let mut found = self.found.load(Ordering::Acquire);
        if found.is_null() {
            // SAFETY: the name is NUL-terminated.
            found = unsafe { dlsym(RTLD_NEXT, self.name.as_ptr()) };
            if found.is_null() {
                crate::die("libc lacks a function that it should have");
            }
            self.found.store(found, Ordering::Release);
        }
        // SAFETY: `new` was told that this is the symbol's type; a pointer that is not null fits it.
        unsafe { core::mem::transmute_copy::<*mut c_void, F>(&found) }
    }
}

/// Finds a symbol anywhere in the program; null if there is none.
pub(crate) fn find(name: &CStr) -> *mut c_void {
    // SAFETY: the name is NUL-terminated; null is RTLD_DEFAULT.
    unsafe { dlsym(ptr::null_mut(), name.as_ptr()) }
}

/// Declares the next definition of a libc function as a static.
macro_rules! next {
    ($($name:ident = $symbol:literal: $type:ty;)*) => {
        $(
            // SAFETY: the type is what the manual page of the symbol gives.
            static $name: $crate::next::Next<$type> = unsafe { $crate::next::Next::new($symbol) };
        )*
    };
}
pub(crate) use next;
