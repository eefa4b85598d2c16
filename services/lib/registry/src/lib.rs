//! Asking registries by the distribution protocol: which hosts for which image, who is told which credentials, what is tried
//! again. Documents come whole and checked; blobs come as their bytes in order, also when connections break. Where the bytes
//! go is others' business.

mod accounts;
mod authorize;
mod challenge;
mod hosts;
mod http;
mod repository;
mod retry;
mod settings;
mod trouble;

use std::sync::Arc;

use berth_domain::ImageRef;
use berth_platform::{Credentials, ImageError};

use crate::{accounts::Accounts, hosts::endpoints, http::Clients, repository::Endpoint};
pub use crate::{
    accounts::check_credentials_file,
    hosts::check_mirror,
    http::check_ca_file,
    repository::{Document, Giver, Repository},
    settings::{Host, SetUpError, Settings, Terms},
};

/// All registries, as the settings have them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registries {
    settings: Arc<Settings>,
    clients: Arc<Clients>,
}

impl Registries {
    pub fn new(settings: Settings) -> Result<Self, SetUpError> {
        Ok(Self {
            clients: Arc::new(Clients::new(&settings.hosts)?),
            settings: Arc::new(settings),
        })
    }

    /// Where one image comes from, as long as one pull takes. Credentials are for the registry of the image; without them
    /// those of the settings' file are used, which is read each time.
    pub fn repository(
        &self,
        image: &ImageRef,
        credentials: Option<&Credentials>,
    ) -> Result<Repository, ImageError> {
        let accounts = match &self.settings.credentials_file {
            Some(file) => {
                Accounts::read(file).map_err(|source| ImageError::CredentialsUnreadable {
                    file: file.clone(),
                    source: source.into(),
                })?
            }
            None => Accounts::default(),
        };
        let endpoints = endpoints(&self.settings, image.registry(), image.repository());
        let endpoints = endpoints.map_err(|what| ImageError::RegistryProtocol {
            image: image.to_string(),
            what,
        })?;
        let endpoints = endpoints.into_iter().map(|place| {
            let given = if place.is_mirror { None } else { credentials };
            let found = given.or_else(|| accounts.of(&place.account));
            Endpoint::new(place, found.cloned())
        });
        Ok(Repository::new(
            image,
            endpoints.collect(),
            self.clients.clone(),
            self.settings.terms,
        ))
    }
}
