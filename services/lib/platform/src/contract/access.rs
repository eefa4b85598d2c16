//! What a person reaches of a sandbox: files of its containers, and ports on its loopback.

use std::{fs::File, time::Instant};

use tokio::io::unix::AsyncFd;

use super::{DEADLINE, GRACE, POLL, PORT, Subject, app, bring_up, clear};
use crate::{ConnectError, Images, Network, Runtime};

pub async fn the_root_of_what_runs_is_opened_and_its_end_is_told<
    R: Runtime + Images,
    N: Network,
>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    let sandbox = subject.sandbox("contract-root");
    let id = &sandbox.id;
    assert!(runtime.root(id, &app()).await.unwrap().is_none(), "before");
    bring_up(runtime, network, subject, &sandbox).await;
    let root = runtime.root(id, &app()).await.unwrap().expect("it runs");
    assert!(File::from(root.dir).metadata().unwrap().is_dir());
    #[expect(
        deprecated,
        reason = "an owned descriptor stays the one that it is, which is all that its successor asks for"
    )]
    let ended = AsyncFd::new(root.ended).unwrap();
    let early = tokio::time::timeout(10 * POLL, ended.readable()).await;
    assert!(early.is_err(), "it runs");
    runtime.stop_task(id, &app(), GRACE).await.unwrap();
    let told = tokio::time::timeout(DEADLINE, ended.readable()).await;
    drop(told.expect("its end is told").unwrap());
    assert!(runtime.root(id, &app()).await.unwrap().is_none(), "after");
    clear(runtime, network, id).await;
}

pub async fn a_port_that_listens_is_connected_to_and_another_one_refuses<
    R: Runtime + Images,
    N: Network,
>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    let sandbox = subject.sandbox("contract-connect");
    let id = &sandbox.id;
    let before = network.connect(id, PORT).await;
    assert!(
        matches!(before, Err(ConnectError::Network(_))),
        "{before:?}"
    );
    bring_up(runtime, network, subject, &sandbox).await;
    let begun = Instant::now();
    while let Err(error) = network.connect(id, PORT).await {
        assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
        assert!(begun.elapsed() < DEADLINE, "{error:?}");
        tokio::time::sleep(POLL).await;
    }
    let other = network.connect(id, PORT + 1).await;
    assert!(
        matches!(other, Err(ConnectError::Refused { .. })),
        "{other:?}"
    );
    clear(runtime, network, id).await;
}
