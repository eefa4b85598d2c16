//! What breaks, what is slow, and what refuses.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use berth_platform::ImageError;
use proptest::prelude::*;
use tokio::sync::mpsc;

use crate::{
    DOCUMENT_MAX, Image, assert_same, blob, digest, kind, pull, repository,
    server::{Answer, Asked, End, Server},
    settings,
};

/// A registry that answers the first request for a path otherwise.
async fn once(image: &Arc<Image>, path: String, first: Answer) -> Server {
    let (image, first) = (image.clone(), Mutex::new(Some(first)));
    Server::start(move |asked| {
        let first = (asked.path == path).then(|| first.lock().unwrap().take());
        first.flatten().unwrap_or_else(|| image.answer(asked))
    })
    .await
}

/// A registry that always answers so.
async fn always(answer: Answer) -> Server {
    Server::start(move |_| answer.clone()).await
}

async fn failure(server: &Server) -> ImageError {
    let repository = repository(settings(), &server.address.to_string(), None).unwrap();
    let got = repository.document("1", None, DOCUMENT_MAX).await;
    got.unwrap_err()
}

#[tokio::test]
async fn a_manifest_of_the_most_bytes_is_taken_and_one_more_byte_is_corrupt() {
    let of = async |length: u64| {
        let server = always(Answer::ok(vec![b' '; length as usize])).await;
        let repository = repository(settings(), &server.address.to_string(), None).unwrap();
        repository.document("1", None, DOCUMENT_MAX).await
    };
    let most = of(DOCUMENT_MAX).await.unwrap();
    assert_eq!(most.bytes.len() as u64, DOCUMENT_MAX);
    let error = of(DOCUMENT_MAX + 1).await.err().unwrap();
    assert_eq!(kind(&error), "corrupt", "{error}");
}

#[tokio::test]
async fn a_pull_that_is_cut_off_at_any_byte_goes_on_to_its_end() {
    let image = Image::small();
    let manifest = "/v2/team/app/manifests/1".to_owned();
    for (path, body) in [
        (manifest, &image.manifest),
        (Image::path(&image.config), &image.config),
        (Image::path(&image.layer), &image.layer),
    ] {
        let head = format!(
            "HTTP/1.1 200 Test\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        for cut in 0..head.len() + body.len() {
            let answer = Answer::ok(body.clone()).ending(End::CutAt(cut));
            let server = once(&image, path.clone(), answer).await;
            let repository = repository(settings(), &server.address.to_string(), None).unwrap();
            let pulled = pull(&repository, &image).await;
            let pulled = pulled.unwrap_or_else(|error| panic!("{path} cut at {cut}: {error:?}"));
            assert_same(&pulled, &image);
            let asked = server.asked().into_iter().filter(|it| it.path == path);
            let starts: Vec<_> = asked.map(|it| it.start()).collect();
            let here = if path.contains("/blobs/") {
                cut.saturating_sub(head.len())
            } else {
                0
            };
            assert_eq!(starts, [0, here], "{path} cut at {cut}: only the rest");
        }
    }
}

/// How a registry takes a request for the rest of a blob.
#[derive(Clone, Copy, Debug)]
enum Ranges {
    Given,
    Ignored,
    Refused,
    OfAnother,
}

fn answered(ranges: Ranges, asked: &Asked, body: &[u8]) -> Answer {
    match ranges {
        Ranges::Given => Answer::ranged(asked, body),
        Ranges::Ignored => Answer::ok(body),
        Ranges::Refused if asked.start() > 0 => Answer::status(416, ""),
        Ranges::OfAnother if asked.start() > 0 => {
            Answer::status(206, &body[1..]).with("Content-Range: bytes 1-2/3")
        }
        Ranges::Refused | Ranges::OfAnother => Answer::ok(body),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_layer_that_is_cut_off_again_and_again_arrives_in_order(
        size in 1_usize..200_000,
        cuts in prop::collection::vec((0_usize..200_000, any::<bool>()), 0..6),
        ranges in prop_oneof![
            Just(Ranges::Given), Just(Ranges::Ignored), Just(Ranges::Refused), Just(Ranges::OfAnother)
        ],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let layer: Vec<u8> = (0..size).map(|it| (it * 31 % 251) as u8).collect();
            let (served, left) = (layer.clone(), Mutex::new(cuts.clone()));
            let server = Server::start(move |asked| {
                let answer = answered(ranges, asked, &served);
                match left.lock().unwrap().pop() {
                    Some((cut, true)) => answer.ending(End::CutAt(cut)),
                    Some((cut, false)) => {
                        let length = answer.body.len();
                        answer.ending(End::Unmarked(cut % length.max(1)))
                    }
                    None => answer,
                }
            })
            .await;
            let mut settings = settings();
            settings.terms.tries = 10;
            let repository = repository(settings, &server.address.to_string(), None).unwrap();
            let arrived = blob(&repository, &layer).await;
            match (arrived, ranges) {
                (Ok(bytes), _) => assert!(bytes == layer, "{} of {size} bytes", bytes.len()),
                (Err(ImageError::RegistryProtocol { .. }), Ranges::OfAnother) => {}
                (Err(error), _) => panic!("{error:?}"),
            }
        });
    }
}

#[tokio::test]
async fn what_is_refused_is_told_by_its_kind_and_not_asked_again() {
    let of_another = Image::small().manifest.clone();
    let basic = Answer::status(401, "").with("WWW-Authenticate: Basic realm=\"x\"");
    let cases = [
        ("denied", Answer::status(401, "")),
        ("denied", basic),
        ("denied", Answer::status(403, "go away")),
        ("not found", Answer::status(404, "")),
        ("protocol", Answer::status(400, "")),
        ("protocol", Answer::status(204, "")),
        ("corrupt", Answer::ok(of_another)),
        ("corrupt", Answer::ok(vec![b' '; DOCUMENT_MAX as usize + 1])),
        ("busy", Answer::status(429, "").with("Retry-After: 3600")),
        ("protocol", Answer::redirect("file:///etc/passwd")),
    ];
    for (expected, answer) in cases {
        let server = always(answer.clone()).await;
        let repository = repository(settings(), &server.address.to_string(), None).unwrap();
        let wanted = digest(b"what is wanted");
        let got = repository
            .document(&wanted, Some(&wanted), DOCUMENT_MAX)
            .await;
        let told = got.unwrap_err();
        if let ImageError::RegistryBusy { retry_after, .. } = told {
            assert_eq!(retry_after, Some(Duration::from_secs(3600)));
        }
        assert_eq!(kind(&told), expected, "{answer:?}");
        assert_eq!(server.asked().len(), 1, "{answer:?}");
    }
}

#[tokio::test]
async fn what_may_pass_is_asked_again_and_not_for_ever() {
    let image = Image::small();
    for status in [500, 502, 503, 504, 408, 429] {
        let path = Image::path(&image.layer);
        let server = once(&image, path.clone(), Answer::status(status, "oops")).await;
        let at = repository(settings(), &server.address.to_string(), None).unwrap();
        assert_same(&pull(&at, &image).await.unwrap(), &image);

        let server = always(Answer::status(status, "oops")).await;
        let told = failure(&server).await;
        let busy = matches!(
            told,
            ImageError::RegistryBusy {
                retry_after: None,
                ..
            }
        );
        let unreachable = matches!(told, ImageError::RegistryUnreachable { .. });
        assert!(if status == 429 { busy } else { unreachable }, "{told:?}");
        let tries = settings().terms.tries as usize;
        assert_eq!(server.asked().len(), tries, "{status}");
    }
    let gone = always(Answer::ok("")).await;
    let address = gone.address.to_string();
    drop(gone);
    let nobody = repository(settings(), &address, None).unwrap();
    let told = nobody.document("1", None, DOCUMENT_MAX).await.unwrap_err();
    assert!(
        matches!(told, ImageError::RegistryUnreachable { .. }),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_busy_registry_is_left_alone_as_long_as_it_asks_for() {
    let image = Image::small();
    let busy = Answer::status(429, "").with("Retry-After: 1");
    let server = once(&image, Image::path(&image.layer), busy).await;
    let repository = repository(settings(), &server.address.to_string(), None).unwrap();
    let begun = Instant::now();
    assert_same(&pull(&repository, &image).await.unwrap(), &image);
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn redirects_without_an_end_come_to_one() {
    let server = Server::start(|asked| Answer::redirect(&format!("{}x", asked.path))).await;
    let told = failure(&server).await;
    assert!(
        matches!(told, ImageError::RegistryProtocol { .. }),
        "{told:?}"
    );
    assert_eq!(server.asked().len(), 6);
}

#[tokio::test]
async fn a_registry_that_falls_silent_is_left_and_a_slow_one_is_not() {
    let image = Image::small();
    for silent in [0, 1, 100] {
        let answer = Answer::ok(image.layer.clone()).ending(End::SilentAt(silent));
        let server = once(&image, Image::path(&image.layer), answer).await;
        let mut settings = settings();
        settings.terms.no_progress = Duration::from_millis(300);
        let repository = repository(settings, &server.address.to_string(), None).unwrap();
        let told = blob(&repository, &image.layer).await.unwrap_err();
        assert!(
            matches!(told, ImageError::PullStalled { after, .. } if after.as_millis() == 300),
            "{told:?}"
        );
    }
    // Each byte is progress: it takes longer in all than a byte may.
    let short = Image::of(vec![7; 25]);
    let slow = Answer::ok(short.layer.clone()).ending(End::Trickle(200));
    let server = once(&short, Image::path(&short.layer), slow).await;
    let mut settings = settings();
    settings.terms.no_progress = Duration::from_secs(3);
    let repository = repository(settings, &server.address.to_string(), None).unwrap();
    assert_same(&pull(&repository, &short).await.unwrap(), &short);
    assert_eq!(server.asked().len(), 3, "at one go");
}

#[tokio::test]
async fn a_layer_of_another_length_is_corrupt_and_one_that_nobody_takes_is_left() {
    let image = Image::small();
    for body in [&image.layer[1..], &[&image.layer[..], b"x"].concat()] {
        let server = once(&image, Image::path(&image.layer), Answer::ok(body)).await;
        let repository = repository(settings(), &server.address.to_string(), None).unwrap();
        let told = blob(&repository, &image.layer).await.unwrap_err();
        assert!(matches!(told, ImageError::Corrupt { .. }), "{told:?}");
        assert_eq!(server.asked().len(), 1);
    }

    let hung_up = Arc::new(AtomicUsize::new(0));
    let silent = Answer::ok(image.layer.clone()).ending(End::SilentAt(10));
    let server = always(silent).await;
    let repository = repository(settings(), &server.address.to_string(), None).unwrap();
    let (sender, mut chunks) = mpsc::channel(1);
    let digest = digest(&image.layer);
    let sending = repository.blob(&digest, 200, sender);
    let leaving = async {
        let first = chunks.recv().await.unwrap().unwrap();
        hung_up.store(first.len(), Ordering::Relaxed);
        drop(chunks);
    };
    let both = async { tokio::join!(sending, leaving) };
    let ended = tokio::time::timeout(Duration::from_secs(10), both).await;
    ended.expect("it ends with its receiver, long before the silence would end it");
    assert_eq!(hung_up.load(Ordering::Relaxed), 10);
}
