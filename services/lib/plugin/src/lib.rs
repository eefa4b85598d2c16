//! What a process beside the manager does alike: it follows the manager's watch over every interruption, and listens on a
//! socket of its own. Functions, not a framework.

mod follow;
mod socket;

pub use follow::{Broken, Fact, chain, follow_sandboxes};
pub use socket::listen;
