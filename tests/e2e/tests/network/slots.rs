//! Network slots: what is made ahead is what a sandbox gets, and belongs to nobody until then.

use std::{collections::BTreeMap, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use berth_api::v1::SandboxStatus;
use berth_e2e::{
    TestNode,
    node::{eventually, succeed},
    specs::idle,
};

const SOON: Duration = Duration::from_secs(10);
const TWO: &str = "[network]\nslots = 2\n";

/// Numbers of the links that wait for a sandbox, by name.
fn waiting(node: &TestNode) -> anyhow::Result<BTreeMap<String, u64>> {
    let instance = std::fs::read_to_string(node.home().join("instance"))?;
    let alias = format!("berth {} .slot", instance.trim());
    let all = links()?.into_iter();
    let own = all.filter(|it| it["ifalias"].as_str() == Some(&alias));
    own.map(|it| {
        let name = it["ifname"].as_str().context("a name")?.to_owned();
        Ok((name, it["ifindex"].as_u64().context("a number")?))
    })
    .collect()
}

fn links() -> anyhow::Result<Vec<serde_json::Value>> {
    let text = succeed(Command::new("ip").args(["-j", "link"]))?;
    Ok(serde_json::from_str(&text)?)
}

/// Folders of namespaces that wait for a sandbox.
fn folders(node: &TestNode) -> anyhow::Result<usize> {
    let entries = std::fs::read_dir(node.home().join("run/ns"))?.flatten();
    let names = entries.map(|it| it.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|it| it.starts_with(".slot-")).count())
}

async fn two_wait(node: &TestNode, apart_from: &[u64]) -> anyhow::Result<BTreeMap<String, u64>> {
    let there = || async {
        waiting(node)
            .is_ok_and(|it| it.len() == 2 && !it.values().any(|number| apart_from.contains(number)))
    };
    eventually("two slots wait", SOON, there).await?;
    ensure!(folders(node)? == 2);
    waiting(node)
}

#[tokio::test]
async fn a_sandbox_gets_what_was_made_for_its_address_and_the_next_is_made() -> anyhow::Result<()> {
    let node = TestNode::start_with(TWO, &[]).await?;
    let before = two_wait(&node, &[]).await?;
    node.assert_clean().await?;
    // Many kernels rename no link that is up.
    for link in links()?.iter().filter(|it| {
        let name = it["ifname"].as_str();
        name.is_some_and(|it| before.contains_key(it))
    }) {
        ensure!(!link["flags"].to_string().contains("\"UP\""), "{link}");
    }
    let sandbox = node.create("web", idle()).await?;
    let address = sandbox.addresses[0].address.split('/').next();
    let address = address.context("an address")?;
    let octets: Vec<u8> = address.split('.').flat_map(str::parse).collect();
    let slot = octets
        .iter()
        .fold("bs".to_owned(), |name, it| format!("{name}{it:02x}"));
    let made = before.get(&slot).context("a slot for the first address")?;

    let all = links()?;
    let link = all.iter().find(|it| it["ifindex"].as_u64() == Some(*made));
    let link = link.context("the link of the slot")?;
    ensure!(
        link["ifalias"]
            .as_str()
            .is_some_and(|it| it.ends_with(" web")),
        "{link}"
    );
    let pause = node.task("sandbox.web_pause")?;
    let inside = |line: &str| {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--uts", "-t", &pause.to_string()]);
        succeed(command.args(line.split_whitespace()))
    };
    ensure!(inside("hostname")?.trim() == "web");
    let addresses = inside("ip -o -4 addr show dev eth0")?;
    ensure!(addresses.contains(&format!("{address}/")), "{addresses}");
    inside(&format!("busybox ping -c 1 -W 2 {}", gateway(&octets)))?;

    let after = two_wait(&node, &[*made]).await?;
    ensure!(!after.contains_key(&slot), "{after:?}");
    // An address that is reserved is not given next. No record says so.
    let names = |node| waiting(node).map(|it| it.into_keys().collect::<Vec<_>>());
    let former: Vec<_> = after.into_keys().collect();
    node.berth(&["net", "reserve", "team", "--prefix-length", "30"])?;
    let others = || async { names(&node).is_ok_and(|it| it.len() == 2 && it != former) };
    eventually("the slots are of other addresses", SOON, others).await?;
    node.berth(&["net", "unreserve", "team"])?;
    let again = || async { names(&node).is_ok_and(|it| it == former) };
    eventually("the slots are of the former ones", SOON, again).await?;
    node.delete("web").await?;
    node.assert_clean().await?;
    node.finish()
}

fn gateway(address: &[u8]) -> String {
    match address {
        [a, b, c, _] => format!("{a}.{b}.{c}.1"),
        _ => String::new(),
    }
}

#[tokio::test]
async fn a_crash_leaves_no_slot_and_a_stop_none_either() -> anyhow::Result<()> {
    let node = TestNode::start_with(TWO, &[]).await?;
    let former: Vec<_> = two_wait(&node, &[]).await?.into_values().collect();
    for point in [
        "slots/refill/before",
        "create/open-namespaces/after",
        "create/attach-link/before",
    ] {
        node.kill_manager()?;
        node.up_with(&[("BERTH_CRASH_AT", point)]).await?;
        let created = node.create("web", idle()).await;
        let died = || async { !node.manager_runs() };
        eventually("the manager dies", SOON, died).await?;
        node.up().await?;
        let running = || async {
            node.get("web")
                .await
                .is_ok_and(|it| it.status() == SandboxStatus::Running)
        };
        eventually(
            &format!("it runs after {point}, {created:?}"),
            SOON,
            running,
        )
        .await?;
        two_wait(&node, &former).await?;
        node.assert_clean().await?;
        node.delete("web").await?;
    }
    node.signal_manager("-TERM", SOON)?;
    ensure!(waiting(&node)?.is_empty() && folders(&node)? == 0);
    node.up().await?;
    node.finish()
}
