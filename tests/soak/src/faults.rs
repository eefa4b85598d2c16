//! Strikes the node from outside, one fault after another, and brings it back after each.

use std::{
    fs::File,
    io::{ErrorKind, Write as _},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_e2e::faults::signal;

use crate::{
    plan::{Fault, Strike, next_strike},
    random::Random,
    weather::Faults,
    world::World,
};

/// How long a node may take to be itself again.
const BACK: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

const MANAGER: Faults = Faults {
    manager: true,
    runtime: false,
    disk: false,
};
const RUNTIME: Faults = Faults {
    manager: false,
    runtime: true,
    disk: false,
};
const BOTH: Faults = Faults {
    manager: true,
    runtime: true,
    disk: false,
};
const DISK: Faults = Faults {
    manager: false,
    runtime: false,
    disk: true,
};

/// Strikes until it is over. The node is whole when this returns.
pub(crate) async fn strike(world: Arc<World>, seed: u64) -> anyhow::Result<()> {
    let mut random = Random::new(seed, u64::MAX);
    loop {
        let Strike { after, fault } = next_strike(&mut random);
        tokio::select! {
            () = tokio::time::sleep(after) => {}
            () = world.over.cancelled() => return Ok(()),
        }
        world.note("faults", &name(fault), "strikes");
        if let Fault::Pause(time) | Fault::PauseAndKillManager(time) | Fault::FillDisk(time) = fault
        {
            world.remark("faults", &format!("for {time:?}"));
        }
        carry_out(&world, fault)
            .await
            .with_context(|| name(fault))?;
        back(&world).await.with_context(|| name(fault))?;
        world.weather.clear();
        world.remark("faults", "all is back");
    }
}

fn name(fault: Fault) -> String {
    let name = match fault {
        Fault::KillManager => "kill -9 of the manager",
        Fault::KillContainerd => "kill -9 of containerd",
        Fault::KillBoth => "kill -9 of both",
        Fault::Pause(_) => "containerd paused",
        Fault::PauseAndKillManager(_) => "containerd paused, kill -9 of the manager",
        Fault::FillDisk(_) => "full disk",
    };
    name.to_owned()
}

async fn carry_out(world: &World, fault: Fault) -> anyhow::Result<()> {
    let node = &world.node;
    match fault {
        Fault::KillManager => {
            world.weather.begin(MANAGER);
            node.end_manager().await
        }
        Fault::KillContainerd => {
            world.weather.begin(RUNTIME);
            node.end_containerd().await
        }
        Fault::KillBoth => {
            world.weather.begin(BOTH);
            node.end_manager().await?;
            node.end_containerd().await
        }
        Fault::Pause(time) => {
            world.weather.begin(RUNTIME);
            let containerd = node.containerd_pid()?;
            signal(containerd, "STOP")?;
            tokio::time::sleep(time).await;
            signal(containerd, "CONT")
        }
        Fault::PauseAndKillManager(time) => {
            world.weather.begin(BOTH);
            let containerd = node.containerd_pid()?;
            signal(containerd, "STOP")?;
            node.end_manager().await?;
            let begun = Instant::now();
            // The API is back while containerd is not.
            let started = node.up().await;
            tokio::time::sleep(time.saturating_sub(begun.elapsed())).await;
            signal(containerd, "CONT")?;
            started
        }
        Fault::FillDisk(time) => {
            world.weather.begin(DISK);
            let path = state_dir(world).join("filler");
            let mut filler = File::create(&path)?;
            let begun = Instant::now();
            // Again and again: the store has something in reserve, and gives it up.
            while begun.elapsed() < time {
                fill(&mut filler)?;
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            drop(filler);
            std::fs::remove_file(path).context("freeing the disk")
        }
    }
}

pub(crate) fn state_dir(world: &World) -> PathBuf {
    world.node.home().join("state")
}

/// Writes until nothing fits any more.
fn fill(file: &mut File) -> anyhow::Result<()> {
    for size in [1 << 16, 1] {
        loop {
            match file.write_all(&vec![0; size]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("filling the disk"),
            }
        }
    }
    Ok(())
}

/// Starts what does not run, and waits until the node can do everything again.
async fn back(world: &World) -> anyhow::Result<()> {
    world.node.up().await?;
    let begun = Instant::now();
    loop {
        match world.node.audit().await {
            Ok(_) => return Ok(()),
            Err(status) => ensure!(begun.elapsed() < BACK, "the node is not back: {status}"),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
