//! The log of a container on disk. It has one writer, which may die at any byte, and any number of readers.
//! `format.rs`, `lines.rs` and `segments.rs` use the standard library only: the log-writer is compiled from them without Cargo.

pub mod cursor;
pub mod format;
pub mod lines;
pub mod merge;
pub mod reader;
mod segment;
pub mod segments;
pub mod tail;
pub mod trace_id;
#[cfg(test)]
mod written;
