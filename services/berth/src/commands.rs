//! Runs a command: which calls it makes and what it prints. One file per group.
//! It does not know how text is laid out or how a failure is told.

mod attach;
mod catalog;
mod copy;
mod events;
mod exec;
mod explain;
mod forward;
mod gc;
mod health;
mod images;
mod logs;
mod network;
mod node;
mod sandboxes;
mod stats;
mod top;
mod watchdog;

use std::time::Duration;

use berth_api::{
    ConnectError, Target, TlsFiles,
    v1::{self, node_service_client::NodeServiceClient},
};
use clap::CommandFactory as _;
use tonic::{Request, transport::Channel};

use crate::{
    args::{Args, Command, Global},
    errors::Failure,
    output::{self, Output},
};

/// How long to try to reach the manager when no `--timeout` is given: a host that drops packets never refuses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What all commands share: the way to the manager and the form of the output.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    address: String,
    tls: Option<TlsFiles>,
    timeout: Option<Duration>,
    output: Output,
}

impl Session {
    pub(crate) fn new(global: Global) -> Self {
        let Global {
            address,
            tls_ca,
            tls_certificate,
            tls_key,
            output,
            timeout,
        } = global;
        let tls = tls_ca.zip(tls_certificate).zip(tls_key);
        Self {
            address,
            tls: tls.map(|((ca, certificate), key)| TlsFiles {
                ca,
                certificate,
                key,
            }),
            timeout,
            output: Output::new(output),
        }
    }

    async fn connect(&self) -> Result<Channel, Failure> {
        self.connect_to(&self.address).await
    }

    async fn connect_to(&self, address: &str) -> Result<Channel, Failure> {
        let limit = self.timeout.unwrap_or(CONNECT_TIMEOUT);
        let unreachable = |source| Failure::Unreachable {
            address: address.to_owned(),
            source,
        };
        let target = Target {
            address: address.to_owned(),
            tls: self.tls.clone(),
        };
        match tokio::time::timeout(limit, target.connect()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(ConnectError::Unreachable { source, .. })) => Err(unreachable(source.into())),
            Ok(Err(err @ (ConnectError::Malformed { .. } | ConnectError::FilesMissing { .. }))) => {
                Err(Failure::Address(err))
            }
            Err(err) => Err(unreachable(err.into())),
        }
    }

    /// A process beside the manager that answers, and where: at the address that was named, where those say that the manager
    /// knows, or where one listens unless told otherwise.
    async fn connect_beside(
        &self,
        name: &str,
        named: Option<&String>,
    ) -> Result<(String, Channel), Failure> {
        let addresses = match named {
            Some(address) => vec![address.clone()],
            // Sockets of that node are not ours, and those of this one are not meant.
            None if !self.is_near() => return Err(Failure::Elsewhere(name.to_owned())),
            None => {
                let known = self
                    .known_beside(name)
                    .await
                    .unwrap_or_default()
                    .into_iter();
                let usual = format!("unix:/run/berth/{name}.sock");
                known.chain([usual]).collect()
            }
        };
        let mut last = None;
        for address in addresses {
            match self.connect_to(&address).await {
                Ok(channel) => return Ok((address, channel)),
                Err(failure @ Failure::Unreachable { .. }) => last = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        Err(last.unwrap_or(Failure::Incomplete("address")))
    }

    /// Whether the manager is one of this node.
    fn is_near(&self) -> bool {
        !self.address.starts_with("http")
    }

    async fn known_beside(&self, name: &str) -> Result<Vec<String>, Failure> {
        let mut client = NodeServiceClient::new(self.connect().await?);
        let status = client.get_status(self.request(v1::GetStatusRequest {}));
        let plugins = status.await?.into_inner().plugins.into_iter();
        let named = plugins.filter(|it| it.name == name && !it.address.is_empty());
        Ok(named.map(|it| it.address).collect())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        request
    }
}

/// Runs one command to its end. The code is that of a program that it ran, else 0.
pub(crate) async fn run(session: &Session, command: Command) -> Result<u8, Failure> {
    let done = match command {
        Command::Exec(args) => return exec::run(session, args).await,
        Command::Attach(args) => return attach::run(session, args).await,
        Command::Create(args) => sandboxes::create(session, args).await,
        Command::Run(args) => sandboxes::run(session, args).await,
        Command::Ls(args) => sandboxes::list(session, args).await,
        Command::Get(args) => sandboxes::get(session, args).await,
        Command::Stop(args) => sandboxes::stop(session, args).await,
        Command::Renew(args) => sandboxes::renew(session, args).await,
        Command::Rm(args) => sandboxes::remove(session, args).await,
        Command::Stats(args) => stats::run(session, args).await,
        Command::Top(args) => top::run(session, args).await,
        Command::Events(args) => events::watch(session, args).await,
        Command::Logs(args) => logs::stream(session, args).await,
        Command::Cp(args) => copy::copy(session, args).await,
        Command::PortForward(args) => forward::forward(session, args).await,
        Command::Images(command) => images::run(session, command).await,
        Command::Gc(command) => gc::run(session, command).await,
        Command::Explain(command) => explain::run(session, command).await,
        Command::Catalog(command) => catalog::run(session, command).await,
        Command::Net(command) => network::run(session, command).await,
        Command::Audit(args) => node::audit(session, args).await,
        Command::Watchdog(command) => watchdog::run(session, command).await,
        Command::Node(command) => node::run(session, command).await,
        Command::Health(args) => health::check(session, args).await,
        Command::Version => node::version(session).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "berth", &mut script);
            Ok(output::print(&String::from_utf8_lossy(&script))?)
        }
    };
    done.map(|()| 0)
}
