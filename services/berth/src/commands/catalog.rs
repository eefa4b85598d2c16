//! Commands on the catalog: what sandboxes belong to and are found by.

use std::path::Path;

use berth_api::v1::{self, catalog_service_client::CatalogServiceClient, entry::Object};
use serde::Serialize;
use tonic::transport::Channel;

use super::{Session, sandboxes::read_text};
use crate::{
    args::{Catalog, EntryKindArg},
    errors::Failure,
    output::{table, word},
    proto_json::{self, ProtoJson},
};

pub(super) async fn run(session: &Session, command: Catalog) -> Result<(), Failure> {
    match command {
        Catalog::Put { file } => put(session, &file).await,
        Catalog::Ls { kind } => list(session, kind).await,
        Catalog::Endpoints { app, service } => {
            endpoints(
                session,
                app.unwrap_or_default(),
                service.unwrap_or_default(),
            )
            .await
        }
        Catalog::Rm { kind, id } => remove(session, kind, id).await,
    }
}

async fn client(session: &Session) -> Result<CatalogServiceClient<Channel>, Failure> {
    Ok(CatalogServiceClient::new(session.connect().await?))
}

/// Puts the entries of a file in its order. What was put before a refused one stands.
async fn put(session: &Session, path: &Path) -> Result<(), Failure> {
    let text = read_text(path).await?;
    let catalog: v1::ListEntriesResponse =
        proto_json::read(&text).map_err(|source| Failure::NotACatalog {
            path: path.to_owned(),
            source,
        })?;
    let mut client = client(session).await?;
    let mut entries = vec![];
    for entry in catalog.entries {
        let request = session.request(v1::PutEntryRequest {
            entry: Some(entry),
            expected_revision: 0,
        });
        let answer = client.put_entry(request).await?.into_inner();
        entries.push(answer.entry.ok_or(Failure::Incomplete("entry"))?);
    }
    print(session, &entries)
}

async fn list(session: &Session, kind: Option<EntryKindArg>) -> Result<(), Failure> {
    let kind = kind.map_or(v1::EntryKind::Unspecified, Into::into);
    let mut client = client(session).await?;
    let (mut entries, mut page_token) = (vec![], String::new());
    loop {
        let request = session.request(v1::ListEntriesRequest {
            kind: kind.into(),
            page_size: 0,
            page_token,
        });
        let page = client.list_entries(request).await?.into_inner();
        entries.extend(page.entries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return print(session, &entries);
        }
    }
}

fn print(session: &Session, entries: &[v1::Entry]) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Entries<'a> {
        entries: Vec<ProtoJson<'a, v1::Entry>>,
    }

    let object = Entries {
        entries: entries.iter().map(ProtoJson).collect(),
    };
    Ok(session.output.object(&object, || entry_table(entries))?)
}

fn entry_table(entries: &[v1::Entry]) -> String {
    let rows = entries.iter().map(|it| {
        let (kind, id, app, name, what) = match it.object.clone() {
            Some(Object::App(it)) => ("APP", it.id, String::new(), it.name, String::new()),
            Some(Object::Host(it)) => ("HOST", it.id, it.app, it.name, it.addresses.join(",")),
            Some(Object::Service(it)) => {
                let mut labels: Vec<_> = it
                    .labels
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                labels.sort();
                labels.extend(it.ports.iter().map(port));
                ("SERVICE", it.id, it.app, it.name, labels.join(","))
            }
            Some(Object::Version(it)) => {
                let what = [it.image, it.artifact, it.static_artifact];
                let what: Vec<_> = what.into_iter().filter(|it| !it.is_empty()).collect();
                ("VERSION", it.id, it.app, String::new(), what.join(","))
            }
            Some(Object::Artifact(it)) => {
                let status = word(it.status().as_str_name(), "ARTIFACT_STATUS_");
                let what = format!("{status},{} blobs", it.blobs.len());
                ("ARTIFACT", it.id, String::new(), String::new(), what)
            }
            None => (
                "",
                String::new(),
                String::new(),
                String::new(),
                String::new(),
            ),
        };
        let revision = it.revision.to_string();
        [kind.to_owned(), id, app, name, what, revision]
    });
    table(
        ["KIND", "ID", "APP", "NAME", "WHAT", "REVISION"],
        rows.collect(),
    )
}

/// As `http:80>8080/tcp`.
fn port(it: &v1::ServicePort) -> String {
    let protocol = word(it.protocol().as_str_name(), "PROTOCOL_").to_lowercase();
    let name = match it.name.as_str() {
        "" => String::new(),
        name => format!("{name}:"),
    };
    match it.target_port {
        target if target == it.port || target == 0 => format!("{name}{}/{protocol}", it.port),
        target => format!("{name}{}>{target}/{protocol}", it.port),
    }
}

async fn endpoints(session: &Session, app: String, service: String) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Endpoints<'a> {
        endpoints: Vec<ProtoJson<'a, v1::Endpoint>>,
    }

    let mut client = client(session).await?;
    let (mut endpoints, mut page_token) = (vec![], String::new());
    loop {
        let request = session.request(v1::ListEndpointsRequest {
            app: app.clone(),
            service: service.clone(),
            page_size: 0,
            page_token,
        });
        let page = client.list_endpoints(request).await?.into_inner();
        endpoints.extend(page.endpoints);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let object = Endpoints {
        endpoints: endpoints.iter().map(ProtoJson).collect(),
    };
    Ok(session.output.object(&object, || {
        let rows = endpoints.iter().map(|it| {
            let ports: Vec<_> = it.ports.iter().map(port).collect();
            [
                it.service.clone(),
                it.app.clone(),
                it.name.clone(),
                it.sandbox.clone(),
                it.generation.to_string(),
                match it.address6.as_str() {
                    "" => it.address.clone(),
                    address6 => format!("{},{address6}", it.address),
                },
                ports.join(","),
            ]
        });
        let columns = [
            "SERVICE",
            "APP",
            "NAME",
            "SANDBOX",
            "GENERATION",
            "ADDRESS",
            "PORTS",
        ];
        table(columns, rows.collect())
    })?)
}

async fn remove(session: &Session, kind: EntryKindArg, id: String) -> Result<(), Failure> {
    let request = session.request(v1::DeleteEntryRequest {
        kind: v1::EntryKind::from(kind).into(),
        id: id.clone(),
        expected_revision: 0,
    });
    let answer = client(session).await?.delete_entry(request).await?;
    let answer = answer.into_inner();
    Ok(session.output.object(&ProtoJson(&answer), || {
        if answer.existed {
            format!("{id} is gone")
        } else {
            format!("there was no {id}")
        }
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stand_in_one_table_with_what_they_lead_to() {
        let entry = |object| v1::Entry {
            revision: 7,
            object: Some(object),
        };
        let port = |name: &str, target_port| v1::ServicePort {
            name: name.to_owned(),
            port: 80,
            target_port,
            protocol: v1::Protocol::Tcp.into(),
        };
        let service = v1::Service {
            id: "s1".to_owned(),
            app: "shop".to_owned(),
            name: "web".to_owned(),
            labels: [("tier".to_owned(), "web".to_owned())].into(),
            ports: vec![port("http", 8080), port("", 80)],
        };
        let host = v1::Host {
            id: "db".to_owned(),
            app: String::new(),
            name: "db.example.org".to_owned(),
            addresses: vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()],
        };
        let entries = [entry(Object::Host(host)), entry(Object::Service(service))];
        assert_eq!(
            entry_table(&entries),
            "KIND     ID  APP   NAME            WHAT                              REVISION\n\
             HOST     db  -     db.example.org  10.0.0.1,10.0.0.2                 7\n\
             SERVICE  s1  shop  web             tier=web,http:80>8080/tcp,80/tcp  7"
        );
    }
}
