//! What a registry wants to be shown, as its `WWW-Authenticate` headers say. Pure.

/// The better of what a registry offers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Challenge {
    /// A token, and where it is to be had.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
    Basic,
}

impl Challenge {
    pub(crate) fn of<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut basic = None;
        for header in headers {
            match Self::parse(header) {
                Some(bearer @ Self::Bearer { .. }) => return Some(bearer),
                Some(Self::Basic) => basic = Some(Self::Basic),
                None => {}
            }
        }
        basic
    }

    fn parse(header: &str) -> Option<Self> {
        let challenges = http_auth::parse_challenges(header).ok()?;
        let find = |scheme: &str| {
            let mut of_scheme = challenges.iter();
            of_scheme.find(|it| it.scheme.eq_ignore_ascii_case(scheme))
        };
        if let Some(bearer) = find("bearer") {
            let param = |key: &str| {
                let mut params = bearer.params.iter();
                let found = params.find(|(name, _)| name.eq_ignore_ascii_case(key));
                found.map(|(_, value)| value.to_unescaped())
            };
            if let Some(realm) = param("realm") {
                return Some(Self::Bearer {
                    realm,
                    service: param("service"),
                    scope: param("scope"),
                });
            }
        }
        find("basic").map(|_| Self::Basic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_preferred_and_read_as_registries_write_it() {
        let bearer = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: Some("registry.example".into()),
            scope: Some("repository:a/b:pull".into()),
        };
        let full = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull""#;
        let both = format!("Basic realm=\"x\", {full}");
        let basic = "Basic realm=\"x\"";
        let cases: &[(&[&str], Option<&Challenge>)] = &[
            (&[full], Some(&bearer)),
            (&[&both], Some(&bearer)),
            (&[basic, full], Some(&bearer)),
            (&[basic], Some(&Challenge::Basic)),
            (&["Bearer service=\"x\""], None),
            (&["Bearer service=\"x\"", basic], Some(&Challenge::Basic)),
            (&["\u{1}", ""], None),
            (&[], None),
        ];
        for (headers, expected) in cases {
            let found = Challenge::of(headers.iter().copied());
            assert_eq!(found.as_ref(), *expected, "{headers:?}");
        }
    }
}
