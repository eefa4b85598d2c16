//! Which signals are exported and how, by the variables that OpenTelemetry has for it. Timeouts, headers, sampling, queues and
//! resource attributes are read by its library.

use crate::StartError;

/// How an OTLP receiver is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Grpc,
    Http,
}

/// `None`: the signal is not exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) traces: Option<Protocol>,
    pub(crate) metrics: Option<Protocol>,
    pub(crate) logs: Option<Protocol>,
}

/// The variables of the environment.
#[derive(Clone, Copy, Debug)]
pub struct Variables<F>(pub F);

impl<F: Fn(&str) -> Option<String>> Variables<F> {
    /// What is empty counts as not set.
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|it| !it.is_empty())
    }

    /// Whether all is turned off, whatever else is set.
    pub fn disabled(&self) -> bool {
        self.get("OTEL_SDK_DISABLED")
            .is_some_and(|it| it.eq_ignore_ascii_case("true"))
    }

    /// The value of a variable for one signal (`TRACES`, `METRICS`, `LOGS`), or else for all, with the name that has it.
    pub fn of_signal(&self, signal: &str, what: &str) -> Option<(String, String)> {
        let names = [
            format!("OTEL_EXPORTER_OTLP_{signal}_{what}"),
            format!("OTEL_EXPORTER_OTLP_{what}"),
        ];
        names.into_iter().find_map(|it| {
            let value = self.get(&it)?;
            Some((it, value))
        })
    }

    /// Whether a signal was chosen not to be exported.
    pub fn chosen_off(&self, signal: &str) -> Result<bool, StartError> {
        let variable = format!("OTEL_{signal}_EXPORTER");
        match self.get(&variable).as_deref() {
            None | Some("otlp") => Ok(false),
            Some("none") => Ok(true),
            Some(other) => Err(StartError::Variable {
                problem: format!("{other:?} is not known here, only `otlp` and `none`"),
                variable,
            }),
        }
    }
}

impl Settings {
    pub(crate) fn of_environment() -> Result<Self, StartError> {
        Self::read(|name| std::env::var(name).ok())
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, StartError> {
        let variables = Variables(variable);
        if variables.disabled() {
            return Ok(Self::default());
        }
        Ok(Self {
            traces: protocol(&variables, "TRACES")?,
            metrics: protocol(&variables, "METRICS")?,
            logs: protocol(&variables, "LOGS")?,
        })
    }
}

fn protocol<F: Fn(&str) -> Option<String>>(
    variables: &Variables<F>,
    signal: &str,
) -> Result<Option<Protocol>, StartError> {
    if variables.chosen_off(signal)? {
        return Ok(None);
    }
    let Some((variable, endpoint)) = variables.of_signal(signal, "ENDPOINT") else {
        return Ok(None);
    };
    if !["http://", "https://"]
        .iter()
        .any(|it| endpoint.starts_with(it))
    {
        let problem = format!("{endpoint:?} must be an address like `http://127.0.0.1:4317`");
        return Err(StartError::Variable { variable, problem });
    }
    match variables.of_signal(signal, "PROTOCOL") {
        None => Ok(Some(Protocol::Grpc)),
        Some((variable, text)) => match text.as_str() {
            "grpc" => Ok(Some(Protocol::Grpc)),
            "http/protobuf" => Ok(Some(Protocol::Http)),
            _ => {
                let problem = format!("{text:?} must be `grpc` or `http/protobuf`");
                Err(StartError::Variable { variable, problem })
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, StartError> {
        Settings::read(|name| {
            let found = variables.iter().find(|it| it.0 == name);
            found.map(|it| it.1.to_owned())
        })
    }

    const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const AT: &str = "http://127.0.0.1:4317";

    fn signals(
        traces: Option<Protocol>,
        metrics: Option<Protocol>,
        logs: Option<Protocol>,
    ) -> Settings {
        Settings {
            traces,
            metrics,
            logs,
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_signal_is_exported_where_an_endpoint_is_set_and_nothing_turns_it_off() {
        use Protocol::{Grpc, Http};
        let (grpc, http) = (Some(Grpc), Some(Http));
        let traces = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        let cases: [(&[(&str, &str)], Settings); 9] = [
            (&[],                                                            signals(None, None, None)),
            (&[(ALL, "")],                                                   signals(None, None, None)),
            (&[(ALL, AT)],                                                   signals(grpc, grpc, grpc)),
            (&[(traces, AT)],                                                signals(grpc, None, None)),
            (&[(ALL, AT), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], signals(http, http, http)),
            (&[(ALL, AT), ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/protobuf")], signals(grpc, grpc, http)),
            (&[(ALL, AT), ("OTEL_METRICS_EXPORTER", "none")],                signals(grpc, None, grpc)),
            (&[(ALL, AT), ("OTEL_SDK_DISABLED", "TRUE")],                    signals(None, None, None)),
            (&[(ALL, AT), ("OTEL_SDK_DISABLED", "1")],                       signals(grpc, grpc, grpc)),
        ];
        for (variables, expected) in cases {
            assert_eq!(read(variables).unwrap(), expected, "{variables:?}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_bad_value_is_refused_by_its_variable() {
        let cases = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT",         "127.0.0.1:4317"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "udp://host"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL",         "http/json"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",  "GRPC"),
            ("OTEL_LOGS_EXPORTER",                  "console"),
        ];
        for (name, value) in cases {
            let error = read(&[(name, value), (ALL, AT)]).unwrap_err().to_string();
            assert!(error.starts_with(name), "{value}: {error}");
        }
    }
}
