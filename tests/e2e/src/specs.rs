//! Specs that the tests ask for.

use berth_api::v1::{Container, Port, Resources, SandboxSpec};

pub const IMAGE: &str = crate::images::BUSYBOX;

/// A container that runs a shell line.
pub fn shell(name: &str, line: &str, ports: &[u32]) -> Container {
    Container {
        name: name.into(),
        image: IMAGE.into(),
        command: line.into(),
        ports: ports
            .iter()
            .map(|&port| Port {
                port,
                ..Port::default()
            })
            .collect(),
        // A shell's program is the first process of its own pid namespace and does not hear SIGTERM: this passes.
        shutdown_timeout: millis(100),
        ..Container::default()
    }
}

pub fn spec(containers: impl IntoIterator<Item = Container>) -> SandboxSpec {
    SandboxSpec {
        containers: containers.into_iter().collect(),
        ..SandboxSpec::default()
    }
}

/// A sandbox that serves `text` at `/` on `port`.
pub fn web(text: &str, port: u32) -> SandboxSpec {
    let line = format!(
        "mkdir -p /www && echo '{text}' > /www/index.html && exec httpd -f -p {port} -h /www"
    );
    spec([shell("web", &line, &[port])])
}

/// The time in a message.
pub fn millis(number: u64) -> Option<prost_types::Duration> {
    std::time::Duration::from_millis(number).try_into().ok()
}

/// A sandbox that does nothing for long.
pub fn idle() -> SandboxSpec {
    spec([shell("app", "exec sleep 3600", &[])])
}

pub fn limits(cpu_millis: u32, memory_bytes: u64, pids: u32) -> Resources {
    Resources {
        cpu_millis,
        memory_bytes,
        pids,
        ..Resources::default()
    }
}
