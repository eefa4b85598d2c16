//! Follows the runs, as the manager tells them.

use berth_api::v1;

use crate::{
    config::Config,
    figures,
    manager::{Broken, Manager},
    state::State,
};

/// As many of each kind as the manager keeps, and those that begin meanwhile.
const RUNS_MAX: usize = 64;

pub(crate) async fn runs(
    manager: &Manager,
    config: &Config,
    state: &State,
) -> Result<std::convert::Infallible, Broken> {
    state.runs.send_replace(Default::default());
    let request = v1::WatchCollectionsRequest::default();
    let mut client = manager.collections();
    let mut stream = client.watch_collections(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        state.runs.send_modify(|runs| match message.collection {
            None => runs.synced = true,
            Some(it) => {
                let before = runs.by_id.get(&it.id);
                let was_open = before.is_none_or(|it| it.ended_at.is_none());
                if runs.synced && was_open && it.ended_at.is_some() {
                    figures::ended(&it);
                }
                runs.by_id.insert(it.id, it);
                while runs.by_id.len() > RUNS_MAX {
                    runs.by_id.pop_first();
                }
            }
        });
        tell_how_the_last_one_ended(config, state);
    }
    Err(Broken::Ended)
}

fn tell_how_the_last_one_ended(config: &Config, state: &State) {
    let runs = state.runs.borrow();
    let ended = runs.by_id.values().rev().find(|it| it.ended_at.is_some());
    let Some(it) = ended else { return };
    let became = match it.end() {
        v1::CollectionEnd::Abandoned => "was given up",
        v1::CollectionEnd::Complete | v1::CollectionEnd::Unspecified => "deleted nothing",
    };
    let aborted =
        (!it.aborted.is_empty()).then(|| format!("run {} {became}: {}", it.id, it.aborted));
    // What images cannot free the blobs may, which come next.
    let is_last = it.kind() == v1::CollectionKind::Blobs || !config.collect_blobs;
    let missed = (it.goal_missed_bytes > 0 && is_last).then(|| {
        let largest = it.largest_held.first();
        let largest = largest.map_or_else(String::new, |it| {
            format!("; the largest that is in use is {}", it.object)
        });
        let (id, missed) = (it.id, it.goal_missed_bytes);
        format!("run {id} cannot free {missed} bytes of its goal{largest}")
    });
    drop(runs);
    state.alarm("run", aborted);
    state.alarm("goal", missed);
}
