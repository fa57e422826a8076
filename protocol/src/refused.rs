//! Open files that cannot be saved, by the names that the kernel gives them below /proc/PID/fd.
//!
//! The capture refuses them, and the check before a move says so before anything stands still.

/// Devices whose state is in the open file, so that it would be lost if the file were opened again.
const DEVICES: &[(&[u8], &str)] = &[
    (b"/dev/kvm", "is the virtual machine monitor of the kernel (KVM)"),
    (b"/dev/nvidia", "is a graphics processor (NVIDIA)"),
    (b"/dev/kfd", "is a graphics processor (AMD)"),
    (b"/dev/dri/", "is a graphics processor (DRM)"),
    (b"/dev/vfio/", "is a device of its own (VFIO)"),
    (b"/dev/infiniband/", "is a network adapter (RDMA)"),
    (b"/dev/fuse", "is a file system of its own (FUSE)"),
    (b"/dev/net/tun", "is a network device (tun, tap)"),
    (b"/dev/vhost-", "is a device of a virtual machine (vhost)"),
    (b"/dev/uinput", "is an input device (uinput)"),
    (b"/dev/input/", "is an input device"),
    (b"/dev/snd/", "is a sound device"),
    (b"/dev/video", "is a video device"),
    (b"/dev/userfaultfd", "handles page faults (userfaultfd)"),
];

/// What a device is whose open file cannot be saved.
#[must_use]
pub fn device(path: &[u8]) -> Option<&'static str> {
    DEVICES.iter().find(|(device, _)| path.starts_with(device)).map(|(_, why)| *why)
}

/// What an object without a file is that cannot be saved. `name` is what the kernel shows behind `anon_inode:`.
#[must_use]
pub fn anonymous(name: &[u8]) -> Option<&'static str> {
    let starts = |beginning: &[u8]| name.starts_with(beginning);
    Some(match name {
        b"[eventfd]" | b"[timerfd]" | b"[signalfd]" | b"[eventpoll]" | b"inotify" | b"[pidfd]" => {
            return None;
        }
        b"[fanotify]" => "watches file systems (fanotify)",
        b"[userfaultfd]" => "handles page faults (userfaultfd)",
        b"[perf_event]" => "counts events of the processor (perf_event_open)",
        b"[io_uring]" => "is an io_uring",
        _ if starts(b"bpf") || starts(b"[bpf") => "is an object of bpf",
        _ if starts(b"kvm") || starts(b"[kvm") => "is a virtual machine (KVM)",
        _ if starts(b"seccomp") || starts(b"[seccomp") => "supervises system calls (seccomp)",
        b"[landlock-ruleset]" | b"landlock-ruleset" => "is a set of rules of landlock",
        b"[fscontext]" => "is a file system to be mounted (fsopen)",
        b"mount_namespace" => "is a namespace",
        b"sync_file" | b"dmabuf" => "is memory or a fence of a graphics device",
        _ => "is an object of the kernel",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_saved_is_not_among_them() {
        assert_eq!(anonymous(b"[eventfd]"), None);
        assert_eq!(anonymous(b"[io_uring]"), Some("is an io_uring"));
        assert_eq!(anonymous(b"bpf-map"), Some("is an object of bpf"));
        assert_eq!(device(b"/dev/null"), None);
        assert_eq!(device(b"/dev/dri/card0"), Some("is a graphics processor (DRM)"));
    }
}
