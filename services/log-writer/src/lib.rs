//! The program that containerd's shim starts per container to keep its output: `program/` is its source, which `build.rs`
//! compiles. Who puts it where shims find it is the manager's business.

/// The program, for this machine.
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/log-writer"));
