//! Follows the sandboxes of a manager: the watch is resumed where it broke off, and begun anew where it cannot be.

use std::{convert::Infallible, time::Duration};

use berth_api::{
    Target,
    v1::{self, sandbox_service_client::SandboxServiceClient, watch_response::Event},
};
use tonic::{Code, Status};

/// A manager is back within seconds of its restart.
const RETRY: Duration = Duration::from_millis(500);

/// What the manager says.
#[derive(Clone, Debug)]
pub enum Fact {
    /// All that there is; whatever was known before and is not among them is gone.
    All(Vec<v1::Sandbox>),
    One(Box<v1::Sandbox>),
    Gone {
        id: String,
        generation: u64,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("the manager is not reachable")]
    Connect(#[from] berth_api::ConnectError),
    #[error("{}", .0.message())]
    Call(#[from] Box<Status>),
    #[error("the manager has ended the stream")]
    Ended,
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

/// Follows for ever. `follows` is told when all that stands is known, and when the stream breaks off.
pub async fn follow_sandboxes(
    manager: &Target,
    mut learn: impl FnMut(Fact),
    follows: impl Fn(bool),
) -> Infallible {
    let (mut revision, mut last) = (0, String::new());
    loop {
        let Err(broken) = stream(manager, &mut revision, &mut learn, &follows).await;
        follows(false);
        let error = chain(&broken);
        // While the manager is away, once is enough.
        if error != last {
            tracing::warn!(error, "the watch broke off; it is resumed");
            last = error;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn stream(
    manager: &Target,
    revision: &mut u64,
    learn: &mut impl FnMut(Fact),
    follows: &impl Fn(bool),
) -> Result<Infallible, Broken> {
    let mut client = SandboxServiceClient::new(manager.connect().await?);
    let from_revision = *revision;
    let request = v1::WatchRequest {
        from_revision,
        id: String::new(),
    };
    let mut messages = anew(client.watch(request).await, revision)?.into_inner();
    // A resumed watch has nothing to wait for.
    let mut standing = (from_revision == 0).then(Vec::new);
    if standing.is_none() {
        follows(true);
    }
    while let Some(message) = anew(messages.message().await, revision)? {
        match (message.event, &mut standing) {
            (Some(Event::Synced(_)), standing) => {
                if let Some(all) = standing.take() {
                    learn(Fact::All(all));
                }
                follows(true);
            }
            (Some(Event::Sandbox(it)), Some(standing)) => standing.push(it),
            (Some(Event::Sandbox(it)), None) => learn(Fact::One(Box::new(it))),
            (Some(Event::Removed(it)), _) => learn(Fact::Gone {
                id: it.id,
                generation: it.generation,
            }),
            (None, _) => {}
        }
        if message.revision > 0 {
            *revision = message.revision;
        }
    }
    Err(Broken::Ended)
}

/// Where the manager does not know the revision to resume from, the next try begins with all that stands.
fn anew<T>(answer: Result<T, Status>, revision: &mut u64) -> Result<T, Status> {
    answer.inspect_err(|status| {
        if status.code() == Code::OutOfRange {
            *revision = 0;
        }
    })
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        chain = format!("{chain}: {cause}");
        source = cause.source();
    }
    chain
}
