//! What every node must do, asked of the fake and of the real one.
