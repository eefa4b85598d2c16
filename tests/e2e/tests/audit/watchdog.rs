//! The watchdog removes what no record explains, by itself and when it is asked to, and touches nothing else.

use std::{
    collections::BTreeSet,
    fs,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{
    self, AuditVerdict, PluginState, SandboxStatus, watchdog_service_client::WatchdogServiceClient,
};
use berth_domain::SandboxId;
use berth_e2e::{
    TestNode,
    faults::is_alive,
    leftovers::cgroup_roots,
    node::eventually,
    specs::{IMAGE, web},
};
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt as _;

use super::scene::{Scene, run};

/// Of a state that has to come.
const SOON: Duration = Duration::from_secs(30);
const FOREIGN: usize = 20;

/// The process, which ends with the test.
struct Watchdog {
    child: Child,
    address: String,
}

impl Watchdog {
    /// Starts one that runs at its start and then when it is asked to; returns when its first run has ended.
    async fn start(node: &TestNode, name: &str) -> anyhow::Result<Self> {
        let it = Self::spawn(node, name, &[])?;
        let ran = || async { it.status().await.is_ok_and(|it| it.last_run.is_some()) };
        eventually("the run at the start has ended", SOON, ran).await?;
        Ok(it)
    }

    fn spawn(node: &TestNode, name: &str, settings: &[&str]) -> anyhow::Result<Self> {
        let socket = node
            .home()
            .join(format!("{name}.sock"))
            .display()
            .to_string();
        let log = fs::File::create(node.home().join(format!("{name}.log")))?;
        let manager = format!("manager_address={}", node.variable("BERTH_ADDRESS"));
        let (own, name) = (format!("socket={socket}"), format!("name={name}"));
        let all = [
            &manager,
            &own,
            &name,
            "check_interval=1h",
            "grace_window=200ms",
            // Whoever waits for its end is late.
            "lease_time=1m",
        ];
        let mut command = node.command("watchdog");
        let all = all.into_iter().chain(settings.iter().copied());
        command.args(all.flat_map(|it| ["--set", it]));
        let child = command.stderr(Stdio::from(log)).spawn();
        Ok(Self {
            child: child.context("starting a watchdog")?,
            address: format!("unix:{socket}"),
        })
    }

    /// Starts one, and returns when it has looked and waits for its second look.
    async fn in_its_run(node: &TestNode, name: &str, settings: &[&str]) -> anyhow::Result<Self> {
        let it = Self::spawn(node, name, settings)?;
        let log = node.home().join(format!("{name}.log"));
        let said = "the first look is over";
        let looked = || async { fs::read_to_string(&log).is_ok_and(|it| it.contains(said)) };
        eventually("it is in the middle of its run", SOON, looked).await?;
        Ok(it)
    }

    async fn client(&self) -> anyhow::Result<WatchdogServiceClient<Channel>> {
        let channel = berth_api::connect(&self.address).await?;
        Ok(WatchdogServiceClient::new(channel))
    }

    async fn status(&self) -> anyhow::Result<v1::GetWatchdogStatusResponse> {
        let request = v1::GetWatchdogStatusRequest {};
        let answer = self.client().await?.get_watchdog_status(request).await?;
        Ok(answer.into_inner())
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Scene {
    /// Containers and images that are nobody's of Berth, in its own namespace; some run.
    fn plant_foreign(&self) -> anyhow::Result<()> {
        for number in 0..FOREIGN {
            let (image, id) = (
                format!("foreign.local/app:{number}"),
                format!("foreign-{number}"),
            );
            self.ctr(&["images", "tag", IMAGE, &image])?;
            match number {
                0 => self.run_by_hand("abcdef", "foreign")?,
                // As of Berth, and of no instance.
                1 => self
                    .ctr(&[
                        "containers",
                        "create",
                        "--label",
                        "runtime.computer/entity-id=sandbox/foreign",
                        &image,
                        "sandbox.foreign.other",
                    ])
                    .map(drop)?,
                2 => self
                    .ctr(&[
                        "run",
                        "--detach",
                        "--null-io",
                        IMAGE,
                        &id,
                        "/bin/sleep",
                        "3600",
                    ])
                    .map(drop)?,
                _ => self.ctr(&["containers", "create", &image, &id]).map(drop)?,
            }
        }
        Ok(())
    }

    /// All that is foreign, with the pids of what runs.
    fn foreign(&self) -> anyhow::Result<BTreeSet<String>> {
        let lists = [
            self.ctr(&["containers", "ls", "-q"])?,
            self.ctr(&["images", "ls", "-q"])?,
            self.ctr(&["tasks", "ls"])?,
        ];
        let lines = lists.iter().flat_map(|it| it.lines());
        let foreign = lines.filter(|it| it.contains("foreign"));
        Ok(foreign.map(str::to_owned).collect())
    }

    fn remove_foreign(&self) -> anyhow::Result<()> {
        for id in ["sandbox.foreign.app", "foreign-2"] {
            self.ctr(&["tasks", "rm", "--force", id])?;
        }
        // runc removes its own alone.
        for root in cgroup_roots() {
            for folder in ["berth/abcdef/foreign", "berth/abcdef"] {
                let path = root.join(folder);
                if path.is_dir() {
                    fs::remove_dir(&path).with_context(|| path.display().to_string())?;
                }
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_plan_names_orphans_of_every_kind_a_run_removes_them_and_twenty_foreign_ones_stay()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let node = &scene.node;
    node.create("web", web("hello", 8080)).await?;
    let pid = scene.pid("sandbox.web.web")?;
    scene.plant_foreign()?;
    let foreign = scene.foreign()?;
    ensure!(foreign.len() == 2 * FOREIGN + 2, "{foreign:#?}");
    let watchdog = Watchdog::start(node, "dog").await?;
    let planted = scene.plant().await?;
    let kinds: BTreeSet<_> = planted.expected.iter().map(|(kind, ..)| *kind).collect();
    ensure!(
        kinds.len() >= 9,
        "with the shim, which has no fixed name, ten: {kinds:?}"
    );
    let tasks = [
        scene.pid("sandbox.whole.app")?,
        scene.pid("sandbox.shim.app")?,
    ];

    // Without an address the watchdog is found by its heartbeat.
    let plan = node.berth(&["watchdog", "plan", "-o", "json"])?;
    let plan: serde_json::Value = serde_json::from_str(&plan)?;
    let objects = plan["objects"].as_array().context("objects")?;
    for (kind, name, owner) in &planted.expected {
        let is = |it: &&serde_json::Value| {
            it["kind"] == *kind && it["name"].as_str().is_some_and(|it| it.ends_with(name))
        };
        let it = objects.iter().find(is);
        let it = it.with_context(|| format!("no {kind} {name} in {plan:#}"))?;
        ensure!(
            it["sandbox"] == *owner && it["verdict"] == "AUDIT_VERDICT_ORPHAN",
            "{it:#}"
        );
    }
    ensure!(objects.iter().any(|it| it["kind"] == "shim"), "{plan:#}");
    let odd = |it: &&serde_json::Value| it["sandbox"] == "web" && it["kind"] != "link";
    ensure!(!objects.iter().any(|it| odd(&it)), "{plan:#}");
    ensure!(tasks.iter().all(|pid| is_alive(*pid)), "a plan only looks");

    let ran = node.berth(&["watchdog", "run", "-o", "json"])?;
    let ran: serde_json::Value = serde_json::from_str(&ran)?;
    ensure!(ran["failed"] == serde_json::json!([]), "{ran:#}");
    ensure!(ran["cause"] == "WATCHDOG_CAUSE_REQUESTED", "{ran:#}");
    ensure!(
        ran["deletedContainers"] == serde_json::json!(["sandbox.whole.app"]),
        "{ran:#}"
    );
    let deleted = ran["deleted"].as_array().context("deleted")?;
    for (kind, name, _) in &planted.expected {
        let is = |it: &&serde_json::Value| {
            it["kind"] == *kind && it["name"].as_str().is_some_and(|it| it.ends_with(name))
        };
        ensure!(
            deleted.iter().any(|it| is(&it)),
            "no {kind} {name} in {ran:#}"
        );
    }
    let after = scene.audit().await?;
    ensure!(after.0.clean, "{:#?}", after.0.objects);
    after.assert_in_order("web")?;
    planted.assert_gone()?;
    ensure!(!tasks.iter().any(|pid| is_alive(*pid)));
    ensure!(scene.foreign()? == foreign, "what is foreign is as it was");
    ensure!(scene.pid("sandbox.web.web")? == pid, "the sandbox goes on");

    let status = node.berth(&["watchdog", "status"])?;
    ensure!(
        status.contains("requested") && status.contains("deleted"),
        "{status}"
    );
    let last_run = || async {
        let plugins = node.status().await.map(|it| it.plugins).unwrap_or_default();
        let own = plugins
            .into_iter()
            .find(|it| it.name == "watchdog" && it.instance == "dog");
        let result = own.and_then(|it| it.last_run).map(|it| it.result);
        result.is_some_and(|it| it.contains("deleted"))
    };
    eventually("the manager has heard of the run", SOON, last_run).await?;
    let shown = node.berth(&["node", "status"])?;
    ensure!(
        shown.contains("PROCESS") && shown.contains("watchdog"),
        "{shown}"
    );

    drop(watchdog);
    scene.remove_foreign()?;
    node.delete("web").await?;
    scene.finish()
}

#[tokio::test]
async fn two_watchdogs_take_turns_and_without_a_manager_or_its_lease_nothing_is_touched()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let (node, names) = (&scene.node, scene.names()?);
    let (one, two) = (
        Watchdog::start(node, "one").await?,
        Watchdog::start(node, "two").await?,
    );
    let ghost = names.files(&SandboxId::parse("ghost")?);
    fs::create_dir_all(&ghost)?;
    let (mut first, mut second) = (one.client().await?, two.client().await?);
    let (first_ran, second_ran) = tokio::join!(
        first.run(v1::WatchdogServiceRunRequest {}),
        second.run(v1::WatchdogServiceRunRequest {})
    );
    let runs = [first_ran?, second_ran?].map(|it| it.into_inner().run.unwrap_or_default());
    let deleted: usize = runs.iter().map(|it| it.deleted.len()).sum();
    ensure!(deleted == 1, "one of them did it: {runs:#?}");
    ensure!(
        runs.iter()
            .all(|it| it.failed.is_empty() && it.problem.is_empty()),
        "{runs:#?}"
    );
    ensure!(!ghost.exists());

    // A third one has the lease: whoever does not hold it is not heard.
    let request = v1::AcquireWorkLeaseRequest {
        name: "watchdog".to_owned(),
        holder: "third".to_owned(),
        time_to_live: Duration::from_secs(60).try_into().ok(),
        ..v1::AcquireWorkLeaseRequest::default()
    };
    let lease = node.leases().acquire_work_lease(request).await?;
    let lease = lease.into_inner().lease.context("a lease")?;
    fs::create_dir_all(&ghost)?;
    let impatient = Watchdog::spawn(node, "impatient", &["lease_time=1s"])?;
    let held = || async {
        let status = impatient.status().await;
        let run = status.ok().and_then(|it| it.last_run);
        run.is_some_and(|it| it.problem.contains("third"))
    };
    eventually("it has waited in vain", SOON, held).await?;
    ensure!(ghost.exists());
    let said = || async {
        let plugins = node.status().await.map(|it| it.plugins).unwrap_or_default();
        let own = plugins.into_iter().find(|it| it.instance == "impatient");
        own.is_some_and(|it| it.state() == PluginState::NotServing && it.reason.contains("third"))
    };
    eventually("the manager has heard why", SOON, said).await?;
    let lease = v1::WorkLeaseRef {
        name: lease.name,
        token: lease.token,
    };
    let leases = vec![lease];
    let released = v1::ReleaseWorkLeasesRequest { leases };
    node.leases().release_work_leases(released).await?;
    let gone = || async { !ghost.exists() };
    eventually("it tries again by itself", SOON, gone).await?;
    drop(impatient);

    node.kill_manager()?;
    fs::create_dir_all(&ghost)?;
    let refused = first.run(v1::WatchdogServiceRunRequest {}).await;
    let refused = refused.err().context("there is no manager")?;
    ensure!(refused.code() == Code::Unavailable, "{refused}");
    let details = refused.get_error_details();
    let reason = details.error_info().map(|it| it.reason.clone());
    ensure!(
        reason.as_deref() == Some("MANAGER_UNREACHABLE"),
        "{refused}"
    );
    ensure!(ghost.exists());
    node.up().await?;
    eventually("with the manager it works again", SOON, gone).await?;
    let clean = || async { node.audit().await.is_ok_and(|it| it.clean) };
    eventually("nothing else was left", SOON, clean).await?;
    drop((one, two));
    scene.finish()
}

#[tokio::test]
async fn a_watchdog_that_hangs_in_a_run_loses_its_lease_and_another_one_runs() -> anyhow::Result<()>
{
    let scene = Scene::start().await?;
    let (node, names) = (&scene.node, scene.names()?);
    let ghost = names.files(&SandboxId::parse("ghost")?);
    fs::create_dir_all(&ghost)?;
    let hung = Watchdog::in_its_run(node, "hung", &["lease_time=2s", "grace_window=10m"]).await?;
    // As long as it lives it keeps its lease.
    let waits = Watchdog::spawn(node, "waits", &["lease_time=1s"])?;
    let held = || async {
        let run = waits.status().await.ok().and_then(|it| it.last_run);
        run.is_some_and(|it| it.problem.contains("hung"))
    };
    eventually("another one has waited in vain", SOON, held).await?;
    ensure!(ghost.exists());
    run("kill", &["-STOP", &hung.child.id().to_string()])?;
    let gone = || async { !ghost.exists() };
    eventually("another one does its work", SOON, gone).await?;
    drop((hung, waits));
    scene.finish()
}

#[tokio::test]
async fn a_watchdog_that_was_killed_in_its_run_and_one_before_it_was_heard_of_hold_up_nobody()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let (node, names) = (&scene.node, scene.names()?);
    let ghost = names.files(&SandboxId::parse("ghost")?);
    fs::create_dir_all(&ghost)?;
    let in_its_run = Watchdog::in_its_run(node, "dog", &["grace_window=10m"]).await?;
    drop(in_its_run);
    let nowhere = format!("manager_address=unix:{}/nobody.sock", node.home().display());
    let unheard = Watchdog::spawn(node, "dog", &[&nowhere])?;
    let served = || async { unheard.status().await.is_ok() };
    eventually("it has the place of the first one", SOON, served).await?;
    drop(unheard);
    let third = Watchdog::spawn(node, "dog", &[])?;
    let gone = || async { !ghost.exists() };
    eventually("the third one does its work", SOON, gone).await?;
    drop(third);
    scene.finish()
}

#[tokio::test]
async fn a_run_whose_manager_was_started_again_meanwhile_is_made_again_at_once()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let (node, names) = (&scene.node, scene.names()?);
    let ghost = names.files(&SandboxId::parse("ghost")?);
    fs::create_dir_all(&ghost)?;
    let dog = Watchdog::in_its_run(node, "dog", &["grace_window=4s"]).await?;
    // The next one knows no leases: the run breaks off where it begins to act.
    node.kill_manager()?;
    node.up().await?;
    let gone = || async { !ghost.exists() };
    eventually("the next run does the work", SOON, gone).await?;
    drop(dog);
    scene.finish()
}

#[tokio::test]
async fn what_a_record_explains_by_the_second_look_or_what_does_not_answer_is_left()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let node = &scene.node;
    let watchdog = Watchdog::spawn(node, "dog", &["grace_window=3s"])?;
    let ran = || async {
        watchdog
            .status()
            .await
            .is_ok_and(|it| it.last_run.is_some())
    };
    eventually("the run at the start has ended", SOON, ran).await?;
    scene.run_by_hand(&scene.instance, "ghost")?;
    let (pid, shim) = (
        scene.pid("sandbox.ghost.app")?,
        scene.shim("sandbox.ghost.app")?,
    );
    fs::create_dir_all(scene.names()?.files(&SandboxId::parse("late")?))?;
    let log = node.home().join("dog.log");
    let looked =
        || async { fs::read_to_string(&log).is_ok_and(|it| it.contains("the first look is over")) };
    let mut client = watchdog.client().await?;
    let running = client.run(v1::WatchdogServiceRunRequest {});
    let meanwhile = async {
        eventually("the first look is over", SOON, looked).await?;
        run("kill", &["-STOP", &shim.to_string()])?;
        node.create("late", web("late", 8080)).await?;
        anyhow::Ok(())
    };
    let (ran, meanwhile) = tokio::join!(running, meanwhile);
    let untouched = is_alive(pid);
    run("kill", &["-CONT", &shim.to_string()])?;
    meanwhile?;
    let ran = ran?.into_inner().run.context("a run")?;
    ensure!(untouched && ran.first_look > 2, "{ran:#?}");
    ensure!(ran.second_look == 0 && ran.deleted.is_empty(), "{ran:#?}");
    let audit = scene.audit().await?;
    audit.assert_in_order("late")?;
    ensure!(node.get("late").await?.status() == SandboxStatus::Running);
    let own = audit.find("task", "sandbox.ghost.app")?;
    ensure!(own.verdict() == AuditVerdict::Orphan, "{own:#?}");
    let ran = client.run(v1::WatchdogServiceRunRequest {}).await?;
    let ran = ran.into_inner().run.context("a run")?;
    ensure!(ran.deleted_containers == ["sandbox.ghost.app"], "{ran:#?}");
    ensure!(!is_alive(pid));
    node.delete("late").await?;
    drop(watchdog);
    scene.finish()
}
