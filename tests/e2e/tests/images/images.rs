//! Images on their way to the node: every kind that must work, and every way in which one can be broken.

mod archives;
mod kept;
mod registries;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, import_image_request::Part, pull_image_response::Event};
use berth_e2e::{
    TestNode,
    images::{
        INDEX, ImageParts, LAYER, architecture, busybox_layer, digest, gzip, indexed, layer,
        multi_arch, nested, zstd,
    },
    logs,
    node::{eventually, succeed},
    registry::{Answer, Registry},
    specs::{shell, spec},
};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// What is wrong, the archive, the name that is asked for, and what is told.
type Breakage = (&'static str, Vec<u8>, &'static str, (Code, &'static str));

const NAME: &str = "berth.local/app:1";
const DEADLINE: Duration = Duration::from_secs(20);

fn config() -> Value {
    json!({ "Cmd": ["/bin/sh"], "Env": ["PATH=/bin"] })
}

/// Busybox with a file that names the image.
fn parts(text: &str) -> ImageParts {
    ImageParts::plain(&[busybox_layer(), layer(&[("srv/name", text)])], config())
}

/// The same with its layers stored in another form.
fn packed(text: &str, suffix: &str, pack: fn(&[u8]) -> Vec<u8>) -> ImageParts {
    let kind = format!("{LAYER}{suffix}");
    let tars = [busybox_layer(), layer(&[("srv/name", text)])];
    let layers = tars.map(|tar| (pack(&tar), kind.as_str(), tar));
    ImageParts::of(&layers, config(), architecture())
}

fn foreign(text: &str) -> ImageParts {
    let tar = layer(&[("srv/name", text)]);
    ImageParts::of(&[(tar.clone(), LAYER, tar)], config(), "vax")
}

fn layers_of(image: &ImageParts) -> Vec<String> {
    let manifest = image.manifest();
    let layers = manifest["layers"].as_array().expect("a list").iter();
    layers
        .map(|it| it["digest"].as_str().expect("a text").to_owned())
        .collect()
}

/// Runs the image and returns what it has in `/srv`: paths, and what is in them.
async fn content(node: &TestNode, id: &str, image: &str) -> anyhow::Result<String> {
    let line = "cd /srv; for it in * */*; do test -f $it && echo $it: $(cat $it); done; \
                echo end; exec sleep 3600";
    let mut app = shell("app", line, &[]);
    app.image = image.into();
    node.create(id, spec([app])).await?;
    let output = || logs::output(node, id, "app");
    let ended = || async { output().ends_with("end\n") };
    eventually("the files are told", DEADLINE, ended).await?;
    let told = output();
    node.delete(id).await?;
    Ok(told.trim_end_matches("end\n").to_owned())
}

/// What an import or a pull that fails must leave as it was.
#[derive(Debug, PartialEq)]
struct Kept {
    /// Name, digest and size of each.
    images: BTreeSet<String>,
    content: BTreeSet<String>,
    snapshots: BTreeSet<String>,
    leases: BTreeSet<String>,
    spooled: usize,
}

impl Kept {
    fn of(node: &TestNode) -> anyhow::Result<Self> {
        let lines = |arguments: &[&str]| -> anyhow::Result<BTreeSet<String>> {
            let text = succeed(node.command("ctr").args(arguments))?;
            Ok(text.lines().map(str::to_owned).collect())
        };
        let listed: Value = serde_json::from_str(&node.berth(&["images", "ls", "-o", "json"])?)?;
        let listed = listed["images"].as_array().context("a list")?.iter();
        Ok(Self {
            images: listed
                .map(|it| format!("{} {} {}", it["name"], it["digest"], it["sizeBytes"]))
                .collect(),
            content: lines(&["content", "ls", "-q"])?,
            snapshots: lines(&["snapshots", "ls"])?,
            leases: lines(&["leases", "ls"])?,
            spooled: std::fs::read_dir(node.home().join("state/spool")).map_or(0, |it| it.count()),
        })
    }
}

/// What a node has that has just started, when the manager has brought its own image.
async fn settled(node: &TestNode) -> anyhow::Result<Kept> {
    let rests =
        || async { Kept::of(node).is_ok_and(|it| it.images.len() == 2 && it.leases.len() == 1) };
    eventually("the pause image is here", DEADLINE, rests).await?;
    Kept::of(node)
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details
        .error_info()
        .map(|it| it.reason.clone())
        .unwrap_or_default()
}

fn ensure_refused(
    what: &str,
    outcome: Result<(), Status>,
    expected: (Code, &str),
) -> anyhow::Result<()> {
    let status = outcome
        .err()
        .with_context(|| format!("{what}: it must be refused"))?;
    let told = (status.code(), reason(&status));
    ensure!(
        (told.0, told.1.as_str()) == expected,
        "{what}: {told:?}, not {expected:?}: {status}"
    );
    Ok(())
}

async fn pull(node: &TestNode, image: &str) -> Result<v1::Image, Status> {
    let request = v1::PullImageRequest {
        image: image.to_owned(),
        credentials: None,
    };
    let mut events = node.images().pull_image(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        if let Some(Event::Image(image)) = event.event {
            return Ok(image);
        }
    }
    Err(Status::internal("the stream ended without an image"))
}

async fn remove(node: &TestNode, image: &str) -> Result<(), Status> {
    let request = v1::RemoveImageRequest {
        image: image.to_owned(),
    };
    node.images().remove_image(request).await.map(drop)
}
