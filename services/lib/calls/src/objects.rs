//! What a call is about, as the first message of its caller names it: an id, never contents.

use berth_api::v1::{
    self, attach_request::Action as AttachAction, copy_to_request::Part as CopyPart,
    entry::Object as EntryObject, exec_request::Action as ExecAction,
    import_image_request::Part as ImportPart, port_forward_request::Part as ForwardPart,
};
use prost::Message;

/// Longer names are cut, at no letter's cost.
const NAME_MAX: usize = 256;

/// The object of a message, by the path of the method; empty where it has none, or is no message of that method.
pub(crate) fn named(path: &str, message: &[u8]) -> String {
    let name = raw(path, message).unwrap_or_default();
    cut(name, NAME_MAX)
}

fn raw(path: &str, message: &[u8]) -> Option<String> {
    let method = path.strip_prefix("/berth.v1.")?;
    Some(match method {
        "SandboxService/Create" => read::<v1::CreateRequest>(message)?.id,
        "SandboxService/Delete" => read::<v1::DeleteRequest>(message)?.id,
        "SandboxService/Stop" => read::<v1::StopRequest>(message)?.id,
        "SandboxService/SetPortStatus" => read::<v1::SetPortStatusRequest>(message)?.container_id,
        "SandboxService/Renew" => read::<v1::RenewRequest>(message)?.id,
        "SandboxService/CopyFrom" => read::<v1::CopyFromRequest>(message)?.id,
        "SandboxService/CopyTo" => match read::<v1::CopyToRequest>(message)?.part? {
            CopyPart::Start(it) => it.id,
            CopyPart::Chunk(_) => return None,
        },
        "SandboxService/PortForward" => match read::<v1::PortForwardRequest>(message)?.part? {
            ForwardPart::Start(it) => it.id,
            ForwardPart::Data(_) | ForwardPart::End(_) => return None,
        },
        "SandboxService/Exec" => match read::<v1::ExecRequest>(message)?.action? {
            ExecAction::Start(it) => it.id,
            ExecAction::Stdin(_)
            | ExecAction::StdinEnd(_)
            | ExecAction::Resize(_)
            | ExecAction::Signal(_) => return None,
        },
        "SandboxService/Attach" => match read::<v1::AttachRequest>(message)?.action? {
            AttachAction::Start(it) => it.id,
            AttachAction::Stdin(_) | AttachAction::Resize(_) => return None,
        },
        "ImageService/ImportImage" => match read::<v1::ImportImageRequest>(message)?.part? {
            ImportPart::Header(it) => it.name,
            ImportPart::Chunk(_) => return None,
        },
        "ImageService/PullImage" => read::<v1::PullImageRequest>(message)?.image,
        "ImageService/RemoveImage" => read::<v1::RemoveImageRequest>(message)?.image,
        "ImageService/PinImage" => read::<v1::PinImageRequest>(message)?.image,
        "ImageService/UnpinImage" => read::<v1::UnpinImageRequest>(message)?.image,
        "CatalogService/PutEntry" => match read::<v1::PutEntryRequest>(message)?.entry?.object? {
            EntryObject::App(it) => it.id,
            EntryObject::Version(it) => it.id,
            EntryObject::Service(it) => it.id,
            EntryObject::Host(it) => it.id,
            EntryObject::Artifact(it) => it.id,
        },
        "CatalogService/DeleteEntry" => read::<v1::DeleteEntryRequest>(message)?.id,
        "NetworkService/ReleaseLease" => read::<v1::ReleaseLeaseRequest>(message)?.address,
        "NetworkService/ReserveSubnet" => read::<v1::ReserveSubnetRequest>(message)?.identifier,
        "NetworkService/ReleaseSubnet" => read::<v1::ReleaseSubnetRequest>(message)?.identifier,
        "OrphanService/EndOrphans" => several(&read::<v1::EndOrphansRequest>(message)?.tokens),
        "OrphanService/RemoveOrphans" => {
            several(&read::<v1::RemoveOrphansRequest>(message)?.tokens)
        }
        "CollectionService/ClaimDeletions" => {
            run(read::<v1::ClaimDeletionsRequest>(message)?.collection)
        }
        "CollectionService/ReportSlice" => run(read::<v1::ReportSliceRequest>(message)?.collection),
        "CollectionService/CommitDeletions" => {
            several(&read::<v1::CommitDeletionsRequest>(message)?.tokens)
        }
        "CollectionService/ReleaseDeletions" => {
            several(&read::<v1::ReleaseDeletionsRequest>(message)?.tokens)
        }
        _ => return None,
    })
}

fn read<M: Message + Default>(message: &[u8]) -> Option<M> {
    M::decode(message).ok()
}

fn run(collection: u64) -> String {
    format!("collection {collection}")
}

/// They are many and say nothing to people.
fn several<T>(tokens: &[T]) -> String {
    format!("{} objects", tokens.len())
}

pub(crate) fn cut(mut text: String, most: usize) -> String {
    let mut ends = (0..=most.min(text.len())).rev();
    let end = ends.find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or_default());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        methods::Methods,
        roles::{Effect, effect},
    };

    /// What is recorded and has no object.
    const WITHOUT: &[&str] = &[
        "/berth.v1.CollectionService/StartCollection",
        "/berth.v1.ImageGcService/Run",
        "/berth.v1.NetworkService/ReleaseRestingLeases",
        "/berth.v1.NodeService/Audit",
        "/berth.v1.NodeService/Drain",
        "/berth.v1.WatchdogService/Run",
    ];

    #[test]
    fn whatever_is_recorded_names_its_object_or_has_none() {
        let methods = Methods::of_contract();
        let recorded = methods.paths().filter(|it| effect(it) == Effect::Changes);
        // The empty message is one of every method, and names nothing where the object is in a choice.
        let mut without: Vec<_> = recorded.filter(|it| raw(it, &[]).is_none()).collect();
        without.retain(|it| !CHOICES.contains(it));
        without.sort_unstable();
        assert_eq!(without, WITHOUT);
    }

    const CHOICES: &[&str] = &[
        "/berth.v1.CatalogService/PutEntry",
        "/berth.v1.ImageService/ImportImage",
        "/berth.v1.SandboxService/Attach",
        "/berth.v1.SandboxService/CopyTo",
        "/berth.v1.SandboxService/Exec",
        "/berth.v1.SandboxService/PortForward",
    ];

    #[test]
    fn an_object_is_named_and_nothing_beside_it() {
        let exec = |action| v1::ExecRequest {
            action: Some(action),
        };
        let start = exec(ExecAction::Start(v1::ExecStart {
            id: "web".into(),
            env: vec!["PASSWORD=x".into()],
            ..v1::ExecStart::default()
        }));
        let stdin = exec(ExecAction::Stdin(b"secret".to_vec()));
        const EXEC: &str = "/berth.v1.SandboxService/Exec";
        assert_eq!(named(EXEC, &start.encode_to_vec()), "web");
        assert_eq!(named(EXEC, &stdin.encode_to_vec()), "");
        let pull = v1::PullImageRequest {
            image: "ä".repeat(300),
            ..v1::PullImageRequest::default()
        };
        let name = named("/berth.v1.ImageService/PullImage", &pull.encode_to_vec());
        assert_eq!(name, "ä".repeat(NAME_MAX / 2), "no letter is cut in two");
        assert_eq!(named("/berth.v1.SandboxService/Create", &[0xff; 9]), "");
    }
}
