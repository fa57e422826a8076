//! The terminal that we have been given: it becomes as the job's was, and in the end what it was.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use ulpm_image::meta::Terminal;
use ulpm_sys::pty::{self, Modes};

use crate::image_file::ImageFile;

/// How long a program may take to see that the window has changed.
const LOOK: Duration = Duration::from_millis(200);

/// Our controlling terminal, of which our group was in the foreground.
#[derive(Debug)]
pub struct Given {
    tty: File,
    /// As it was.
    modes: Modes,
}

impl Given {
    /// The terminal, if there is one, and we are in its foreground.
    #[must_use]
    pub fn find() -> Option<Self> {
        let tty = File::options().read(true).write(true).open("/dev/tty").ok()?;
        let modes = pty::modes(tty.as_raw_fd()).ok()?;
        let own = ulpm_sys::getpgid(0);
        (pty::foreground(tty.as_raw_fd()) == own).then_some(Self { tty, modes })
    }

    /// The modes that it had before.
    #[must_use]
    pub fn modes(&self) -> Modes {
        self.modes
    }

    /// Sets the modes that a program of the job had set. SIGTTOU is blocked, here and below.
    pub fn take_over(&self, saved: &Terminal) {
        // A terminal that refuses is as good as none.
        let _ = pty::set_modes(self.tty.as_raw_fd(), &saved.modes);
    }

    /// Has programs draw the screen again, which is another one now.
    ///
    /// Those in the foreground are told that the window has changed. Where it has not, it does for a moment: some
    /// look whether it really has.
    pub fn redraw(&self, saved: &Terminal) {
        let tty = self.tty.as_raw_fd();
        let Ok(size) = pty::size(tty) else { return };
        let [rows, columns, ..] = size;
        if [rows, columns].map(u32::from) != [saved.size[0], saved.size[1]] {
            if let Ok(group @ 1..) = pty::foreground(tty) {
                let _ = ulpm_sys::kill(-group, libc::SIGWINCH);
            }
        } else if saved.modes.by_key() && rows > 1 {
            let smaller = [rows - 1, columns, size[2], size[3]];
            let _ = pty::set_size(tty, smaller);
            std::thread::sleep(LOOK);
            // Somebody may have given it another one meanwhile.
            if pty::size(tty) == Ok(smaller) {
                let _ = pty::set_size(tty, size);
            }
        }
    }

    /// Sets the modes that it had before, and puts our group in the foreground again.
    pub fn put_back(&self) {
        let tty = self.tty.as_raw_fd();
        if let Ok(own) = ulpm_sys::getpgid(0) {
            let _ = pty::set_foreground(tty, own);
        }
        let _ = pty::set_modes(tty, &self.modes);
    }
}

/// What is known of the terminal from which the job was launched, if the job was in its foreground.
#[must_use]
pub fn launchers(images: &[ImageFile]) -> Option<&Terminal> {
    let own = |index: i32| {
        let mut masters = images.iter().flat_map(|image| &image.meta.masters);
        masters.any(|master| i32::try_from(master.index) == Ok(index))
    };
    images
        .iter()
        .filter(|image| image.meta.process.sid_outside && image.meta.process.foreground)
        .flat_map(|image| &image.meta.terminals)
        .find(|terminal| terminal.controlling && !terminal.hung_up && !own(terminal.index))
}
