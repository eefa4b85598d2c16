//! Credentials on the wire, as text: without what nobody may read.

use std::fmt;

use crate::v1::RegistryCredentials;

impl fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryCredentials(***)")
    }
}

#[cfg(test)]
mod tests {
    use crate::v1::{PullImageRequest, RegistryCredentials};

    #[test]
    fn a_request_as_text_has_no_secret() {
        let request = PullImageRequest {
            image: "app".into(),
            credentials: Some(RegistryCredentials {
                username: "me".into(),
                password: "sesame".into(),
                token: "sesame".into(),
            }),
        };
        let text = format!("{request:?} {request:#?}");
        assert!(text.contains("app") && !text.contains("sesame"), "{text}");
    }
}
