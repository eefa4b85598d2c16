//! Commands on the watchdog: plan, run, status.

use berth_api::v1::{self, watchdog_service_client::WatchdogServiceClient};
use jiff::Timestamp;
use tonic::transport::Channel;

use super::Session;
use crate::{
    args::{Watchdog, WatchdogAddress},
    errors::Failure,
    output::{duration, moment, page, short_duration, size, table, word},
    proto_json::ProtoJson,
};

/// Of a plan, in bytes.
const PLAN_MAX: usize = 512 << 20;

pub(super) async fn run(session: &Session, command: Watchdog) -> Result<(), Failure> {
    match command {
        Watchdog::Plan { at } => plan(session, &at).await,
        Watchdog::Run { at } => run_now(session, &at).await,
        Watchdog::Status { at } => status(session, &at).await,
    }
}

async fn client(
    session: &Session,
    at: &WatchdogAddress,
) -> Result<WatchdogServiceClient<Channel>, Failure> {
    let named = at.watchdog_address.as_ref();
    match session.connect_beside("watchdog", named).await {
        Ok((_, channel)) => {
            Ok(WatchdogServiceClient::new(channel).max_decoding_message_size(PLAN_MAX))
        }
        Err(Failure::Unreachable { address, source }) => {
            Err(Failure::NoWatchdog { address, source })
        }
        Err(failure) => Err(failure),
    }
}

async fn plan(session: &Session, at: &WatchdogAddress) -> Result<(), Failure> {
    let mut client = client(session, at).await?;
    let request = session.request(v1::WatchdogServicePlanRequest {});
    let plan = client.plan(request).await?.into_inner();
    Ok(session
        .output
        .object(&ProtoJson(&plan), || plan_table(&plan))?)
}

fn plan_table(plan: &v1::WatchdogServicePlanResponse) -> String {
    if plan.objects.is_empty() {
        return "no orphans".to_owned();
    }
    let rows = plan.objects.iter().map(|it| {
        let age = it.age.as_ref();
        [
            it.kind.clone(),
            it.name.clone(),
            it.sandbox.clone(),
            age.map_or_else(String::new, |it| short_duration(duration(Some(it)))),
            it.explanation.clone(),
        ]
    });
    let columns = ["KIND", "NAME", "SANDBOX", "AGE", "WHY"];
    let orphans = plan.objects.len();
    format!("{}\n\n{orphans} orphans", table(columns, rows.collect()))
}

async fn run_now(session: &Session, at: &WatchdogAddress) -> Result<(), Failure> {
    let mut client = client(session, at).await?;
    let request = session.request(v1::WatchdogServiceRunRequest {});
    let answer = client.run(request).await?.into_inner();
    let run = answer.run.ok_or(Failure::Incomplete("run"))?;
    session
        .output
        .object(&ProtoJson(&run), || run_table(&run))?;
    match run.failed.len() {
        0 => Ok(()),
        failed => Err(Failure::NotRemoved(failed)),
    }
}

fn run_table(run: &v1::WatchdogRun) -> String {
    let row = |outcome: &str, it: &v1::WatchdogObject| {
        [
            outcome.to_owned(),
            it.kind.clone(),
            it.name.clone(),
            it.sandbox.clone(),
            it.reason.clone(),
        ]
    };
    let deleted = run.deleted.iter().map(|it| row("DELETED", it));
    let failed = run.failed.iter().map(|it| row("FAILED", it));
    let left = run.left.iter().map(|it| row("LEFT", it));
    let rows: Vec<_> = deleted.chain(failed).chain(left).collect();
    let summary = in_words(run);
    if rows.is_empty() {
        return summary;
    }
    let columns = ["OUTCOME", "KIND", "NAME", "SANDBOX", "REASON"];
    format!("{}\n\n{summary}", table(columns, rows))
}

fn in_words(run: &v1::WatchdogRun) -> String {
    if !run.problem.is_empty() {
        return format!("it broke off: {}", run.problem);
    }
    let (deleted, failed, left) = (run.deleted.len(), run.failed.len(), run.left.len());
    match run.first_look {
        0 => "no orphans".to_owned(),
        seen => format!("of {seen} orphans {deleted} deleted, {failed} failed, {left} left"),
    }
}

async fn status(session: &Session, at: &WatchdogAddress) -> Result<(), Failure> {
    let mut client = client(session, at).await?;
    let request = session.request(v1::GetWatchdogStatusRequest {});
    let status = client.get_watchdog_status(request).await?.into_inner();
    Ok(session.output.object(&ProtoJson(&status), || {
        status_page(&status, Timestamp::now())
    })?)
}

fn status_page(status: &v1::GetWatchdogStatusResponse, now: Timestamp) -> String {
    let manager = match status.manager_reachable {
        true => "answers",
        false => "does not answer: nothing is removed",
    };
    let next = match status.running {
        true => "a run is under way".to_owned(),
        false => moment(status.next_run_at.as_ref()),
    };
    let mut lines = vec![
        ("watchdog", status.name.clone()),
        ("version", status.version.clone()),
        ("memory", size(status.memory_rss_bytes)),
        ("manager", manager.to_owned()),
        ("next run", next),
    ];
    if let Some(run) = &status.last_run {
        let cause = word(run.cause().as_str_name(), "WATCHDOG_CAUSE_").to_lowercase();
        let age = crate::output::age(run.ended_at.as_ref(), now);
        lines.push(("last run", format!("{cause}, {age} ago: {}", in_words(run))));
        let told = run.failed.iter().chain(&run.left);
        let told = told.map(|it| format!("{} {}: {}", it.kind, it.name, it.reason));
        lines.push(("not removed", told.collect::<Vec<_>>().join("\n")));
    }
    page(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, reason: &str) -> v1::WatchdogObject {
        v1::WatchdogObject {
            kind: "container".to_owned(),
            name: name.to_owned(),
            sandbox: "db".to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn ran() -> v1::WatchdogRun {
        v1::WatchdogRun {
            cause: v1::WatchdogCause::Scheduled.into(),
            first_look: 3,
            deleted: vec![object("a", "")],
            failed: vec![object("b", "no")],
            left: vec![object("c", "of sandbox c")],
            ..v1::WatchdogRun::default()
        }
    }

    #[test]
    fn a_run_lists_what_became_of_each_object_and_sums_it_up() {
        assert_eq!(
            run_table(&ran()),
            "OUTCOME  KIND       NAME  SANDBOX  REASON\n\
             DELETED  container  a     db       -\n\
             FAILED   container  b     db       no\n\
             LEFT     container  c     db       of sandbox c\n\
             \n\
             of 3 orphans 1 deleted, 1 failed, 1 left"
        );
        assert_eq!(run_table(&v1::WatchdogRun::default()), "no orphans");
    }

    #[test]
    fn a_status_says_what_was_not_removed_and_why_a_run_broke_off() {
        let mut status = v1::GetWatchdogStatusResponse {
            last_run: Some(ran()),
            ..v1::GetWatchdogStatusResponse::default()
        };
        let text = status_page(&status, Timestamp::now());
        for part in [
            "does not answer",
            "scheduled",
            "container b: no",
            "container c: of",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        let broken = v1::WatchdogRun {
            problem: "the manager is not reachable".to_owned(),
            ..v1::WatchdogRun::default()
        };
        status.last_run = Some(broken);
        let text = status_page(&status, Timestamp::now());
        assert!(
            text.contains("broke off: the manager is not reachable"),
            "{text}"
        );
    }

    #[test]
    fn a_plan_without_orphans_says_so() {
        let plan = v1::WatchdogServicePlanResponse { objects: vec![] };
        assert_eq!(plan_table(&plan), "no orphans");
    }
}
