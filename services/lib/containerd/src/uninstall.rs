//! What a manager without sandboxes has left on containerd and among the cgroups, and that is of use to nobody else.

use std::{path::Path, time::Duration};

use berth_cgroup::{CgroupError, Hierarchy, Systemd, SystemdError};
use berth_domain::{Names, cgroups, names};
use berth_platform::RuntimeError;
use containerd_client::services::v1::{
    DeleteImageRequest, DeleteNamespaceRequest, GetNamespaceRequest, ListImagesRequest,
    ListRequest as ListLeasesRequest,
};

use crate::{
    client::{CallError, Client, found},
    content::delete_lease,
    settings::SetUpError,
};

#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    #[error("containerd's address or namespace")]
    SetUp(#[from] SetUpError),
    #[error("containerd")]
    Runtime(#[from] RuntimeError),
    #[error("the cgroups")]
    Cgroups(#[from] CgroupError),
    #[error("the cgroups")]
    Systemd(#[from] SystemdError),
}

impl From<CallError> for UninstallError {
    fn from(error: CallError) -> Self {
        Self::Runtime(error.into())
    }
}

/// Removes the images, the namespace and the cgroups of an instance. A namespace that is not marked as the instance's stays
/// as it is.
pub async fn uninstall(
    address: &Path,
    namespace: &str,
    call_timeout: Duration,
    names: &Names,
) -> Result<(), UninstallError> {
    remove_cgroups(&names.cgroup_parent).await?;
    let client = Client::new(address, namespace, call_timeout)?;
    if is_own(&client, namespace, names).await? {
        empty(&client).await?;
        let request = DeleteNamespaceRequest {
            name: namespace.to_owned(),
        };
        let mut namespaces = client.namespaces();
        let deleted = client.call("removing the namespace", namespaces.delete(request));
        found(deleted.await)?;
    }
    Ok(())
}

/// Removes the cgroups that an instance had under other settings; `false` where sandboxes have theirs in them.
pub async fn leave_cgroups(former: &str) -> Result<bool, UninstallError> {
    let hierarchy = Hierarchy::detect()?;
    let in_use = !hierarchy.children(former)?.is_empty();
    if !in_use && hierarchy.exists(former) {
        remove_cgroups(former).await?;
    }
    Ok(!in_use)
}

async fn remove_cgroups(of_instance: &str) -> Result<(), UninstallError> {
    let hierarchy = Hierarchy::detect()?;
    let Some((parent, _)) = of_instance.rsplit_once('/') else {
        return Ok(hierarchy.remove(of_instance)?);
    };
    let Some(unit) = cgroups::unit(of_instance) else {
        hierarchy.remove(of_instance)?;
        hierarchy.remove_empty(parent);
        return Ok(());
    };
    let systemd = Systemd::default();
    systemd.stop_slice(unit).await?;
    hierarchy.remove(of_instance)?;
    if let Some(unit) = cgroups::unit(parent)
        && hierarchy.children(parent)?.is_empty()
    {
        systemd.stop_slice(unit).await?;
    }
    Ok(())
}

async fn is_own(client: &Client, namespace: &str, names: &Names) -> Result<bool, CallError> {
    let request = GetNamespaceRequest {
        name: namespace.to_owned(),
    };
    let mut namespaces = client.namespaces();
    let got = client.call("reading the namespace", namespaces.get(request));
    let labels = found(got.await)?.and_then(|it| it.namespace);
    let owner = labels.and_then(|mut it| it.labels.remove(names::LABEL_INSTANCE));
    Ok(owner.is_some_and(|it| it == names.instance.as_str()))
}

/// containerd collects what no image and no lease holds; the last removal of each waits for that.
async fn empty(client: &Client) -> Result<(), CallError> {
    let request = ListLeasesRequest { filters: vec![] };
    let mut service = client.leases();
    let leases = client.call("listing leases", service.list(request)).await?;
    let count = leases.leases.len();
    for (number, lease) in leases.leases.iter().enumerate() {
        delete_lease(client, &lease.id, number + 1 == count).await?;
    }
    let request = ListImagesRequest { filters: vec![] };
    let mut service = client.images();
    let images = client.call("listing images", service.list(request)).await?;
    let count = images.images.len();
    for (number, image) in images.images.into_iter().enumerate() {
        let request = DeleteImageRequest {
            name: image.name,
            sync: number + 1 == count,
            ..DeleteImageRequest::default()
        };
        let deleted = client.long_call("removing an image", service.delete(request));
        found(deleted.await)?;
    }
    Ok(())
}
