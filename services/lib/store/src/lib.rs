//! Records, address leases, the catalog and the revision, durable and changed in transactions; every change is an event. Decides
//! nothing: what may be admitted and which move is allowed it asks the domain.

mod addresses;
mod database;
mod error;
mod migrations;
mod node_ports;
mod offline;
mod reserve;
mod rows;
mod store;
mod stored;
mod watch;

pub use error::{
    AdmitError, CatalogError, PinError, ReleaseError, ReserveError, StoreError, Unreadable,
    UnreserveError, UpdateError,
};
pub use offline::{Checked, ExportError, Exported, ImportError, Imported, check, export, import};
pub use rows::Lease;
pub use store::{
    Admitted, Arrival, LeaseCounts, Store,
    catalog::{EntryPage, Placement},
    collections::{CollectionView, Reference},
    leases::{LeaseState, LeaseView},
    subnets::SubnetView,
};
pub use watch::{Change, Watch, WatchEnded};
