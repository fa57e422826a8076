//! Error numbers.

/// An error number as the kernel returns it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident = $number:literal, $words:literal;)*) => {
        impl Errno {
            $(#[doc = $words] pub const $name: Self = Self($number);)*

            /// What the number means, in a few words.
            #[must_use]
            pub const fn words(self) -> &'static str {
                match self.0 {
                    $($number => $words,)*
                    _ => "unknown error",
                }
            }
        }
    };
}

// The numbers are those of include/uapi/asm-generic/errno-base.h and errno.h.
errnos! {
    PERM = 1, "operation not permitted";
    NOENT = 2, "no such file or directory";
    SRCH = 3, "no such process";
    INTR = 4, "interrupted";
    IO = 5, "input/output error";
    NXIO = 6, "no such device or address";
    BADF = 9, "bad file descriptor";
    CHILD = 10, "no child processes";
    AGAIN = 11, "resource temporarily unavailable";
    NOMEM = 12, "cannot allocate memory";
    ACCES = 13, "permission denied";
    FAULT = 14, "bad address";
    BUSY = 16, "device or resource busy";
    EXIST = 17, "file exists";
    NODEV = 19, "no such device";
    NOTDIR = 20, "not a directory";
    INVAL = 22, "invalid argument";
    NFILE = 23, "too many open files in the system";
    MFILE = 24, "too many open files";
    NOTTY = 25, "not a terminal";
    FBIG = 27, "file too large";
    NOSPC = 28, "no space left on device";
    SPIPE = 29, "illegal seek";
    ROFS = 30, "read-only file system";
    PIPE = 32, "broken pipe";
    NAMETOOLONG = 36, "file name too long";
    RANGE = 34, "result out of range";
    NOSYS = 38, "function not implemented";
    NOMSG = 42, "no message of the wanted type";
    IDRM = 43, "identifier removed";
    NODATA = 61, "no data available";
    NOTSOCK = 88, "not a socket";
    NOPROTOOPT = 92, "protocol not available";
    OPNOTSUPP = 95, "operation not supported";
    ADDRINUSE = 98, "address already in use";
    ADDRNOTAVAIL = 99, "cannot assign the address that was asked for";
    CONNRESET = 104, "connection reset by peer";
    NOTCONN = 107, "not connected";
    TIMEDOUT = 110, "timed out";
    INPROGRESS = 115, "in progress";
    CONNREFUSED = 111, "connection refused";
    DQUOT = 122, "disk quota exceeded";
}

impl Errno {
    /// The error with this number.
    #[must_use]
    pub const fn from_raw(raw: i32) -> Self {
        Self(raw)
    }

    /// The number.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// Splits what a system call returned: the last page of addresses holds errors.
    ///
    /// # Errors
    ///
    /// The error, if there was one.
    pub const fn check(returned: usize) -> Result<usize, Self> {
        let signed = returned.cast_signed();
        if signed < 0 && signed > -4096 {
            #[expect(clippy::cast_possible_truncation, reason = "it is between 1 and 4095")]
            return Err(Self(-signed as i32));
        }
        Ok(returned)
    }
}

impl core::fmt::Debug for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} (errno {})", self.words(), self.0)
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_page_is_an_error() {
        assert_eq!(Errno::check(0), Ok(0));
        assert_eq!(Errno::check(usize::MAX), Err(Errno::PERM));
        assert_eq!(Errno::check(usize::MAX - 4094), Err(Errno(4095)));
        assert_eq!(Errno::check(usize::MAX - 4095), Ok(usize::MAX - 4095));
    }
}
