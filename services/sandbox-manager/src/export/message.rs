//! How a line of a log looks as an OpenTelemetry log record.

use std::collections::BTreeMap;

use berth_domain::{SandboxId, SandboxRecord};
use berth_logs::{
    format::{GapReason, Kind},
    reader::{Content, Entry},
    trace_id::trace_id,
};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
};
use prost::Message as _;

use crate::logs::SYSTEM;

/// What every line of a sandbox says.
#[derive(Debug)]
pub(super) struct About {
    entity: String,
    sandbox: String,
    version: String,
    attributes: BTreeMap<String, String>,
}

impl About {
    /// Of a sandbox whose record is gone, its logs tell the id.
    pub(super) fn new(id: &SandboxId, record: Option<&SandboxRecord>) -> Self {
        let sandbox = id.to_string();
        let spec = record.map(|it| &it.spec);
        let entity = spec.map(|it| it.log_entity.clone());
        Self {
            entity: entity
                .filter(|it| !it.is_empty())
                .unwrap_or(sandbox.clone()),
            sandbox,
            version: spec.map(|it| it.version.clone()).unwrap_or_default(),
            attributes: spec.map(|it| it.log_attributes.clone()).unwrap_or_default(),
        }
    }

    pub(super) fn request(&self, node: &str, records: Vec<LogRecord>) -> ExportLogsServiceRequest {
        let resource = [("service.name", self.entity.as_str()), ("host.name", node)];
        let scope_logs = ScopeLogs {
            scope: Some(InstrumentationScope {
                name: "berth".to_owned(),
                version: berth_version::VERSION.to_owned(),
                ..InstrumentationScope::default()
            }),
            log_records: records,
            ..ScopeLogs::default()
        };
        ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs {
                resource: Some(Resource {
                    attributes: resource
                        .map(|(key, value)| attribute(key, text(value)))
                        .into(),
                    ..Resource::default()
                }),
                scope_logs: vec![scope_logs],
                ..ResourceLogs::default()
            }],
        }
    }

    pub(super) fn record(&self, name: &str, log: u64, entry: Entry) -> LogRecord {
        let mut attributes = BTreeMap::new();
        let mut put = |key: &str, value: Value| {
            attributes.insert(key.to_owned(), value);
        };
        put("sandbox", text(&self.sandbox));
        put("source", text(if name == SYSTEM { "system" } else { name }));
        if name != SYSTEM {
            put("container", text(name));
        }
        if !self.version.is_empty() {
            put("version", text(&self.version));
        }
        for (key, value) in &self.attributes {
            put(key, text(value));
        }
        // By these a receiver knows what it has twice: no attribute of a sandbox stands in for them.
        put("sequence", number(entry.sequence));
        put("log", text(&format!("{log:016x}")));
        let mut trace = vec![];
        let (severity, body) = match entry.content {
            Content::Line(line) => {
                let (stream, severity) = stream(line.kind);
                put("stream", text(stream));
                for (key, value) in [("truncated", line.truncated), ("partial", line.partial)] {
                    if value {
                        put(key, Value::BoolValue(true));
                    }
                }
                if let Some(id) = trace_id(&line.text) {
                    match bytes_of(id) {
                        Some(bytes) => trace = bytes,
                        None => put("trace_id", text(id)),
                    }
                }
                (severity, body(line.text))
            }
            Content::Gap(gap) => {
                put("gap.reason", text(reason(gap.reason)));
                put("gap.lines", number(gap.lines));
                put("gap.bytes", number(gap.bytes));
                (SeverityNumber::Warn, text("lines are missing"))
            }
            Content::Replaced => {
                put("gap.reason", text("replaced"));
                (SeverityNumber::Warn, text("another log follows"))
            }
        };
        LogRecord {
            time_unix_nano: entry.time_ns,
            observed_time_unix_nano: entry.time_ns,
            severity_number: severity.into(),
            body: Some(AnyValue { value: Some(body) }),
            attributes: attributes
                .into_iter()
                .map(|(key, value)| attribute(&key, value))
                .collect(),
            trace_id: trace,
            ..LogRecord::default()
        }
    }
}

pub(super) fn size(record: &LogRecord) -> usize {
    record.encoded_len()
}

fn stream(kind: Kind) -> (&'static str, SeverityNumber) {
    match kind {
        Kind::Stdout => ("stdout", SeverityNumber::Info),
        Kind::Stderr => ("stderr", SeverityNumber::Warn),
        Kind::UserOob => ("user-oob", SeverityNumber::Info),
        Kind::Error => ("error", SeverityNumber::Error),
        Kind::System => ("system", SeverityNumber::Info),
        // A reader makes no line of it.
        Kind::Gap => ("gap", SeverityNumber::Warn),
    }
}

pub(super) fn reason(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Disk => "disk",
        GapReason::Writer => "writer",
        GapReason::Damage => "damage",
        GapReason::Dropped => "dropped",
    }
}

/// An empty line is one space: receivers take an empty body for none.
fn body(line: Vec<u8>) -> Value {
    match String::from_utf8(line) {
        Ok(line) if line.is_empty() => text(" "),
        Ok(line) => Value::StringValue(line),
        Err(error) => Value::BytesValue(error.into_bytes()),
    }
}

/// Of a trace id as OpenTelemetry has them.
fn bytes_of(id: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = id
        .chars()
        .map(|it| u8::try_from(it.to_digit(16)?).ok())
        .collect();
    let digits = digits.filter(|it| it.len() == 32 && it.iter().any(|it| *it != 0))?;
    Some(digits.chunks(2).map(|it| it[0] << 4 | it[1]).collect())
}

fn text(value: &str) -> Value {
    Value::StringValue(value.to_owned())
}

fn number(value: u64) -> Value {
    Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

#[cfg(test)]
mod tests {
    use berth_domain::SandboxSpec;
    use berth_logs::{format::Gap, reader::Line};

    use super::*;
    use crate::logs::written::{Ground, id};

    fn plain() -> About {
        About::new(&id("web"), None)
    }

    async fn of_spec(change: impl FnOnce(&mut SandboxSpec)) -> About {
        let ground = Ground::new();
        ground.admit(&id("web"), change).await;
        let record = ground.store.get(&id("web")).await.unwrap();
        About::new(&id("web"), record.as_ref())
    }

    fn line(kind: Kind, text: &[u8]) -> Entry {
        let line = Line {
            kind,
            truncated: false,
            partial: false,
            text: text.to_vec(),
        };
        Entry {
            sequence: 7,
            time_ns: 99,
            content: Content::Line(line),
        }
    }

    fn told(record: &LogRecord) -> String {
        let value = |it: &Option<AnyValue>| match it.as_ref().and_then(|it| it.value.clone()) {
            Some(Value::StringValue(it)) => it,
            Some(Value::IntValue(it)) => it.to_string(),
            Some(Value::BoolValue(it)) => it.to_string(),
            Some(Value::BytesValue(it)) => format!("{it:?}"),
            other => format!("{other:?}"),
        };
        let attributes = record.attributes.iter();
        let attributes: Vec<_> = attributes
            .map(|it| format!("{}={}", it.key, value(&it.value)))
            .collect();
        let severity = record.severity_number().as_str_name();
        let severity = severity.trim_start_matches("SEVERITY_NUMBER_");
        format!(
            "{severity} {:?} {}",
            value(&record.body),
            attributes.join(" ")
        )
    }

    #[test]
    #[rustfmt::skip]
    fn each_line_says_whose_it_is_and_how_much_it_matters() {
        let plain = plain();
        let rest = "log=000000000000000a sandbox=web sequence=7 source=app";
        let cases = [
            (Kind::Stdout,  &b"hello"[..], format!("INFO \"hello\" container=app {rest} stream=stdout")),
            (Kind::Stderr,  b"hello",      format!("WARN \"hello\" container=app {rest} stream=stderr")),
            (Kind::UserOob, b"hello",      format!("INFO \"hello\" container=app {rest} stream=user-oob")),
            (Kind::Error,   b"hello",      format!("ERROR \"hello\" container=app {rest} stream=error")),
            (Kind::Stdout,  b"",           format!("INFO \" \" container=app {rest} stream=stdout")),
            (Kind::Stdout,  b"\xff",       format!("INFO \"[255]\" container=app {rest} stream=stdout")),
            (Kind::Stdout,  b"trace_id=x", format!("INFO \"trace_id=x\" container=app {rest} stream=stdout trace_id=x")),
        ];
        for (kind, text, expected) in cases {
            let record = plain.record("app", 10, line(kind, text));
            assert_eq!(told(&record), expected);
            assert_eq!(record.time_unix_nano, 99);
        }
        let system = plain.record(SYSTEM, 10, line(Kind::System, b"pulled"));
        assert_eq!(
            told(&system),
            "INFO \"pulled\" log=000000000000000a sandbox=web sequence=7 source=system stream=system"
        );
    }

    #[tokio::test]
    async fn attributes_of_the_sandbox_win_over_all_but_those_that_number_lines() {
        let about = of_spec(|it| {
            it.version = "v9".to_owned();
            it.log_entity = "shop".to_owned();
            let pairs = [("source", "mine"), ("sequence", "forged"), ("team", "a")];
            it.log_attributes = pairs.map(|(a, b)| (a.to_owned(), b.to_owned())).into();
        })
        .await;
        let record = about.record("app", 10, line(Kind::Stdout, b"x"));
        assert_eq!(
            told(&record),
            "INFO \"x\" container=app log=000000000000000a sandbox=web sequence=7 source=mine stream=stdout team=a version=v9"
        );
        let request = about.request("node-1", vec![record]);
        let resource = request.resource_logs[0].resource.clone().unwrap();
        let expected = [("service.name", "shop"), ("host.name", "node-1")];
        let expected = expected.map(|(key, value)| attribute(key, text(value)));
        assert_eq!(resource.attributes, expected);
    }

    #[test]
    fn a_trace_id_of_its_own_form_is_that_of_the_record() {
        let id = "0af7651916cd43dd8448eb211c80319c";
        let text = format!("trace_id={id}");
        let record = plain().record("app", 1, line(Kind::Stdout, text.as_bytes()));
        assert_eq!(record.trace_id[..3], [0x0a, 0xf7, 0x65]);
        assert_eq!(record.trace_id.len(), 16);
        assert_eq!(bytes_of(&"0".repeat(32)), None, "it would be no trace");
    }

    #[test]
    fn what_is_missing_is_a_record_too() {
        let gap = Entry {
            content: Content::Gap(Gap {
                reason: GapReason::Dropped,
                lines: 3,
                bytes: 4,
            }),
            ..line(Kind::Stdout, b"")
        };
        assert_eq!(
            told(&plain().record("app", 10, gap)),
            "WARN \"lines are missing\" container=app gap.bytes=4 gap.lines=3 gap.reason=dropped \
             log=000000000000000a sandbox=web sequence=7 source=app"
        );
    }
}
