//! The system calls that the standard library does not have. All `unsafe` for them is here.

use std::{
    ffi::{c_int, c_long, c_short, c_ulong, c_void},
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr::NonNull,
    time::Duration,
};

const PROT_READ_WRITE: c_int = 1 | 2;
const MAP_SHARED_ANONYMOUS: c_int = 0x01 | 0x20;
const SIGTERM: c_int = 15;
const SIG_BLOCK: c_int = 0;
const SFD_CLOEXEC_NONBLOCK: c_int = 0o2_000_000 | 0o4_000;
const POLLIN: c_short = 1;
const PR_SET_NAME: c_int = 15;
const WNOHANG: c_int = 1;
const FIONREAD: c_ulong = 0x541b;

/// As large as the C library's, which the kernel reads the first eight bytes of.
type SignalSet = [u64; 16];

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: c_short,
    revents: c_short,
}

unsafe extern "C" {
    fn mmap(
        at: *mut c_void,
        len: usize,
        prot: c_int,
        flags: c_int,
        fd: c_int,
        off: i64,
    ) -> *mut c_void;
    fn fork() -> c_int;
    fn poll(fds: *mut PollFd, count: u64, timeout_ms: c_int) -> c_int;
    fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn signalfd(fd: c_int, set: *const SignalSet, flags: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn prctl(option: c_int, argument: *const u8, ...) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn read(fd: c_int, buffer: *mut c_void, count: usize) -> c_long;
}

/// Memory of zeros that children share.
pub(crate) fn shared_memory(length: usize) -> io::Result<NonNull<c_void>> {
    let flags = MAP_SHARED_ANONYMOUS;
    // SAFETY: a new mapping, wherever the kernel likes.
    let at = unsafe { mmap(std::ptr::null_mut(), length, PROT_READ_WRITE, flags, -1, 0) };
    if at as isize == -1 {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(at).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

pub(crate) enum Forked {
    Child,
    Parent(i32),
}

pub(crate) fn fork_process() -> io::Result<Forked> {
    // SAFETY: this process has one thread, so the child has all that it had.
    match unsafe { fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

/// From here on, SIGTERM is only to be read from what is returned.
pub(crate) fn told_to_end() -> io::Result<OwnedFd> {
    let mut set: SignalSet = [0; 16];
    set[0] = 1 << (SIGTERM - 1);
    // SAFETY: the set is readable and as large as the library expects; null asks for nothing.
    let fd = unsafe {
        if sigprocmask(SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        signalfd(-1, &set, SFD_CLOEXEC_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Which of the descriptors can be read, or are at their end. `None` waits as long as it takes.
pub(crate) fn readable<const N: usize>(
    of: [Option<BorrowedFd<'_>>; N],
    timeout: Option<Duration>,
) -> [bool; N] {
    let mut polled = of.map(|it| PollFd {
        fd: it.map_or(-1, |it| it.as_raw_fd()),
        events: POLLIN,
        revents: 0,
    });
    // Rounded up, or the last millisecond would be waited for by running in circles.
    let timeout = timeout.map_or(-1, |it| it.as_micros().div_ceil(1000).min(60_000) as c_int);
    // SAFETY: an array of `N`, which the kernel writes `revents` of. A failure leaves them zero.
    unsafe { poll(polled.as_mut_ptr(), N as u64, timeout) };
    polled.map(|it| it.revents != 0)
}

/// How many bytes a pipe holds.
pub(crate) fn held_by(pipe: BorrowedFd<'_>) -> usize {
    let mut length: c_int = 0;
    // SAFETY: the kernel writes one number.
    unsafe { ioctl(pipe.as_raw_fd(), FIONREAD, &raw mut length) };
    usize::try_from(length).unwrap_or_default()
}

/// Reads into `room`: how many bytes, 0 at the end.
pub(crate) fn read_into(from: BorrowedFd<'_>, room: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most the length of the slice.
    let length = unsafe { read(from.as_raw_fd(), room.as_mut_ptr().cast(), room.len()) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

/// Takes leave of a child that has ended: false as long as it has not.
pub(crate) fn bury(pid: i32) -> bool {
    // SAFETY: null asks for no status.
    unsafe { waitpid(pid, std::ptr::null_mut(), WNOHANG) != 0 }
}

/// How the process is called in lists; 15 bytes count.
pub(crate) fn call_process(name: &'static std::ffi::CStr) {
    // SAFETY: a text that ends with a zero, which the kernel copies.
    unsafe { prctl(PR_SET_NAME, name.as_ptr().cast()) };
}

/// Takes over descriptors that the shim has opened.
pub(crate) fn handed_over<const N: usize>(numbers: [i32; N]) -> [OwnedFd; N] {
    // SAFETY: the shim hands these over, and nothing else in this process owns them.
    numbers.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}
