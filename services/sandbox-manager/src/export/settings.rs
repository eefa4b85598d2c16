//! Where logs are exported to, by the variables that OpenTelemetry has for it.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use berth_telemetry::Variables;
use tonic::{
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
    transport::{Channel, ClientTlsConfig, Endpoint},
};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Those of the logs go before those of all signals.
const PREFIXES: [&str; 2] = ["OTEL_EXPORTER_OTLP_LOGS_", "OTEL_EXPORTER_OTLP_"];

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    endpoint: Endpoint,
    /// Where it is posted to, in place of gRPC.
    pub(crate) http: Option<String>,
    headers: MetadataMap,
    /// Of one request.
    pub(crate) timeout: Duration,
}

impl Settings {
    /// `None` where no endpoint is set. An error names the variable.
    pub(crate) fn of_environment() -> anyhow::Result<Option<Self>> {
        Self::read(|name| std::env::var(name).ok())
    }

    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Option<Self>> {
        let find = |what: &str| {
            PREFIXES.iter().find_map(|prefix| {
                let name = format!("{prefix}{what}");
                let value = variable(&name).filter(|it| !it.is_empty())?;
                Some((name, value))
            })
        };
        let variables = Variables(&variable);
        if variables.disabled() || variables.chosen_off("LOGS")? {
            return Ok(None);
        }
        let Some((name, url)) = find("ENDPOINT") else {
            return Ok(None);
        };
        let with_scheme = ["http://", "https://"].iter().any(|it| url.starts_with(it));
        ensure!(
            with_scheme,
            "{name}: {url:?} must be an address like `http://127.0.0.1:4317`"
        );
        let mut endpoint =
            Endpoint::from_shared(url.clone()).with_context(|| format!("{name}: {url:?}"))?;
        if url.starts_with("https://") {
            let tls = ClientTlsConfig::new().with_native_roots();
            endpoint = endpoint.tls_config(tls).with_context(|| name.clone())?;
        }
        let http = match find("PROTOCOL") {
            None => None,
            Some((_, protocol)) if protocol == "grpc" => None,
            // An address for logs alone is the whole of it.
            Some((_, protocol)) if protocol == "http/protobuf" => match name.contains("_LOGS_") {
                true => Some(url),
                false => Some(format!("{}/v1/logs", url.trim_end_matches('/'))),
            },
            Some((name, protocol)) => {
                bail!("{name}: {protocol:?} must be `grpc` or `http/protobuf`")
            }
        };
        let timeout = match find("TIMEOUT") {
            None => TIMEOUT,
            Some((name, text)) => match text.parse() {
                Ok(millis) if millis > 0 => Duration::from_millis(millis),
                Ok(_) | Err(_) => bail!("{name}: {text:?} must be a number of milliseconds"),
            },
        };
        let headers = match find("HEADERS") {
            None => MetadataMap::new(),
            Some((name, text)) => headers(&text).with_context(|| name)?,
        };
        Ok(Some(Self {
            endpoint: endpoint.connect_timeout(timeout),
            http,
            headers,
            timeout,
        }))
    }

    /// Connects when something is sent, and again whenever that is needed.
    pub(crate) fn channel(&self) -> Channel {
        self.endpoint.connect_lazy()
    }

    pub(crate) fn with_headers(&self, own: &MetadataMap) -> MetadataMap {
        let headers = self.headers.clone().into_headers();
        let mut all = own.clone().into_headers();
        all.extend(headers);
        MetadataMap::from_headers(all)
    }
}

/// `key=value` pairs with commas between them; values are percent-encoded. What is wrong is told without the value.
fn headers(text: &str) -> anyhow::Result<MetadataMap> {
    let mut headers = MetadataMap::new();
    for pair in text.split(',').filter(|it| !it.trim().is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .context("must be `key=value` pairs with commas between them")?;
        let key = key.trim().to_ascii_lowercase();
        let name: AsciiMetadataKey = key
            .parse()
            .with_context(|| format!("{key:?} is no name of a header"))?;
        let value = decoded(value.trim()).and_then(|it| AsciiMetadataValue::try_from(it).ok());
        headers.insert(
            name,
            value.with_context(|| format!("the value of {key:?} is none of a header"))?,
        );
    }
    Ok(headers)
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = vec![];
    let mut parts = text.split('%');
    bytes.extend(parts.next()?.bytes());
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend(rest.bytes());
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> anyhow::Result<Option<Settings>> {
        Settings::read(|name| {
            let found = variables.iter().find(|it| it.0 == name);
            found.map(|it| it.1.to_owned())
        })
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");

    #[test]
    fn it_is_off_unless_an_endpoint_is_set() {
        assert!(read(&[]).unwrap().is_none());
        assert!(
            read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")])
                .unwrap()
                .is_none()
        );
        for off in [
            ("OTEL_SDK_DISABLED", "true"),
            ("OTEL_LOGS_EXPORTER", "none"),
        ] {
            assert!(read(&[ENDPOINT, off]).unwrap().is_none(), "{off:?}");
        }
        let settings = read(&[ENDPOINT]).unwrap().unwrap();
        assert_eq!(settings.timeout, TIMEOUT);
    }

    #[test]
    fn what_is_set_for_logs_goes_before_what_is_set_for_all() {
        let settings = read(&[
            ENDPOINT,
            (
                "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
                "https://logs.example:443",
            ),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "2500"),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "Authorization=Bearer%20a%3Db, x-team=berth",
            ),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ]);
        let settings = settings.unwrap().unwrap();
        assert_eq!(settings.endpoint.uri().host(), Some("logs.example"));
        assert_eq!(settings.timeout, Duration::from_millis(2500));
        let headers = settings.with_headers(&MetadataMap::new());
        assert_eq!(headers.get("authorization").unwrap(), "Bearer a=b");
        assert_eq!(headers.get("x-team").unwrap(), "berth");
    }

    #[test]
    #[rustfmt::skip]
    fn over_http_the_path_of_logs_is_put_behind_an_address_for_all_signals() {
        let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        let logs = ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs/x");
        let cases = [
            (vec![ENDPOINT],             None),
            (vec![ENDPOINT, http],       Some("http://127.0.0.1:4317/v1/logs")),
            (vec![ENDPOINT, http, logs], Some("http://logs/x")),
        ];
        for (variables, expected) in cases {
            let settings = read(&variables).unwrap().unwrap();
            assert_eq!(settings.http.as_deref(), expected, "{variables:?}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_bad_value_is_refused_by_its_variable() {
        let cases = [
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "localhost:4317"),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL",      "http/json"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT",       "10s"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT",       "0"),
            ("OTEL_EXPORTER_OTLP_HEADERS",       "no pair"),
            ("OTEL_EXPORTER_OTLP_HEADERS",       "a b=c"),
            ("OTEL_EXPORTER_OTLP_HEADERS",       "a=%zz"),
            ("OTEL_EXPORTER_OTLP_HEADERS",       "a=%0a"),
        ];
        for (name, value) in cases {
            let error = format!("{:#}", read(&[(name, value), ENDPOINT]).unwrap_err());
            assert!(error.starts_with(name), "{value}: {error}");
        }
    }
}
