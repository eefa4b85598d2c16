//! The app that is measured: it waits for a part of half a second, listens on port 8080, and tells everybody who connects
//! when that was: nanoseconds since 1970, eight bytes, least first. Without a library, so that it fits into a config file.

#![no_std]
#![no_main]

use core::{
    arch::{asm, global_asm},
    ptr,
};

const PORT: u16 = 8080;
const LONGEST_WAIT_NANOS: u64 = 500_000_000;
const AF_INET: usize = 2;
const SOCK_STREAM: usize = 1;
const CLOCK_REALTIME: usize = 0;
const NANOS: u64 = 1_000_000_000;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const NANOSLEEP: usize = 35;
    pub const SOCKET: usize = 41;
    pub const ACCEPT: usize = 43;
    pub const BIND: usize = 49;
    pub const LISTEN: usize = 50;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const WRITE: usize = 64;
    pub const CLOSE: usize = 57;
    pub const NANOSLEEP: usize = 101;
    pub const SOCKET: usize = 198;
    pub const ACCEPT: usize = 202;
    pub const BIND: usize = 200;
    pub const LISTEN: usize = 201;
    pub const CLOCK_GETTIME: usize = 113;
    pub const EXIT_GROUP: usize = 94;
}

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "and rsp, -16", "call {}", "ud2", sym run);

#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "bl {}", "brk #1", sym run);

/// # Safety
/// The arguments must be what the kernel expects of this system call.
unsafe fn call(number: usize, arguments: [usize; 3]) -> isize {
    let [a, b, c] = arguments;
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel clobbers rcx and r11 only; the arguments are the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b,
            in("rdx") c, lateout("rcx") _, lateout("r11") _);
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the kernel clobbers x0 only; the arguments are the caller's promise.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b,
            in("x2") c);
    }
    result
}

fn now() -> u64 {
    let mut time = [0_u64; 2];
    // SAFETY: `time` is as large as a timespec, and is writable.
    unsafe {
        call(number::CLOCK_GETTIME, [CLOCK_REALTIME, ptr::from_mut(&mut time) as usize, 0]);
    }
    time[0] * NANOS + time[1]
}

extern "C" fn run() -> ! {
    // The clock is as good as dice here: nobody starts at a chosen nanosecond.
    let wait = [0_u64, now() % LONGEST_WAIT_NANOS];
    let mut address = [0_u8; 16];
    address[0] = AF_INET as u8;
    address[2..4].copy_from_slice(&PORT.to_be_bytes());
    // SAFETY: each pointer is to something readable of the size that the call is told or expects.
    unsafe {
        call(number::NANOSLEEP, [ptr::from_ref(&wait) as usize, 0, 0]);
        let socket = call(number::SOCKET, [AF_INET, SOCK_STREAM, 0]) as usize;
        call(number::BIND, [socket, ptr::from_ref(&address) as usize, address.len()]);
        let listens = now();
        if call(number::LISTEN, [socket, 16, 0]) < 0 {
            call(number::EXIT_GROUP, [1, 0, 0]);
        }
        let told = listens.to_le_bytes();
        loop {
            let peer = call(number::ACCEPT, [socket, 0, 0]) as usize;
            call(number::WRITE, [peer, ptr::from_ref(&told) as usize, told.len()]);
            call(number::CLOSE, [peer, 0, 0]);
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
