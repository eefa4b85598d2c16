//! How many images come at a time. What is pulled is asked of the contract and of the end-to-end tests.

use std::os::unix::net::UnixListener;

use futures::{FutureExt as _, poll};
use tokio::sync::watch;

use super::*;
use crate::Settings;

#[tokio::test]
async fn so_many_images_are_pulled_at_once_and_the_next_goes_when_one_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let accounts = dir.path().join("accounts");
    std::fs::write(&accounts, "{}").unwrap();
    let mut settings = Settings::of_none(dir.path());
    settings.pulls_at_once = 2;
    settings.registries.credentials_file = Some(accounts.clone());
    // It takes calls and answers none.
    let _silent = UnixListener::bind(&settings.address).unwrap();
    let containerd = Containerd::connect(settings).unwrap();
    let (image, progress) = (ImageRef::parse("app").unwrap(), watch::Sender::default());
    let pull = || containerd.fetch(&image, None, &progress).boxed();
    let (mut first, mut second, mut third) = (pull(), pull(), pull());
    assert!(poll!(&mut first).is_pending());
    assert!(poll!(&mut second).is_pending());
    // Whoever goes from here on fails.
    std::fs::remove_file(accounts).unwrap();
    assert!(poll!(&mut third).is_pending(), "it waits");
    drop(first);
    let went = third.now_or_never().expect("it goes");
    let is = matches!(went, Err(ImageError::CredentialsUnreadable { .. }));
    assert!(is, "{went:?}");
    drop(second);
}
