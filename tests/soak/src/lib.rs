//! What the soaks have in common.

pub mod random;
