//! The log of a container on disk. It has one writer, which may die at any byte, and any number of readers.
//! `format.rs`, `lines.rs` and `segments.rs` use the standard library only: the log-writer is compiled from them without Cargo.

pub mod format;
pub mod lines;
pub mod segments;
