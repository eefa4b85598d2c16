//! Passwords and tokens.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use berth_platform::{Credentials, ImageError};
use berth_registry::Settings;

use crate::{
    DOCUMENT_MAX, Image, assert_same, kind, pull, repository,
    server::{Answer, End, Server},
    settings,
};

const BASIC: &str = "Basic bWU6b3BlbiBzZXNhbWU=";

fn me() -> Credentials {
    Credentials::Basic {
        username: "me".into(),
        password: "open sesame".into(),
    }
}

/// Gives numbered tokens, to `me` or, where that is not asked for, to everybody.
async fn token_server(wants: Option<&'static str>, answer: &'static str) -> Server {
    let given = AtomicUsize::new(0);
    Server::start(move |asked| {
        if asked.header("authorization") != wants {
            return Answer::status(401, "");
        }
        let number = given.fetch_add(1, Ordering::Relaxed);
        Answer::ok(answer.replace("N", &number.to_string()))
    })
    .await
}

/// Takes the token that was given last for `uses` requests.
async fn registry(image: &Arc<Image>, tokens: &Server, uses: usize, cut: Option<usize>) -> Server {
    let (image, realm) = (image.clone(), tokens.url("/token"));
    let used = AtomicUsize::new(0);
    let cut = std::sync::Mutex::new(cut);
    Server::start(move |asked| {
        let number = used.load(Ordering::Relaxed) / uses;
        if asked.header("authorization") != Some(&format!("Bearer token-{number}")) {
            return Answer::status(401, "").with(&format!(
                "WWW-Authenticate: Bearer realm=\"{realm}\",service=\"test\",scope=\"repository:team/app:pull\""
            ));
        }
        used.fetch_add(1, Ordering::Relaxed);
        let answer = image.answer(asked);
        if asked.path == Image::path(&image.layer)
            && let Some(cut) = cut.lock().unwrap().take()
        {
            return answer.ending(End::Unmarked(cut));
        }
        answer
    })
    .await
}

#[tokio::test]
async fn tokens_are_fetched_for_everybody_and_for_users_and_again_when_they_are_used_up() {
    let image = Image::small();
    for (credentials, wants, answer) in [
        (None, None, r#"{"token":"token-N"}"#),
        (None, None, r#"{"access_token":"token-N","expires_in":60}"#),
        (
            Some(me()),
            Some(BASIC),
            r#"{"token":"token-N","access_token":"token-N"}"#,
        ),
    ] {
        let tokens = token_server(wants, answer).await;
        let registry = registry(&image, &tokens, 1, None).await;
        let address = registry.address.to_string();
        let repository = repository(settings(), &address, credentials.as_ref()).unwrap();
        assert_same(&pull(&repository, &image).await.unwrap(), &image);
        let paths = tokens.paths();
        let expected = "/token?scope=repository%3Ateam%2Fapp%3Apull&service=test";
        assert_eq!(paths, [expected; 3]);
        // The password is for whoever gives tokens.
        let told = registry
            .asked()
            .into_iter()
            .any(|it| it.header("authorization") == Some(BASIC));
        assert!(!told);
    }
}

#[tokio::test]
async fn a_token_that_ends_in_the_middle_of_a_layer_is_renewed_and_the_rest_asked_for() {
    let image = Image::small();
    let tokens = token_server(None, r#"{"token":"token-N"}"#).await;
    let registry = registry(&image, &tokens, 3, Some(150)).await;
    let repository = repository(settings(), &registry.address.to_string(), None).unwrap();
    assert_same(&pull(&repository, &image).await.unwrap(), &image);
    assert_eq!(tokens.asked().len(), 2);
    let path = Image::path(&image.layer);
    let layer = registry.asked().into_iter().filter(|it| it.path == path);
    let starts: Vec<_> = layer.map(|it| it.start()).collect();
    assert_eq!(starts, [0, 150, 150], "cut, refused, given");
}

#[tokio::test]
async fn a_password_is_shown_to_who_asks_for_one() {
    let image = Image::small();
    let served = image.clone();
    let registry = Server::start(move |asked| match asked.header("authorization") {
        Some(BASIC) => served.answer(asked),
        _ => Answer::status(401, "").with("WWW-Authenticate: Basic realm=\"x\""),
    })
    .await;
    let address = registry.address.to_string();
    let at = repository(settings(), &address, Some(&me())).unwrap();
    assert_same(&pull(&at, &image).await.unwrap(), &image);
    assert_eq!(
        registry.asked()[0].header("authorization"),
        None,
        "not before"
    );
    let wrong = Credentials::Basic {
        username: "me".into(),
        password: "open rice".into(),
    };
    for credentials in [
        Some(wrong),
        Some(Credentials::Token("open sesame".into())),
        None,
    ] {
        let at = repository(settings(), &address, credentials.as_ref()).unwrap();
        let told = at.document("1", None, DOCUMENT_MAX).await.unwrap_err();
        assert!(
            matches!(told, ImageError::RegistryDenied { .. }),
            "{told:?}"
        );
    }
}

#[tokio::test]
async fn a_file_of_credentials_is_read_by_each_pull() {
    let image = Image::small();
    let served = image.clone();
    let registry = Server::start(move |asked| match asked.header("authorization") {
        Some(BASIC) => served.answer(asked),
        _ => Answer::status(401, "").with("WWW-Authenticate: Basic realm=\"x\""),
    })
    .await;
    let address = registry.address.to_string();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    let settings = Settings {
        credentials_file: Some(file.clone()),
        ..settings()
    };
    let unreadable = repository(settings.clone(), &address, None).unwrap_err();
    assert!(
        matches!(&unreadable, ImageError::CredentialsUnreadable { file: named, .. } if *named == file),
        "{unreadable:?}"
    );
    std::fs::write(&file, "{}").unwrap();
    let none = repository(settings.clone(), &address, None).unwrap();
    let told = none.document("1", None, DOCUMENT_MAX).await.unwrap_err();
    assert!(
        matches!(told, ImageError::RegistryDenied { .. }),
        "{told:?}"
    );
    let auth = &BASIC["Basic ".len()..];
    let text = format!(r#"{{"auths":{{"{address}":{{"auth":"{auth}"}}}}}}"#);
    std::fs::write(&file, text).unwrap();
    let some = repository(settings, &address, None).unwrap();
    assert_same(&pull(&some, &image).await.unwrap(), &image);
}

#[tokio::test]
async fn an_identity_is_exchanged_for_tokens() {
    let image = Image::small();
    let tokens = Server::start(|asked| {
        let wanted = "grant_type=refresh_token&client_id=berth&scope=repository%3Ateam%2Fapp%3Apull\
                      &refresh_token=me%26you&service=test";
        if asked.method == "POST" && asked.body == wanted {
            Answer::ok(r#"{"access_token":"token-0"}"#)
        } else {
            Answer::status(400, "")
        }
    })
    .await;
    let registry = registry(&image, &tokens, 100, None).await;
    let identity = Credentials::Identity("me&you".into());
    let address = registry.address.to_string();
    let repository = repository(settings(), &address, Some(&identity)).unwrap();
    assert_same(&pull(&repository, &image).await.unwrap(), &image);
}

#[tokio::test]
async fn a_token_server_that_fails_is_asked_again_and_one_that_is_none_is_not() {
    for (answer, tries, expected) in [
        (Answer::status(500, ""), 3, "unreachable"),
        (Answer::status(403, ""), 1, "denied"),
        (Answer::status(404, ""), 1, "protocol"),
        (Answer::ok("<html>"), 1, "protocol"),
        (Answer::ok(r#"{"token":""}"#), 1, "protocol"),
    ] {
        let image = Image::small();
        let tokens = Server::start(move |_| answer.clone()).await;
        let registry = registry(&image, &tokens, 1, None).await;
        let address = registry.address.to_string();
        let repository = repository(settings(), &address, Some(&me())).unwrap();
        let told = repository.document("1", None, DOCUMENT_MAX).await;
        let told = kind(&told.unwrap_err());
        assert_eq!((told, tokens.asked().len()), (expected, tries));
    }
}
