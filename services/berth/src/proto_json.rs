//! Messages of the contract as canonical proto JSON, and requests read from JSON or YAML.
//! It does not know where the text comes from or goes to.

use std::sync::LazyLock;

use berth_api::v1;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions,
};
use serde::{Serialize, Serializer, de};
use serde_saphyr::UserMessageFormatter;

static CONTRACT: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(berth_api::FILE_DESCRIPTOR_SET)
        .expect("the descriptors are generated from the contract")
});

/// A message that is printed or read.
pub(crate) trait Named: prost::Message + Default {
    /// Full name in the contract.
    const NAME: &'static str;
}

macro_rules! named {
    ($($message:ident),* $(,)?) => {
        $(impl Named for v1::$message {
            const NAME: &'static str = concat!("berth.v1.", stringify!($message));
        })*
        #[cfg(test)]
        const NAMES: &[&str] = &[$(<v1::$message as Named>::NAME),*];
    };
}

named!(
    AddressLease,
    AuditResponse,
    Collection,
    CountLeasesResponse,
    ListRulesResponse,
    CreateRequest,
    DeleteEntryResponse,
    DrainResponse,
    Endpoint,
    Entry,
    GetStatusResponse,
    GetWatchdogStatusResponse,
    WatchdogRun,
    WatchdogServicePlanResponse,
    Image,
    ImageGcServicePlanResponse,
    ListEntriesResponse,
    ListHoldersResponse,
    ListSubnetsResponse,
    LogEntry,
    ReleaseLeaseResponse,
    ReleaseRestingLeasesResponse,
    ReleaseSubnetResponse,
    ReserveSubnetResponse,
    Sandbox,
    SnapshotResponse,
    WatchResponse,
    PinImageResponse,
    UnpinImageResponse,
    WorkLease,
);

fn descriptor<M: Named>() -> MessageDescriptor {
    CONTRACT
        .get_message_by_name(M::NAME)
        .expect("a test looks every name up")
}

fn to_dynamic<M: Named>(message: &M) -> DynamicMessage {
    DynamicMessage::decode(descriptor::<M>(), message.encode_to_vec().as_slice())
        .expect("a message can be read as its own type")
}

fn to_concrete<M: Named>(message: &DynamicMessage) -> M {
    message
        .transcode_to()
        .expect("a message can be read as its own type")
}

/// Serializes as canonical proto JSON, fields with default values included: a reader finds `false` and `0` too.
#[derive(Debug)]
pub(crate) struct ProtoJson<'a, M>(pub(crate) &'a M);

impl<M: Named> Serialize for ProtoJson<'_, M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        to_dynamic(self.0).serialize_with_options(
            serializer,
            &SerializeOptions::new().skip_default_fields(false),
        )
    }
}

/// Why a text is not the message that it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("it is empty")]
    Empty,
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("{}", .0.render_with_formatter(&UserMessageFormatter))]
    Yaml(Box<serde_saphyr::Error>),
}

/// Reads JSON, when the text begins with `{`, or YAML. Fields that the contract does not have are refused.
pub(crate) fn read<M: Named>(text: &str) -> Result<M, ReadError> {
    let begin = text.trim_start();
    if begin.is_empty() {
        return Err(ReadError::Empty);
    }
    let message = if begin.starts_with('{') {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let message = read_strictly::<M, _>(&mut deserializer)?;
        deserializer.end()?;
        message
    } else {
        serde_saphyr::with_deserializer_from_str(text, |it| read_strictly::<M, _>(it))
            .map_err(|err| ReadError::Yaml(Box::new(err)))?
    };
    Ok(to_concrete(&message))
}

fn read_strictly<'de, M: Named, D>(deserializer: D) -> Result<DynamicMessage, D::Error>
where
    D: de::Deserializer<'de>,
{
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    DynamicMessage::deserialize_with_options(descriptor::<M>(), deserializer, &options)
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = r#"
# Comments are welcome.
id: web
spec:
  labels: {team: infra, "on": "yes"}
  version: "1.27"
  portWaitTimeout: 2.5s
  restart_policy: RESTART_POLICY_NEVER
  containers:
    - name: app
      image: docker.io/library/nginx:1.27
      env: [A=1, "B=x: y"]
      args:
        - -g
        - daemon off;
      ports:
        - port: 80
        - {port: 53, protocol: PROTOCOL_UDP}
      configFiles:
        - path: /etc/a
          data: aGVsbG8=
          mode: "0640"
  resources:
    cpuMillis: 500
    memoryBytes: "67108864"
    memoryHighBytes: 33554432
wait: WAIT_FOR_ACCEPTED
"#;

    #[test]
    fn every_named_message_is_in_the_contract() {
        for name in NAMES {
            assert!(CONTRACT.get_message_by_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn yaml_is_read_into_the_request() {
        let request: v1::CreateRequest = read(YAML).expect("it is right");
        assert_eq!(request.id, "web");
        assert_eq!(request.wait(), v1::WaitFor::Accepted);
        let spec = request.spec.expect("it is given");
        assert_eq!(spec.labels["on"], "yes");
        assert_eq!(spec.version, "1.27");
        assert_eq!(spec.restart_policy(), v1::RestartPolicy::Never);
        let wait = spec.port_wait_timeout.expect("it is given");
        assert_eq!((wait.seconds, wait.nanos), (2, 500_000_000));
        let container = &spec.containers[0];
        assert_eq!(container.env, ["A=1", "B=x: y"]);
        assert_eq!(container.args, ["-g", "daemon off;"]);
        assert_eq!(container.ports[1].protocol(), v1::Protocol::Udp);
        assert_eq!(container.config_files[0].data, b"hello");
        assert_eq!(container.config_files[0].mode, "0640");
        let resources = spec.resources.expect("it is given");
        assert_eq!(
            (resources.cpu_millis, resources.memory_bytes),
            (500, 64 << 20)
        );
    }

    #[test]
    fn what_is_printed_as_json_or_yaml_is_read_back_the_same() {
        let request: v1::CreateRequest = read(YAML).expect("it is right");
        let json = serde_json::to_string_pretty(&ProtoJson(&request)).expect("it is printable");
        assert_eq!(
            read::<v1::CreateRequest>(&json).expect("JSON"),
            request,
            "{json}"
        );
        let yaml = serde_saphyr::to_string(&ProtoJson(&request)).expect("it is printable");
        assert_eq!(
            read::<v1::CreateRequest>(&yaml).expect("YAML"),
            request,
            "{yaml}"
        );
    }

    #[test]
    fn texts_that_look_like_other_types_survive_yaml() {
        let labels = [
            "yes", "null", "~", "0640", "1e3", "1.0", "", " a", "a: b", "- x", "#", "é\n\n",
        ];
        let spec = v1::SandboxSpec {
            labels: labels
                .iter()
                .map(|it| (format!("k{it}"), (*it).to_owned()))
                .collect(),
            ..Default::default()
        };
        let request = v1::CreateRequest {
            id: "on".to_owned(),
            spec: Some(spec),
            ..v1::CreateRequest::default()
        };
        let yaml = serde_saphyr::to_string(&ProtoJson(&request)).expect("it is printable");
        assert_eq!(
            read::<v1::CreateRequest>(&yaml).expect("YAML"),
            request,
            "{yaml}"
        );
    }

    #[test]
    #[rustfmt::skip]
    fn what_the_contract_does_not_have_is_refused_by_name() {
        let cases = [
            ("id: a\nspce: {}",                                         "spce"),
            ("{\"id\": \"a\", \"spce\": {}}",                           "spce"),
            ("id: a\nspec: {containers: [{name: app, imgae: nginx}]}",  "imgae"),
            ("{\"spec\": {\"resources\": {\"cpu\": 1}}}",               "cpu"),
            ("wait: SOMETIME",                                          "SOMETIME"),
        ];
        for (text, name) in cases {
            let err = read::<v1::CreateRequest>(text).expect_err(text).to_string();
            assert!(err.contains(name), "{text}: {err}");
        }
    }

    #[test]
    fn broken_texts_are_refused() {
        for text in [
            "",
            "  \n",
            "{",
            "{}}",
            "id: [",
            "- a",
            "id: 5\nid: 6",
            "spec: 7",
            "just words",
        ] {
            assert!(read::<v1::CreateRequest>(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn false_and_zero_are_printed() {
        let json = serde_json::to_value(ProtoJson(&v1::AuditResponse::default()))
            .expect("it is printable");
        assert_eq!(json, serde_json::json!({"objects": [], "clean": false}));
        let snapshot = v1::SnapshotResponse {
            total: Some(Default::default()),
            ..Default::default()
        };
        let json = serde_json::to_value(ProtoJson(&snapshot)).expect("it is printable");
        assert_eq!(json["total"]["pids"], "0");
    }
}
