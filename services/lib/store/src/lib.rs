//! Records, address leases and the revision, durable and changed in transactions; every change is an event. Decides
//! nothing: what may be admitted and which move is allowed it asks the domain.

mod error;
mod store;
mod stored;
mod watch;

pub use error::{AdmitError, StoreError, UpdateError};
pub use store::{Admitted, Arrival, Lease, LeaseCounts, Store};
pub use watch::{Change, Watch, WatchEnded};
