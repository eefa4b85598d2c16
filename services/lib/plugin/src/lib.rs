//! What a process beside the manager does alike: it follows the manager's watch over every interruption, says by
//! heartbeats how it is, and answers on a socket of its own. Functions, not a framework.

mod follow;
mod heartbeat;
mod leases;
mod manager;
mod serve;
mod socket;

pub use follow::{Broken, Fact, chain, follow_sandboxes};
pub use heartbeat::{Beat, LastRun, Plugin, farewell, heartbeat};
pub use leases::end_former_leases;
pub use manager::{ManagerError, ManagerTls, is_away};
pub use serve::{ServeError, serve};
pub use socket::{ListenError, Seat, take_seat};
