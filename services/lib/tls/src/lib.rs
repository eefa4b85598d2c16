//! TCP on which both sides show a certificate: files that are read again when they change, bounds for who is not known yet and
//! for who is, and the way from a certificate to a role. What is called is others' business.

mod activity;
mod certificate;
mod doors;
mod files;
mod serve;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

pub use self::{
    files::{Held, Keeper},
    serve::serve,
};

/// Files in PEM, which may be replaced at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The server's certificate, with those between it and its CA behind it.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Who may have signed the certificates of callers.
    pub client_ca: PathBuf,
}

/// What a port bears.
#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: SocketAddr,
    /// Part of the names by which a certificate says its roles.
    pub trust_domain: String,
    /// From the first byte to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Unfinished ones at a time; the oldest makes room for the next.
    pub handshakes_max: usize,
    /// Finished ones at a time.
    pub connections_max: usize,
    /// Of those, by one certificate.
    pub per_certificate_max: usize,
    /// How long a connection may be without a call.
    pub idle_timeout: Duration,
}
