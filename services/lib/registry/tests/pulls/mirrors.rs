//! Mirrors, and redirects to storage.

use berth_platform::{Credentials, ImageError};
use berth_registry::{Host, Settings};

use crate::{
    Image, assert_same, blob, digest, pull, repository,
    server::{Answer, End, Server},
    settings,
};

fn mirrored(registry: &str, mirrors: Vec<String>) -> Settings {
    let host = Host {
        mirrors,
        ca_file: None,
    };
    Settings {
        hosts: [(registry.to_owned(), host)].into(),
        ..settings()
    }
}

async fn whole(image: &std::sync::Arc<Image>) -> Server {
    let served = image.clone();
    Server::start(move |asked| served.answer(asked)).await
}

#[tokio::test]
async fn the_first_mirror_that_has_the_image_gives_it() {
    let image = Image::small();
    let (gone, second, origin) = (
        whole(&image).await,
        whole(&image).await,
        whole(&image).await,
    );
    let registry = origin.address.to_string();
    let mirrors = vec![gone.url(""), second.url("")];
    drop(gone);
    let repository = repository(mirrored(&registry, mirrors), &registry, None).unwrap();
    assert_same(&pull(&repository, &image).await.unwrap(), &image);
    assert_eq!(second.asked().len(), 3);
    assert_eq!(origin.paths(), Vec::<String>::new());
}

#[tokio::test]
async fn a_mirror_that_fails_is_passed_over_by_the_rest_of_the_pull() {
    let image = Image::small();
    let other = Image::of(vec![1]);
    for answer in [
        Answer::status(404, ""),
        Answer::status(401, ""),
        Answer::status(500, ""),
        Answer::status(429, "").with("Retry-After: 3600"),
        Answer::ok(other.manifest.clone()),
        Answer::ok("").ending(End::CutAt(0)),
    ] {
        let (mirror, origin) = {
            let answer = answer.clone();
            (
                Server::start(move |_| answer.clone()).await,
                whole(&image).await,
            )
        };
        let registry = origin.address.to_string();
        let settings = mirrored(&registry, vec![mirror.url("")]);
        let repository = repository(settings, &registry, None).unwrap();
        let wanted = digest(&image.manifest);
        let got = repository.document(&wanted, Some(&wanted), 1 << 16).await;
        assert_eq!(got.unwrap().bytes, image.manifest, "{answer:?}");
        assert!(blob(&repository, &image.layer).await.unwrap() == image.layer);
        assert_eq!(mirror.asked().len(), 1, "{answer:?}");
        assert_eq!(origin.asked().len(), 2, "{answer:?}");
    }
}

#[tokio::test]
async fn what_a_mirror_began_the_registry_ends() {
    let image = Image::small();
    let served = image.clone();
    let mirror = Server::start(move |asked| {
        let answer = served.answer(asked);
        let length = answer.body.len();
        answer.ending(End::Unmarked(length / 2))
    })
    .await;
    let origin = whole(&image).await;
    let registry = origin.address.to_string();
    let settings = mirrored(&registry, vec![mirror.url("")]);
    let repository = repository(settings, &registry, None).unwrap();
    assert!(blob(&repository, &image.layer).await.unwrap() == image.layer);
    assert_eq!(origin.asked()[0].start(), image.layer.len() / 2);
}

#[tokio::test]
async fn credentials_of_a_request_go_to_the_registry_and_to_no_mirror() {
    let image = Image::small();
    let served = image.clone();
    let origin = Server::start(move |asked| match asked.header("authorization") {
        Some("Bearer open-sesame") => served.answer(asked),
        _ => Answer::status(401, ""),
    })
    .await;
    let mirror = Server::start(|_| Answer::status(404, "")).await;
    let registry = origin.address.to_string();
    let settings = mirrored(&registry, vec![mirror.url("/team-proxy")]);
    let token = Credentials::Token("open-sesame".into());
    let repository = repository(settings, &registry, Some(&token)).unwrap();
    assert_same(&pull(&repository, &image).await.unwrap(), &image);
    let asked = mirror.asked();
    assert_eq!(asked[0].path, "/v2/team-proxy/team/app/manifests/1");
    assert!(asked.iter().all(|it| it.header("authorization").is_none()));
}

#[tokio::test]
async fn the_host_that_a_redirect_leads_to_is_shown_nothing() {
    let image = Image::small();
    let layer = image.layer.clone();
    let storage = Server::start(move |asked| Answer::ranged(asked, &layer)).await;
    let (to, served) = (storage.url("/stored?signature=x"), image.clone());
    let origin = Server::start(move |asked| match asked.header("authorization") {
        Some("Bearer open-sesame") if asked.path == Image::path(&served.layer) => {
            Answer::redirect("/elsewhere")
        }
        Some("Bearer open-sesame") if asked.path == "/elsewhere" => Answer::redirect(&to),
        Some("Bearer open-sesame") => served.answer(asked),
        _ => Answer::status(401, ""),
    })
    .await;
    let token = Credentials::Token("open-sesame".into());
    let repository = repository(settings(), &origin.address.to_string(), Some(&token)).unwrap();
    assert_same(&pull(&repository, &image).await.unwrap(), &image);
    let asked = storage.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), None);

    // It refuses, and is not taken for the registry that wants a password.
    let refusing = Server::start(|_| {
        Answer::status(401, "").with("WWW-Authenticate: Basic realm=\"give it to me\"")
    })
    .await;
    let to = refusing.url("/");
    let origin = Server::start(move |_| Answer::redirect(&to)).await;
    let password = Credentials::Basic {
        username: "me".into(),
        password: "open-sesame".into(),
    };
    let at = crate::repository(settings(), &origin.address.to_string(), Some(&password)).unwrap();
    let told = at.document("1", None, 100).await.unwrap_err();
    assert!(
        matches!(told, ImageError::RegistryDenied { .. }),
        "{told:?}"
    );
    assert_eq!(refusing.asked().len(), 1);
    assert_eq!(refusing.asked()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_mirror_whose_content_turns_out_wrong_is_passed_over_and_the_registry_is_not() {
    let image = Image::small();
    let wrong = vec![7; image.layer.len()];
    let served = wrong.clone();
    let mirror = Server::start(move |asked| Answer::ranged(asked, &served)).await;
    let origin = whole(&image).await;
    let registry = origin.address.to_string();
    let settings = mirrored(&registry, vec![mirror.url("")]);
    let repository = repository(settings, &registry, None).unwrap();
    let bring = async || {
        let (sender, mut chunks) = tokio::sync::mpsc::channel(2);
        let size = image.layer.len() as u64;
        let digest = digest(&image.layer);
        let asking = repository.blob(&digest, size, sender);
        let reading = async {
            let mut bytes = vec![];
            while let Some(chunk) = chunks.recv().await {
                bytes.extend(chunk.unwrap());
            }
            bytes
        };
        tokio::join!(asking, reading)
    };
    let (giver, bytes) = bring().await;
    assert!(bytes == wrong);
    assert!(
        repository.distrust(giver.unwrap()),
        "another host may have it right"
    );
    let (giver, bytes) = bring().await;
    assert!(bytes == image.layer);
    assert!(
        !repository.distrust(giver.unwrap()),
        "there is no other host"
    );
    assert_eq!(mirror.asked().len(), 1);
}
