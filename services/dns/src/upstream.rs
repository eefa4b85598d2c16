//! One question to one resolver of the host's.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use hickory_proto::op::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

use crate::message::plain;

/// The largest answer over UDP.
const UDP_MAX: usize = 4096;

/// Who is asked, in order.
#[derive(Clone, Debug)]
pub(crate) enum Upstreams {
    These(Vec<IpAddr>),
    /// Read for each question: DHCP and people change it.
    Of(PathBuf),
}

/// How an answer shall come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

impl Upstreams {
    /// Without the node's own addresses on the bridge, which would ask itself.
    pub(crate) fn current(&self, own: &[IpAddr]) -> Vec<IpAddr> {
        let mut all = match self {
            Self::These(all) => all.clone(),
            Self::Of(path) => name_servers(&fs::read_to_string(path).unwrap_or_default()),
        };
        all.retain(|it| !own.contains(it));
        all
    }
}

/// The addresses in the lines `nameserver ADDRESS`.
fn name_servers(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
    };
    text.lines().filter_map(server).collect()
}

/// Asks `upstream` and returns its answer to this very question, or an error when there is none in time.
pub(crate) async fn ask(
    upstream: SocketAddr,
    query: &Message,
    transport: Transport,
    limit: Duration,
) -> io::Result<Message> {
    let packet = query.to_vec().map_err(io::Error::other)?;
    let exchange = async {
        let answer = over_udp(upstream, query, &packet).await?;
        // The caller over UDP is told that it is cut, and comes back over TCP.
        if answer.metadata.truncation && transport == Transport::Tcp {
            return over_tcp(upstream, query, &packet).await;
        }
        Ok(answer)
    };
    tokio::time::timeout(limit, exchange)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn over_udp(upstream: SocketAddr, query: &Message, packet: &[u8]) -> io::Result<Message> {
    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => [0; 4].into(),
        SocketAddr::V6(_) => [0; 16].into(),
    };
    // A port of its own for each question, and a connected socket: whoever wants to slip in an answer has to guess both.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(packet).await?;
    let mut buffer = vec![0; UDP_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = answers(query, &buffer[..length]) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(upstream: SocketAddr, query: &Message, packet: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(packet).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    answers(query, &buffer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The answer, where it is one to this question.
fn answers(query: &Message, packet: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(packet).ok()?;
    let asked = query.queries.first()?;
    let said = answer.queries.first()?;
    let same = answer.metadata.id == query.metadata.id
        && answer.metadata.message_type == hickory_proto::op::MessageType::Response
        && said.query_type() == asked.query_type()
        && said.query_class() == asked.query_class()
        && plain(said.name()) == plain(asked.name());
    same.then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_in_their_order_and_the_node_itself_is_left_out() {
        let text = "# nameserver 1.1.1.1\nsearch lan\nnameserver 192.0.2.1 # a\n nameserver\tfd00::1\n\
                    nameserver fe80::1%eth0\nnameserver 10.9.0.1\nnameserver fd00::a09:1\noptions ndots:2\n";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        fs::write(&path, text).unwrap();
        let own: [IpAddr; 2] = [[10, 9, 0, 1].into(), "fd00::a09:1".parse().unwrap()];
        let found = Upstreams::Of(path.clone()).current(&own);
        let expected: Vec<IpAddr> = vec![[192, 0, 2, 1].into(), "fd00::1".parse().unwrap()];
        assert_eq!(found, expected);
        fs::remove_file(&path).unwrap();
        assert_eq!(Upstreams::Of(path).current(&own), Vec::<IpAddr>::new());
    }
}
