//! What a caller shows a registry. It is held as long as a pull takes, and no text that is made of it has it.

use std::fmt;

#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user's, for the registry itself or for whoever gives its tokens.
    Basic { username: String, password: String },
    /// A bearer token for the registry itself.
    Token(String),
    /// What a user's password was exchanged for, and is exchanged for tokens.
    Identity(String),
}

impl Credentials {
    /// The part that nobody may read.
    pub fn secret(&self) -> &str {
        match self {
            Self::Basic { password, .. } => password,
            Self::Token(secret) | Self::Identity(secret) => secret,
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(***)",
            Self::Token(_) => "Token(***)",
            Self::Identity(_) => "Identity(***)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_that_is_made_of_credentials_has_them() {
        let basic = Credentials::Basic {
            username: "sesame-user".into(),
            password: "sesame".into(),
        };
        for credentials in [
            basic,
            Credentials::Token("sesame".into()),
            Credentials::Identity("sesame".into()),
        ] {
            assert_eq!(credentials.secret(), "sesame");
            let text = format!("{credentials:?} {:#?}", Some(&credentials));
            assert!(!text.contains("sesame"), "{text}");
        }
    }
}
