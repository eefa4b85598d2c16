//! The seams between what Berth decides and the node that it runs on: containers, images, network.

#[cfg(feature = "fake")]
pub mod contract;
pub mod credentials;
pub mod exec;
#[cfg(feature = "fake")]
pub mod fake;
pub mod images;
pub mod network;
pub mod runtime;

pub use credentials::Credentials;
pub use exec::{
    EXEC_CHUNK_BYTES, EXEC_WINDOW_BYTES, ExecCommand, ExecError, ExecExit, ExecInput, ExecIo,
    ExecOutput, NotStarted, TerminalSize,
};
pub use images::{ArchiveLimits, ImageError, ImageInfo, Images, LayerProgress, Progress};
pub use network::{
    ConnectError, Denied, FencingSeen, ForeignAccept, ListeningSocket, Network, NetworkError,
    NetworkObject, NetworkObjectKind, NetworkSeen, ProbeError,
};
pub use runtime::{
    ContainerReading, ContainerRoot, EndSignal, Runtime, RuntimeError, RuntimeFacts, RuntimeObject,
    RuntimeObjectKind, RuntimeSeen, SocketHolder,
};

/// The cause of an error, whatever the layer below made of it.
pub type Source = Box<dyn std::error::Error + Send + Sync>;
