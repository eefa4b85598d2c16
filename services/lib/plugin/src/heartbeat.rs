//! Says to the manager, every few seconds, that a process is there and how it is.

use std::{
    convert::Infallible,
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use berth_api::{
    Target,
    v1::{self, plugin_service_client::PluginServiceClient},
};
use tokio::time::Instant;
use tonic::{Status, transport::Channel};

use crate::follow::{Broken, chain};

/// A manager that was started again knows all processes after this time.
const EVERY: Duration = Duration::from_secs(2);
/// That a process comes to be well, or no longer is, is told within this time.
const LOOK: Duration = Duration::from_millis(200);
/// Several heartbeats may be lost on a node that is busy.
const TIME_TO_LIVE: Duration = Duration::from_secs(10);
/// A manager that does not answer for so long is away.
const LIMIT: Duration = Duration::from_secs(5);
/// A manager that does not answer does not keep a process from its end.
const LIMIT_OF_FAREWELL: Duration = Duration::from_secs(1);
/// Of the contract, in bytes.
const REASON_MAX: usize = 1024;
const RESULT_MAX: usize = 256;

/// When this process began.
static STARTED_AT: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);

/// Which process it is.
#[derive(Clone, Debug)]
pub struct Plugin {
    pub name: &'static str,
    /// Which of several of this name; empty for the only one.
    pub instance: String,
    /// Where it answers itself.
    pub address: String,
    pub version: &'static str,
}

/// How a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Why it cannot do its work.
    pub problem: Option<String>,
    pub last_run: Option<LastRun>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastRun {
    pub ended_at: SystemTime,
    pub succeeded: bool,
    pub result: String,
}

/// Beats for ever. `heard` is told after each try whether the manager answers.
pub async fn heartbeat(
    manager: &Target,
    plugin: Plugin,
    beat: impl Fn() -> Beat,
    heard: impl Fn(bool),
) -> Infallible {
    let (mut client, mut last) = (None, String::new());
    loop {
        let request = request(&plugin, *STARTED_AT, beat());
        let state = request.state();
        let told = tokio::time::timeout(LIMIT, tell(manager, &mut client, request)).await;
        let error = match told {
            Ok(Ok(())) => String::new(),
            Ok(Err(error)) => chain(&error),
            Err(_) => "the manager does not answer".to_owned(),
        };
        if !error.is_empty() {
            client = None;
        }
        heard(error.is_empty());
        // While the manager is away, once is enough.
        if !error.is_empty() && error != last {
            tracing::warn!(error, "the manager did not take a heartbeat");
        }
        last = error;
        rest(state, &beat).await;
    }
}

/// Waits until the next heartbeat is due.
async fn rest(told: v1::PluginState, beat: impl Fn() -> Beat) {
    let told_at = Instant::now();
    while !is_due(told_at, told, Instant::now(), state(&beat())) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether the next heartbeat is due: it is time for it, or the process is not as it told.
fn is_due(told_at: Instant, told: v1::PluginState, now: Instant, is: v1::PluginState) -> bool {
    now >= told_at + EVERY || is != told
}

fn state(beat: &Beat) -> v1::PluginState {
    match beat.problem {
        None => v1::PluginState::Serving,
        Some(_) => v1::PluginState::NotServing,
    }
}

/// Says that the process stops in order, so that nobody takes it for one that was lost.
pub async fn farewell(manager: &Target, plugin: &Plugin) {
    let request = v1::HeartbeatRequest {
        leaving: true,
        ..request(plugin, *STARTED_AT, Beat::default())
    };
    let said = tokio::time::timeout(LIMIT_OF_FAREWELL, tell(manager, &mut None, request)).await;
    let error = match said {
        Ok(Ok(())) => return,
        Ok(Err(error)) => chain(&error),
        Err(_) => "the manager does not answer".to_owned(),
    };
    tracing::info!(error, "the manager takes this process for lost");
}

async fn tell(
    manager: &Target,
    client: &mut Option<PluginServiceClient<Channel>>,
    request: v1::HeartbeatRequest,
) -> Result<(), Broken> {
    let client = match client {
        Some(client) => client,
        None => {
            let channel = manager.connect().await?;
            client.insert(PluginServiceClient::new(channel))
        }
    };
    let answer: Result<_, Status> = client.heartbeat(request).await;
    answer?;
    Ok(())
}

fn request(plugin: &Plugin, started_at: SystemTime, beat: Beat) -> v1::HeartbeatRequest {
    let state = state(&beat);
    v1::HeartbeatRequest {
        name: plugin.name.to_owned(),
        instance: plugin.instance.clone(),
        version: plugin.version.to_owned(),
        address: plugin.address.clone(),
        started_at: Some(started_at.into()),
        time_to_live: TIME_TO_LIVE.try_into().ok(),
        state: state.into(),
        reason: cut(beat.problem.unwrap_or_default(), REASON_MAX),
        last_run: beat.last_run.map(|it| v1::PluginRun {
            ended_at: Some(it.ended_at.into()),
            succeeded: it.succeeded,
            result: cut(it.result, RESULT_MAX),
        }),
        leaving: false,
    }
}

fn cut(mut text: String, most: usize) -> String {
    let end = (0..=most.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or_default());
    text
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_process_that_comes_to_be_well_says_so_at_the_next_look() {
        let looks = Cell::new(0);
        let beat = || {
            looks.set(looks.get() + 1);
            Beat {
                problem: (looks.get() < 3).then(|| "not yet".to_owned()),
                last_run: None,
            }
        };
        rest(v1::PluginState::NotServing, beat).await;
        assert_eq!(looks.get(), 3);
    }

    #[test]
    fn a_process_that_is_as_it_told_tells_it_again_when_the_next_heartbeat_is_due() {
        let (told_at, little) = (Instant::now(), Duration::from_nanos(1));
        let told = v1::PluginState::Serving;
        for (since, is, due) in [
            (EVERY - little, told, false),
            (EVERY, told, true),
            (little, v1::PluginState::NotServing, true),
        ] {
            assert_eq!(is_due(told_at, told, told_at + since, is), due, "{since:?}");
        }
    }

    #[test]
    fn a_heartbeat_fits_into_the_contract_however_long_its_words_are() {
        let plugin = Plugin {
            name: "watchdog",
            instance: String::new(),
            address: String::new(),
            version: "1",
        };
        let long = || "ä".repeat(1000);
        let beat = Beat {
            problem: Some(long()),
            last_run: Some(LastRun {
                ended_at: SystemTime::UNIX_EPOCH,
                succeeded: false,
                result: format!("x{}", long()),
            }),
        };
        let request = request(&plugin, SystemTime::UNIX_EPOCH, beat);
        assert_eq!(request.state(), v1::PluginState::NotServing);
        assert_eq!(request.reason.len(), REASON_MAX);
        let result = request.last_run.unwrap().result;
        assert_eq!(result.len(), RESULT_MAX - 1, "no letter is cut in two");
    }
}
