//! The log of a container on disk. It has one writer, which may die at any byte, and any number of readers.

pub mod cursor;
pub mod format;
pub mod merge;
pub mod reader;
mod segment;
pub mod tail;
pub mod trace_id;
#[cfg(test)]
mod written;
