//! The ends of tasks as containerd tells them. They are hints: what is true is asked afterwards.

use std::time::Duration;

use berth_domain::{SandboxId, names::parse_container_id};
use containerd_client::{
    events::{TaskExit, TaskOom},
    services::v1::{PublishRequest, SubscribeRequest},
};
use prost::Message as _;
use prost_types::Any;
use tokio::sync::mpsc;

use crate::client::Client;

const HELLO: &str = "/berth/hello";
const EXIT: &str = "/tasks/exit";
const OOM: &str = "/tasks/oom";
const RETRY: Duration = Duration::from_millis(500);
/// containerd answers a subscription with its first event only, so one is made until it has come.
const HELLO_EVERY: Duration = Duration::from_millis(100);

/// Sends hints until nobody takes them any more.
pub(crate) async fn follow(
    client: Client,
    namespace: String,
    hints: mpsc::Sender<Option<SandboxId>>,
) {
    while !hints.is_closed() {
        tokio::select! {
            () = subscription(&client, &namespace, &hints) => {}
            () = hints.closed() => return,
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// One subscription, until it ends.
async fn subscription(client: &Client, namespace: &str, hints: &mpsc::Sender<Option<SandboxId>>) {
    let filters = [HELLO, EXIT, OOM]
        .map(|topic| format!("namespace==\"{namespace}\",topic==\"{topic}\""))
        .to_vec();
    let mut events_client = client.events();
    let subscribing = events_client.subscribe(SubscribeRequest { filters });
    let subscribed = tokio::select! {
        subscribed = subscribing => subscribed,
        () = say_hello(client) => return,
    };
    let mut events = match subscribed {
        Ok(answer) => answer.into_inner(),
        Err(error) => {
            tracing::warn!(%error, "no events of containerd");
            return;
        }
    };
    // What ended before is not told.
    if hints.send(None).await.is_err() {
        return;
    }
    loop {
        match events.message().await {
            Ok(Some(event)) => {
                let hint = event
                    .event
                    .as_ref()
                    .and_then(|it| sandbox_of(&event.topic, it));
                if let Some(id) = hint
                    && hints.send(Some(id)).await.is_err()
                {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "the events of containerd broke off");
                return;
            }
        }
    }
}

/// Never returns but when containerd refuses.
async fn say_hello(client: &Client) {
    loop {
        let event = Any {
            type_url: "berth.Hello".to_owned(),
            value: vec![],
        };
        let request = PublishRequest {
            topic: HELLO.to_owned(),
            event: Some(event),
        };
        if let Err(error) = client
            .call("saying hello", client.events().publish(request))
            .await
        {
            tracing::debug!(error = %error.status, "containerd does not take events");
            return;
        }
        tokio::time::sleep(HELLO_EVERY).await;
    }
}

fn sandbox_of(topic: &str, event: &Any) -> Option<SandboxId> {
    let container = match topic {
        EXIT => TaskExit::decode(event.value.as_slice()).ok()?.container_id,
        OOM => TaskOom::decode(event.value.as_slice()).ok()?.container_id,
        _ => return None,
    };
    parse_container_id(&container).map(|(id, _)| id)
}
