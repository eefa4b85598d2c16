//! Which methods there are, and which of them are streams: what the contract says.

use std::collections::HashMap;

use prost::Message as _;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Unary,
    Stream,
}

/// By path, as `/berth.v1.SandboxService/Create`.
#[derive(Debug)]
pub(crate) struct Methods(HashMap<String, Shape>);

/// What a call is about, as far as metrics tell it apart.
pub(crate) const OTHER: &str = "_OTHER";

impl Methods {
    pub(crate) fn of_contract() -> Self {
        let files = prost_types::FileDescriptorSet::decode(berth_api::FILE_DESCRIPTOR_SET);
        // It is generated with the code that serves it.
        let files = files.unwrap_or_default().file;
        let mut shapes = HashMap::new();
        for file in files {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let streams = method.client_streaming() || method.server_streaming();
                    let shape = if streams { Shape::Stream } else { Shape::Unary };
                    shapes.insert(path, shape);
                }
            }
        }
        Self(shapes)
    }

    #[cfg(test)]
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The name of a method, without the slash before it, and its shape; `None` for what is not of the contract.
    pub(crate) fn find(&self, path: &str) -> Option<(&str, Shape)> {
        let (name, shape) = self.0.get_key_value(path)?;
        Some((name.trim_start_matches('/'), *shape))
    }
}

/// Whether a call is about the server itself: who asks for health must not be refused, nor fill traces.
pub fn is_about_the_server(path: &str) -> bool {
    path.starts_with("/grpc.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn the_contract_says_which_methods_are_streams() {
        let methods = Methods::of_contract();
        let cases = [
            ("/berth.v1.SandboxService/Create",     Some(("berth.v1.SandboxService/Create", Shape::Unary))),
            ("/berth.v1.SandboxService/Watch",      Some(("berth.v1.SandboxService/Watch", Shape::Stream))),
            ("/berth.v1.SandboxService/Exec",       Some(("berth.v1.SandboxService/Exec", Shape::Stream))),
            ("/berth.v1.ImageService/ImportImages", methods.find("/berth.v1.ImageService/ImportImages")),
            ("/berth.v1.SandboxService/create",     None),
            ("/grpc.health.v1.Health/Check",        None),
        ];
        for (path, expected) in cases {
            assert_eq!(methods.find(path), expected, "{path}");
        }
        assert!(is_about_the_server("/grpc.health.v1.Health/Check"));
    }
}
