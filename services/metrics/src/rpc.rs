//! `MetricsService`.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, PoisonError, RwLockReadGuard, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use berth_api::{
    status, usage_to_proto,
    v1::{self, metrics_service_server::MetricsService},
};
use berth_domain::{Failure, SandboxId, usage::Traffic};
use futures::{Stream, StreamExt as _, stream};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_stream::wrappers::IntervalStream;
use tonic::{Request, Response, Status};

use crate::{
    figures::Figures,
    sampler::Pace,
    series::{Book, SharedBook, Span, Taken, Watched},
};

/// Of one message of a round.
const PART: usize = 256;
const IDS_MAX: usize = 1000;
const SECONDS_MAX: u32 = 900;

#[derive(Clone, Debug)]
pub(crate) struct MetricsRpc {
    pub(crate) book: SharedBook,
    pub(crate) pace: Arc<Pace>,
    pub(crate) follows: watch::Receiver<bool>,
}

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl MetricsService for MetricsRpc {
    type GatherStream = Answer<v1::GatherResponse>;

    async fn gather(
        &self,
        request: Request<v1::GatherRequest>,
    ) -> Result<Response<Self::GatherStream>, Status> {
        let request = request.into_inner();
        let ids = self.wanted(&request.sandboxes)?;
        let step = seconds("step_seconds", request.step_seconds)?;
        let since = request.since.map(|it| moment("since", it)).transpose()?;
        let until = request.until.map(|it| moment("until", it)).transpose()?;
        let span = match (since, until) {
            (None, None) => Span::Latest,
            (since, until) => Span::Between(
                since.unwrap_or_default(),
                until.unwrap_or(u64::MAX),
                u64::from(step) * 1000,
            ),
        };
        let book = self.book.clone();
        // One sandbox at a time, as fast as the caller takes them.
        let series = stream::iter(ids).flat_map(move |id| {
            let series = of_sandbox(&read(&book), &id, span, request.containers);
            stream::iter(series)
        });
        let answers = series.map(|it| Ok(v1::GatherResponse { series: Some(it) }));
        Ok(Response::new(answers.boxed()))
    }

    type MonitorStream = Answer<v1::MonitorResponse>;

    async fn monitor(
        &self,
        request: Request<v1::MonitorRequest>,
    ) -> Result<Response<Self::MonitorStream>, Status> {
        let request = request.into_inner();
        let asked = (!request.sandboxes.is_empty()).then(|| self.wanted(&request.sandboxes));
        let asked = asked.transpose()?;
        let seconds = seconds("interval_seconds", request.interval_seconds)?;
        let mut ticks = interval(Duration::from_secs(seconds.into()));
        // Whoever is slow is told how things stand, not how they stood.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let book = self.book.clone();
        let rounds = IntervalStream::new(ticks).flat_map(move |_| {
            let book = read(&book);
            let ids = asked.clone().unwrap_or_else(|| book.ids());
            let series = ids
                .iter()
                .flat_map(|id| of_sandbox(&book, id, Span::Latest, request.containers));
            stream::iter(parts(series.collect()))
        });
        Ok(Response::new(rounds.map(Ok).boxed()))
    }

    async fn get_metrics_status(
        &self,
        _: Request<v1::GetMetricsStatusRequest>,
    ) -> Result<Response<v1::GetMetricsStatusResponse>, Status> {
        let (sandboxes, series, bytes) = read(&self.book).size();
        Ok(Response::new(v1::GetMetricsStatusResponse {
            version: berth_version::VERSION.to_owned(),
            manager_reachable: *self.follows.borrow(),
            sandboxes: sandboxes as u64,
            series: series as u64,
            history_bytes: bytes as u64,
            memory_rss_bytes: berth_daemon::resident_bytes(),
            round_micros: self.pace.round_micros.load(Relaxed),
            rounds_missed: self.pace.missed.load(Relaxed),
            open_files: self.pace.open_files.load(Relaxed),
        }))
    }
}

impl MetricsRpc {
    /// The ids that were asked for, or all.
    fn wanted(&self, ids: &[String]) -> Result<Vec<String>, Status> {
        if ids.len() > IDS_MAX {
            let problem = format!("has {} ids, must have at most {IDS_MAX}", ids.len());
            return Err(status(Failure::invalid("sandboxes", problem)));
        }
        for (number, id) in ids.iter().enumerate() {
            let field = || format!("sandboxes[{number}]");
            SandboxId::parse(id).map_err(|it| status(Failure::invalid(field(), it)))?;
        }
        match ids {
            [] => Ok(read(&self.book).ids()),
            ids => Ok(ids.to_vec()),
        }
    }
}

fn read(book: &SharedBook) -> RwLockReadGuard<'_, Book> {
    book.read().unwrap_or_else(PoisonError::into_inner)
}

/// 0 is 1.
fn seconds(field: &str, number: u32) -> Result<u32, Status> {
    if number > SECONDS_MAX {
        let problem = format!("is {number}, must be 1 to {SECONDS_MAX}");
        return Err(status(Failure::invalid(field, problem)));
    }
    Ok(number.max(1))
}

/// In milliseconds since 1970.
fn moment(field: &str, it: prost_types::Timestamp) -> Result<u64, Status> {
    let time = SystemTime::try_from(it);
    let since = time.ok().and_then(|it| it.duration_since(UNIX_EPOCH).ok());
    let millis = since.and_then(|it| u64::try_from(it.as_millis()).ok());
    millis.ok_or_else(|| status(Failure::invalid(field, "must be a time after 1970")))
}

fn of_sandbox(book: &Book, id: &str, span: Span, containers: bool) -> Vec<v1::UsageSeries> {
    let Some((watched, taken)) = book.gather(id, span, containers) else {
        return vec![];
    };
    taken
        .into_iter()
        .map(|it| series_to_proto(id, &watched, it))
        .collect()
}

fn series_to_proto(id: &str, watched: &Watched, taken: Taken) -> v1::UsageSeries {
    let samples = taken.samples.into_iter();
    v1::UsageSeries {
        sandbox: id.to_owned(),
        generation: watched.generation,
        container: taken.container.unwrap_or_default(),
        version: watched.version.clone(),
        samples: samples.map(|(at, it)| sample_to_proto(at, &it)).collect(),
    }
}

fn sample_to_proto(at: u64, it: &Figures) -> v1::UsageSample {
    let measured_at = UNIX_EPOCH.checked_add(Duration::from_millis(at));
    v1::UsageSample {
        measured_at: measured_at.map(Into::into),
        usage: Some(usage_to_proto(&it.usage)),
        network: it.traffic.map(traffic_to_proto),
    }
}

fn traffic_to_proto(it: Traffic) -> v1::NetworkUsage {
    v1::NetworkUsage {
        received_bytes: it.received_bytes,
        sent_bytes: it.sent_bytes,
        received_packets: it.received_packets,
        sent_packets: it.sent_packets,
        received_drops: it.received_drops,
        sent_drops: it.sent_drops,
    }
}

/// A round in messages, at least one.
fn parts(series: Vec<v1::UsageSeries>) -> VecDeque<v1::MonitorResponse> {
    let parts = series.chunks(PART).map(|it| v1::MonitorResponse {
        series: it.to_vec(),
        complete: false,
    });
    let mut parts: VecDeque<_> = parts.collect();
    if parts.is_empty() {
        parts.push_back(v1::MonitorResponse::default());
    }
    if let Some(last) = parts.back_mut() {
        last.complete = true;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_comes_in_parts_of_which_the_last_says_so() {
        for (count, lengths) in [
            (0, vec![0]),
            (1, vec![1]),
            (256, vec![256]),
            (600, vec![256, 256, 88]),
        ] {
            let parts = parts(vec![v1::UsageSeries::default(); count]);
            let found: Vec<_> = parts.iter().map(|it| it.series.len()).collect();
            assert_eq!(found, lengths);
            let complete = parts.iter().filter(|it| it.complete).count();
            assert!(complete == 1 && parts.back().unwrap().complete);
        }
    }

    #[test]
    fn seconds_are_one_to_nine_hundred() {
        assert_eq!(seconds("step_seconds", 0).unwrap(), 1);
        assert_eq!(seconds("step_seconds", 900).unwrap(), 900);
        assert!(seconds("step_seconds", 901).is_err());
        let before = prost_types::Timestamp {
            seconds: -1,
            nanos: 0,
        };
        assert!(moment("since", before).is_err());
    }
}
