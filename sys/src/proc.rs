//! Parsers for /proc, from proc_pid_maps(5), proc_pid_smaps(5), proc_pid_stat(5), proc_pid_status(5)
//! and proc_pid_fdinfo(5). They borrow from the text and never fail loudly: a line that is not what
//! the manual says is `None`.

/// One line of /proc/PID/maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapsLine<'a> {
    /// First address.
    pub start: usize,
    /// Address behind the last.
    pub end: usize,
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub exec: bool,
    /// Shared, not private.
    pub shared: bool,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device of the file, as stat(2) gives it.
    pub dev: u64,
    /// Inode of the file; 0 for none.
    pub inode: u64,
    /// Path or `[name]`; newlines in it are escaped.
    pub name: &'a [u8],
}

impl<'a> MapsLine<'a> {
    /// Parses a line; `None` if it is not one, as the attribute lines of smaps are not.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut rest = line;
        let start = hex(take_until(&mut rest, b'-')?)?;
        let end = hex(take_until(&mut rest, b' ')?)?;
        let perms = take_until(&mut rest, b' ')?;
        let offset = hex(take_until(&mut rest, b' ')?)?;
        let major = hex(take_until(&mut rest, b':')?)?;
        let minor = hex(take_until(&mut rest, b' ')?)?;
        let inode = match take_until(&mut rest, b' ') {
            Some(field) => decimal(field)?,
            None => decimal(core::mem::take(&mut rest))?,
        };
        let &[r, w, x, s] = perms else { return None };
        Some(Self {
            start: usize::try_from(start).ok()?,
            end: usize::try_from(end).ok()?,
            read: r == b'r',
            write: w == b'w',
            exec: x == b'x',
            shared: s == b's',
            offset,
            dev: make_dev(major, minor),
            inode,
            name: rest.trim_ascii_start(),
        })
    }
}

/// Device number as stat(2) gives it, from its two parts (glibc's gnu_dev_makedev).
#[must_use]
pub const fn make_dev(major: u64, minor: u64) -> u64 {
    ((major & 0xfff) << 8) | ((major & !0xfff) << 32) | (minor & 0xff) | ((minor & !0xff) << 12)
}

/// What the `VmFlags:` line of smaps tells beyond the protection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named for the madvise(2) and mlock(2) flags they stem from")]
pub struct VmFlags {
    pub grows_down: bool,
    pub dont_fork: bool,
    pub wipe_on_fork: bool,
    pub huge_page: bool,
    pub no_huge_page: bool,
    pub locked: bool,
    pub no_reserve: bool,
    pub dont_dump: bool,
    pub hugetlb: bool,
    pub mergeable: bool,
    pub io: bool,
    pub droppable: bool,
    /// It may be made writable.
    pub may_write: bool,
    /// Userfaultfd is watching it for someone.
    pub uffd: bool,
}

impl VmFlags {
    /// Parses a line; `None` if it is another.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let codes = line.strip_prefix(b"VmFlags:")?;
        let mut flags = Self::default();
        for code in codes.split(|&byte| byte == b' ') {
            match code {
                b"gd" => flags.grows_down = true,
                b"dc" => flags.dont_fork = true,
                b"wf" => flags.wipe_on_fork = true,
                b"hg" => flags.huge_page = true,
                b"nh" => flags.no_huge_page = true,
                b"lo" => flags.locked = true,
                b"nr" => flags.no_reserve = true,
                b"dd" => flags.dont_dump = true,
                b"ht" => flags.hugetlb = true,
                b"mg" => flags.mergeable = true,
                b"io" | b"pf" => flags.io = true,
                b"dp" => flags.droppable = true,
                b"mw" => flags.may_write = true,
                b"um" | b"uw" | b"ui" => flags.uffd = true,
                _ => {}
            }
        }
        Some(flags)
    }
}

/// Fields of /proc/PID/stat, by the numbers that the manual gives them.
#[derive(Clone, Copy, Debug)]
pub struct Stat<'a> {
    /// Name in parentheses, which may itself hold anything.
    pub comm: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Stat<'a> {
    /// Splits the line.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let open = line.iter().position(|&byte| byte == b'(')?;
        let close = line.iter().rposition(|&byte| byte == b')')?;
        Some(Self {
            comm: line.get(open + 1..close)?,
            rest: line.get(close + 2..)?.trim_ascii_end(),
        })
    }

    /// Field `number` (3 is the state), as text.
    #[must_use]
    pub fn field(&self, number: usize) -> Option<&'a [u8]> {
        self.rest.split(|&byte| byte == b' ').nth(number.checked_sub(3)?)
    }

    /// Field `number` as a number.
    #[must_use]
    pub fn number(&self, number: usize) -> Option<u64> {
        decimal(self.field(number)?)
    }
}

/// The value of `name` (with its colon) in a file of `name: value` lines, without blanks around it.
#[must_use]
pub fn value<'a>(text: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    text.split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(name))
        .map(<[u8]>::trim_ascii)
}

/// A hexadecimal number, with or without 0x.
#[must_use]
pub fn hex(digits: &[u8]) -> Option<u64> {
    radix(digits.strip_prefix(b"0x").unwrap_or(digits), 16)
}

/// A decimal number.
#[must_use]
pub fn decimal(digits: &[u8]) -> Option<u64> {
    radix(digits, 10)
}

/// An octal number.
#[must_use]
pub fn octal(digits: &[u8]) -> Option<u64> {
    radix(digits, 8)
}

fn radix(digits: &[u8], radix: u64) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| {
        let digit = u64::from(char::from(digit).to_digit(u32::try_from(radix).ok()?)?);
        value.checked_mul(radix)?.checked_add(digit)
    })
}

fn take_until<'a>(rest: &mut &'a [u8], delimiter: u8) -> Option<&'a [u8]> {
    let at = rest.iter().position(|&byte| byte == delimiter)?;
    let (field, tail) = rest.split_at(at);
    *rest = &tail[1..];
    Some(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lines_with_and_without_a_name() {
        let line = b"7ffe8-7fff0 rw-p 00000000 00:00 0                          [stack]";
        let parsed = MapsLine::parse(line).unwrap();
        assert_eq!((parsed.start, parsed.end, parsed.name), (0x7ffe8, 0x7fff0, &b"[stack]"[..]));
        let line = b"00400000-00452000 r-xs 00001000 fe:01 173521 /usr/bin/a b";
        let parsed = MapsLine::parse(line).unwrap();
        assert!(parsed.read && !parsed.write && parsed.exec && parsed.shared);
        assert_eq!(
            (parsed.inode, parsed.offset, parsed.name),
            (173_521, 4096, &b"/usr/bin/a b"[..])
        );
        assert_eq!(parsed.dev, 0xfe01);
        assert!(MapsLine::parse(b"1000-2000 ---p 00000000 00:00 0").is_some());
        assert_eq!(MapsLine::parse(b"VmFlags: rd wr mr mw me ac sd"), None);
        assert_eq!(MapsLine::parse(b""), None);
    }

    #[test]
    fn a_comm_with_parentheses_does_not_shift_the_fields() {
        let stat = Stat::parse(b"12 (a) S) Z 1 2 3\n").unwrap();
        assert_eq!(stat.comm, b"a) S");
        assert_eq!((stat.field(3), stat.number(4)), (Some(&b"Z"[..]), Some(1)));
        assert_eq!(stat.number(6), Some(3));
        assert_eq!(stat.number(7), None);
    }

    #[test]
    fn flags_and_values() {
        let flags = VmFlags::parse(b"VmFlags: rd wr mr gd hg dc").unwrap();
        assert!(flags.grows_down && flags.huge_page && flags.dont_fork && !flags.locked);
        let status = b"Name:\ta\nUmask:\t0022\nSigBlk:\t0000000000000800\n";
        assert_eq!(value(status, b"Umask:").and_then(octal), Some(0o22));
        assert_eq!(value(status, b"SigBlk:").and_then(hex), Some(1 << 11));
        assert_eq!(decimal(b"18446744073709551616"), None);
    }
}
