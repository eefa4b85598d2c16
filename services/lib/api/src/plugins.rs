//! Processes beside the manager on the wire.

use std::time::{Duration, SystemTime};

use berth_domain::{
    Failure,
    plugins::{Heartbeat, LastRun, Plugin, PluginState},
};

use crate::v1;

const NAME_MAX: usize = 63;
const INSTANCE_MAX: usize = 128;
const VERSION_MAX: usize = 64;
const ADDRESS_MAX: usize = 256;
const REASON_MAX: usize = 1024;
const RESULT_MAX: usize = 256;
const TIME_TO_LIVE: Duration = Duration::from_secs(10);
const TIME_TO_LIVE_MIN: Duration = Duration::from_secs(1);
const TIME_TO_LIVE_MAX: Duration = Duration::from_secs(600);

type Parsed<T> = Result<T, Failure>;

fn invalid<T>(field: &str, problem: impl std::fmt::Display) -> Parsed<T> {
    Err(Failure::invalid(field, problem))
}

pub fn heartbeat_from_proto(it: v1::HeartbeatRequest) -> Parsed<Heartbeat> {
    let of_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    if !(1..=NAME_MAX).contains(&it.name.len()) || !it.name.bytes().all(of_name) {
        let problem = format!("must be 1 to {NAME_MAX} bytes of `[a-z0-9._-]`");
        return invalid("name", problem);
    }
    let of_instance = |b: u8| b.is_ascii_alphanumeric() || b"._/-".contains(&b);
    if it.instance.len() > INSTANCE_MAX || !it.instance.bytes().all(of_instance) {
        let problem = format!("must be at most {INSTANCE_MAX} bytes of `[A-Za-z0-9._/-]`");
        return invalid("instance", problem);
    }
    for (field, text, most) in [
        ("version", &it.version, VERSION_MAX),
        ("address", &it.address, ADDRESS_MAX),
        ("reason", &it.reason, REASON_MAX),
    ] {
        if text.len() > most {
            return invalid(field, format!("must be at most {most} bytes"));
        }
    }
    let serving = match v1::PluginState::try_from(it.state) {
        Ok(v1::PluginState::Unspecified | v1::PluginState::Serving) => true,
        Ok(v1::PluginState::NotServing) => false,
        Ok(v1::PluginState::Away) | Err(_) => {
            return invalid("state", "must be SERVING or NOT_SERVING");
        }
    };
    let time_to_live = match it.time_to_live {
        None => TIME_TO_LIVE,
        Some(it) => match Duration::try_from(it) {
            Ok(it) if (TIME_TO_LIVE_MIN..=TIME_TO_LIVE_MAX).contains(&it) => it,
            Ok(_) | Err(_) => return invalid("time_to_live", "must be 1 s to 10 min"),
        },
    };
    Ok(Heartbeat {
        name: it.name,
        instance: it.instance,
        version: it.version,
        address: it.address,
        started_at: time("started_at", it.started_at)?,
        time_to_live,
        serving,
        reason: it.reason,
        last_run: it.last_run.map(run_from_proto).transpose()?,
        leaving: it.leaving,
    })
}

fn run_from_proto(it: v1::PluginRun) -> Parsed<LastRun> {
    if it.result.len() > RESULT_MAX {
        let problem = format!("must be at most {RESULT_MAX} bytes");
        return invalid("last_run.result", problem);
    }
    Ok(LastRun {
        ended_at: time("last_run.ended_at", it.ended_at)?,
        succeeded: it.succeeded,
        result: it.result,
    })
}

fn time(field: &str, it: Option<prost_types::Timestamp>) -> Parsed<SystemTime> {
    match it.map(SystemTime::try_from) {
        Some(Ok(it)) => Ok(it),
        Some(Err(_)) => invalid(field, "is no time"),
        None => invalid(field, "must be set"),
    }
}

/// `at` says what a time of the manager's is on the clock.
pub fn plugin_to_proto(
    it: Plugin,
    now: Duration,
    at: impl Fn(Duration) -> SystemTime,
) -> v1::Plugin {
    let state = match it.state(now) {
        PluginState::Serving => v1::PluginState::Serving,
        PluginState::NotServing => v1::PluginState::NotServing,
        PluginState::Away => v1::PluginState::Away,
    };
    let Plugin { said, heard_at } = it;
    v1::Plugin {
        name: said.name,
        instance: said.instance,
        version: said.version,
        address: said.address,
        started_at: Some(said.started_at.into()),
        state: state.into(),
        reason: said.reason,
        heard_at: Some(at(heard_at).into()),
        last_run: said.last_run.map(|it| v1::PluginRun {
            ended_at: Some(it.ended_at.into()),
            succeeded: it.succeeded,
            result: it.result,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> v1::HeartbeatRequest {
        v1::HeartbeatRequest {
            name: "metrics".to_owned(),
            started_at: Some(SystemTime::UNIX_EPOCH.into()),
            ..v1::HeartbeatRequest::default()
        }
    }

    #[test]
    fn a_heartbeat_needs_a_name_and_a_start_and_has_defaults_for_the_rest() {
        let heard = heartbeat_from_proto(request()).unwrap();
        assert_eq!(heard.time_to_live, TIME_TO_LIVE);
        assert!(heard.serving && heard.instance.is_empty() && heard.last_run.is_none());
    }

    #[test]
    #[rustfmt::skip]
    fn a_heartbeat_that_cannot_be_taken_names_its_field() {
        let run = |result: String, ended_at| Some(v1::PluginRun { ended_at, succeeded: true, result });
        let (now, long) = (Some(SystemTime::UNIX_EPOCH.into()), |most: usize| "x".repeat(most + 1));
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let cases = [
            ("name",              v1::HeartbeatRequest { name: String::new(), ..request() }),
            ("name",              v1::HeartbeatRequest { name: "Metrics".to_owned(), ..request() }),
            ("name",              v1::HeartbeatRequest { name: long(NAME_MAX), ..request() }),
            ("instance",          v1::HeartbeatRequest { instance: "a b".to_owned(), ..request() }),
            ("instance",          v1::HeartbeatRequest { instance: long(INSTANCE_MAX), ..request() }),
            ("version",           v1::HeartbeatRequest { version: long(VERSION_MAX), ..request() }),
            ("address",           v1::HeartbeatRequest { address: long(ADDRESS_MAX), ..request() }),
            ("reason",            v1::HeartbeatRequest { reason: long(REASON_MAX), ..request() }),
            ("started_at",        v1::HeartbeatRequest { started_at: None, ..request() }),
            ("time_to_live",      v1::HeartbeatRequest { time_to_live: seconds(0), ..request() }),
            ("time_to_live",      v1::HeartbeatRequest { time_to_live: seconds(601), ..request() }),
            ("time_to_live",      v1::HeartbeatRequest { time_to_live: seconds(-1), ..request() }),
            ("state",             v1::HeartbeatRequest { state: v1::PluginState::Away.into(), ..request() }),
            ("state",             v1::HeartbeatRequest { state: 99, ..request() }),
            ("last_run.ended_at", v1::HeartbeatRequest { last_run: run(String::new(), None), ..request() }),
            ("last_run.result",   v1::HeartbeatRequest { last_run: run(long(RESULT_MAX), now), ..request() }),
        ];
        for (field, request) in cases {
            let failure = heartbeat_from_proto(request).unwrap_err();
            assert_eq!(failure.violations[0].field, field);
        }
        let most = |most: usize| "x".repeat(most);
        let at_every_bound = v1::HeartbeatRequest {
            name: most(NAME_MAX), instance: most(INSTANCE_MAX), version: most(VERSION_MAX), address: most(ADDRESS_MAX),
            reason: most(REASON_MAX), time_to_live: seconds(600), last_run: run(most(RESULT_MAX), now), ..request()
        };
        heartbeat_from_proto(at_every_bound).unwrap();
    }
}
