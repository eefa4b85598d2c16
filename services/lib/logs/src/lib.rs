//! The log of a container on disk. It has one writer, which may die at any byte, and any number of readers.

pub mod format;
