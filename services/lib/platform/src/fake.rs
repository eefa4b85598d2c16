//! A node in memory that refuses what a real one refuses.
