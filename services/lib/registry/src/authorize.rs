//! From a challenge to what a registry is shown: a password, or a token that was fetched for it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use berth_platform::Credentials;
use reqwest::{Response, StatusCode, Url, header::HeaderValue};
use serde::Deserialize;

use crate::{
    challenge::Challenge,
    http::{Clients, Get},
    retry::Patience,
    trouble::{SAID_MAX, Trouble, broken, refusal, shown},
};

/// A token is a few KiB.
const TOKEN_MAX: u64 = 64 << 10;

/// Who is asked, and for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Door<'a> {
    pub(crate) clients: &'a Clients,
    pub(crate) base: &'a Url,
    pub(crate) repository: &'a str,
    pub(crate) credentials: Option<&'a Credentials>,
}

impl Door<'_> {
    /// What is shown before anything was asked for.
    pub(crate) fn at_first(credentials: Option<&Credentials>) -> Option<HeaderValue> {
        match credentials {
            Some(Credentials::Token(token)) => secret(&format!("Bearer {token}")).ok(),
            // A password is for those who ask for it.
            Some(Credentials::Basic { .. } | Credentials::Identity(_)) | None => None,
        }
    }

    /// What is shown to who challenges like that.
    pub(crate) async fn answer(
        &self,
        challenge: &Challenge,
        patience: &mut Patience,
    ) -> Result<HeaderValue, Trouble> {
        let host = shown(self.base);
        match (challenge, self.credentials) {
            (_, Some(Credentials::Token(_))) => Err(Trouble::Denied(
                format!("{host} does not take the token").into(),
            )),
            (Challenge::Basic, Some(credentials @ Credentials::Basic { .. })) => basic(credentials),
            (Challenge::Basic, Some(Credentials::Identity(_)) | None) => {
                let what = format!("{host} wants a user and a password");
                Err(Trouble::Denied(what.into()))
            }
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                Some(Credentials::Basic { .. } | Credentials::Identity(_)) | None,
            ) => {
                let url = self.realm(realm)?;
                let asked = scope.clone();
                let scope = asked.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
                let token = self.token(url, service.as_deref(), &scope, patience);
                secret(&format!("Bearer {}", token.await?))
            }
        }
    }

    fn realm(&self, realm: &str) -> Result<Url, Trouble> {
        let url = Url::parse(realm)
            .ok()
            .filter(|it| matches!(it.scheme(), "http" | "https"));
        let url = url.ok_or_else(|| Trouble::Protocol("its realm is no address".to_owned()))?;
        if self.base.scheme() == "https" && url.scheme() == "http" {
            let what = format!("{} gives its tokens without TLS", shown(&url));
            return Err(Trouble::Protocol(what));
        }
        Ok(url)
    }

    async fn token(
        &self,
        mut url: Url,
        service: Option<&str>,
        scope: &str,
        patience: &mut Patience,
    ) -> Result<String, Trouble> {
        /// Registries use either name, and some use both.
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }

        let response = match self.credentials {
            Some(Credentials::Identity(identity)) => {
                let mut form = vec![
                    ("grant_type", "refresh_token"),
                    ("client_id", "berth"),
                    ("scope", scope),
                    ("refresh_token", identity),
                ];
                form.extend(service.map(|it| ("service", it)));
                self.post(&url, &form, patience).await?
            }
            credentials => {
                url.query_pairs_mut().append_pair("scope", scope);
                if let Some(service) = service {
                    url.query_pairs_mut().append_pair("service", service);
                }
                let authorization = credentials.map(basic).transpose()?;
                let get = Get {
                    url: &url,
                    accept: None,
                    authorization: authorization.as_ref(),
                    skip: 0,
                };
                self.clients.get(get, patience).await?
            }
        };
        let (at, status) = (response.url().clone(), response.status());
        let after = retry_after(&response);
        let (bytes, _) = read(response, TOKEN_MAX, patience).await?;
        if status != StatusCode::OK {
            // What it says may repeat what it was shown.
            if status == StatusCode::NOT_FOUND {
                let what = format!("{} is not there, and shall give tokens", shown(&at));
                return Err(Trouble::Protocol(what));
            }
            return Err(refusal(&at, status, "", after));
        }
        let answer: Option<Answer> = serde_json::from_slice(&bytes).ok();
        answer
            .and_then(|it| it.token.or(it.access_token))
            .filter(|it| !it.is_empty())
            .ok_or_else(|| Trouble::Protocol(format!("{} gives no token", shown(&at))))
    }

    /// Sends a form, and follows nobody with it.
    async fn post(
        &self,
        url: &Url,
        form: &[(&str, &str)],
        patience: &mut Patience,
    ) -> Result<Response, Trouble> {
        let mut encoded = Url::parse("form:").map_err(|it| Trouble::Protocol(it.to_string()))?;
        encoded.query_pairs_mut().extend_pairs(form);
        let request = self
            .clients
            .of(url)
            .post(url.clone())
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(encoded.query().unwrap_or_default().to_owned());
        let sent = patience.wait(request.send()).await?;
        sent.map_err(|error| broken(url, error))
    }
}

fn basic(credentials: &Credentials) -> Result<HeaderValue, Trouble> {
    match credentials {
        Credentials::Basic { username, password } => {
            secret(&format!("Basic {}", pair(username, password)))
        }
        Credentials::Token(_) | Credentials::Identity(_) => {
            Err(Trouble::Denied("it wants a user and a password".into()))
        }
    }
}

fn pair(username: &str, password: &str) -> String {
    STANDARD.encode(format!("{username}:{password}"))
}

fn secret(text: &str) -> Result<HeaderValue, Trouble> {
    let invalid = |_| Trouble::Denied("the token cannot be sent".into());
    let mut value = HeaderValue::from_str(text).map_err(invalid)?;
    value.set_sensitive(true);
    Ok(value)
}

/// When a registry wants to be asked again.
pub(crate) fn retry_after(response: &Response) -> Option<std::time::Duration> {
    let header = response.headers().get("Retry-After")?.to_str().ok()?;
    crate::retry::retry_after(header, jiff::Timestamp::now())
}

/// Reads at most `limit` bytes, and says whether that is all.
pub(crate) async fn read(
    mut response: Response,
    limit: u64,
    patience: &mut Patience,
) -> Result<(Vec<u8>, bool), Trouble> {
    let url = response.url().clone();
    let mut bytes = vec![];
    loop {
        let part = patience.wait(response.chunk()).await?;
        let Some(part) = part.map_err(|error| broken(&url, error))? else {
            return Ok((bytes, true));
        };
        patience.renew();
        let room = usize::try_from(limit - bytes.len() as u64).unwrap_or(usize::MAX);
        bytes.extend(part.iter().take(room));
        if part.len() > room {
            return Ok((bytes, false));
        }
    }
}

/// What a registry was shown, and may repeat.
#[derive(Default)]
pub(crate) struct Secrets(Vec<String>);

impl Secrets {
    pub(crate) fn of(
        credentials: Option<&Credentials>,
        authorization: Option<&HeaderValue>,
    ) -> Self {
        let mut secrets = vec![];
        if let Some(credentials) = credentials {
            secrets.push(credentials.secret().to_owned());
            if let Credentials::Basic { username, password } = credentials {
                secrets.push(pair(username, password));
            }
        }
        let header = authorization.and_then(|it| it.to_str().ok());
        let shown = header.and_then(|it| it.split_once(' '));
        secrets.extend(shown.map(|(_, it)| it.to_owned()));
        secrets.retain(|it| !it.is_empty());
        // One that has another one in it goes first.
        secrets.sort_by_key(|it| std::cmp::Reverse(it.len()));
        Self(secrets)
    }

    /// As many bytes behind the end of a text can be the rest of a secret that begins in it, with what a letter that is cut
    /// becomes when it is read.
    fn reach(&self) -> usize {
        let longest = self.0.iter().map(String::len).max();
        longest.map_or(0, |it| it + char::REPLACEMENT_CHARACTER.len_utf8())
    }

    fn taken_out_of(&self, said: &str) -> String {
        let mut said = said.to_owned();
        for secret in &self.0 {
            said = said.replace(secret, "***");
        }
        said
    }

    /// What is kept of what a registry said; where that is `cut`, its end may be a part of a secret.
    fn kept(&self, said: &[u8], cut: bool) -> String {
        let mut kept = self.taken_out_of(&String::from_utf8_lossy(said));
        if cut {
            let end = kept.len().saturating_sub(self.reach());
            kept.truncate(kept.floor_char_boundary(end));
        }
        kept
    }
}

/// What a registry says, as far as it is kept, without what it was shown.
pub(crate) async fn said(
    response: Response,
    secrets: &Secrets,
    patience: &mut Patience,
) -> Result<String, Trouble> {
    let limit = SAID_MAX + secrets.reach() as u64;
    let (bytes, whole) = read(response, limit, patience).await?;
    Ok(secrets.kept(&bytes, !whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_repeats_of_a_secret_is_taken_out() {
        let credentials = Credentials::Basic {
            username: "me".into(),
            password: "open sesame".into(),
        };
        let header = basic(&credentials).unwrap();
        let shown = header.to_str().unwrap().to_owned();
        let token = secret("Bearer a.b.c").unwrap();
        let said = format!("user me, open sesame, sesame, {shown}, a.b.c");
        let secrets = Secrets::of(Some(&credentials), Some(&token));
        let kept = secrets.kept(said.as_bytes(), false);
        assert_eq!(kept, "user me, ***, sesame, Basic ***, ***");
        assert!(!format!("{header:?} {token:?}").contains(&shown[6..]));
    }

    #[test]
    fn of_a_text_that_is_cut_anywhere_no_part_of_a_secret_is_kept() {
        let credentials = Credentials::Basic {
            username: "me".into(),
            password: "öpen-sesämé".into(),
        };
        let secrets = Secrets::of(Some(&credentials), None);
        let said = format!("{} öpen-sesämé öpen-sesämé and on", "x".repeat(40));
        for end in 0..=said.len() {
            let kept = secrets.kept(&said.as_bytes()[..end], end < said.len());
            assert!(
                !kept.contains('ö') && !kept.contains("ses"),
                "{end}: {kept}"
            );
        }
        assert!(
            secrets
                .kept(said.as_bytes(), false)
                .ends_with("*** *** and on")
        );
        let none = Secrets::default();
        assert_eq!(none.kept(b"all of it", true), "all of it");
    }
}
