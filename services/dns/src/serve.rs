//! The sockets: packets over UDP, and streams of packets over TCP.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use hickory_proto::op::Message;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, listen, socket_with,
    sockopt::{set_ip_freebind, set_ipv6_freebind, set_socket_reuseaddr},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::JoinSet,
};

use crate::{
    egress::Egress,
    figures::{answered_by, told},
    forward::Forwarder,
    message::{Verdict, encode, failure, judge, udp_limit},
    places::Places,
    upstream::Transport,
    zone::Zone,
};

const PACKET_MAX: usize = 4096;
/// Callers over TCP at the same time; more wait in the kernel's queue.
const STREAMS_MAX: usize = 128;
const STREAMS_WAITING: i32 = 128;
/// Questions over UDP that wait for upstreams. Further ones are told at once, by the forwarder's own limit or by this.
const PENDING_MAX: usize = 4096;
/// A stream on which nothing comes is ended.
const IDLE: Duration = Duration::from_secs(10);

/// Both ways to ask on one address.
#[derive(Debug)]
pub(crate) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

/// What every answer is made of.
#[derive(Clone, Debug)]
pub(crate) struct Answers {
    pub(crate) zone: watch::Receiver<Arc<Zone>>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) egress: Egress,
}

impl Answers {
    /// What the caller is told, when all that belongs to it is done.
    async fn reply(
        &self,
        caller: IpAddr,
        verdict: Verdict,
        transport: Transport,
    ) -> Option<Message> {
        let (mut reply, door) = match verdict {
            Verdict::Ignore => return None,
            Verdict::Reply(reply) => (*reply, None),
            Verdict::ReplyBehind(reply, door) => (*reply, Some(door)),
            Verdict::Forward(query, door) => {
                let reply = self.forwarder.answer(caller, &query, transport);
                (reply.await, door)
            }
        };
        if let Some(door) = door
            && !self.egress.open(door, &mut reply).await
        {
            return Some(failure(&reply));
        }
        Some(reply)
    }
}

impl Sockets {
    /// Binds also while the bridge does not have the address: it comes, and comes back, without our doing.
    pub(crate) fn bind(address: IpAddr, port: u16) -> anyhow::Result<Self> {
        let open = |kind: SocketType| -> anyhow::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let family = match address {
                IpAddr::V4(_) => AddressFamily::INET,
                IpAddr::V6(_) => AddressFamily::INET6,
            };
            let socket = socket_with(family, kind, flags, None)?;
            match address {
                IpAddr::V4(_) => set_ip_freebind(&socket, true)?,
                IpAddr::V6(_) => set_ipv6_freebind(&socket, true)?,
            }
            if kind == SocketType::STREAM {
                set_socket_reuseaddr(&socket, true)?;
            }
            let address = SocketAddr::from((address, port));
            bind(&socket, &address).with_context(|| format!("binding {address}"))?;
            Ok(socket)
        };
        let udp = open(SocketType::DGRAM)?;
        let tcp = open(SocketType::STREAM)?;
        listen(&tcp, STREAMS_WAITING)?;
        Ok(Self {
            udp: UdpSocket::from_std(udp.into())?,
            tcp: TcpListener::from_std(tcp.into())?,
        })
    }

    /// Answers until it is dropped.
    pub(crate) async fn serve(self, answers: Answers) {
        tokio::join!(
            packets(self.udp, answers.clone()),
            streams(self.tcp, answers)
        );
    }
}

async fn packets(socket: UdpSocket, answers: Answers) {
    let socket = Arc::new(socket);
    let mut pending = JoinSet::new();
    let mut buffer = vec![0; PACKET_MAX];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(_) = pending.join_next() => continue,
        };
        let (length, caller) = match received {
            Ok(received) => received,
            // Of a caller that is gone: nothing about the next one.
            Err(error) => {
                tracing::debug!(%error, "a packet was not received");
                continue;
            }
        };
        let packet = &buffer[..length];
        let limit = Some(udp_limit(packet));
        let zone = answers.zone.borrow().clone();
        let began = Instant::now();
        let verdict = judge(&zone, caller.ip(), packet);
        let by = answered_by(&verdict);
        match verdict {
            Verdict::Ignore => {}
            Verdict::Reply(reply) => {
                told(by, Transport::Udp, began, Some(&reply));
                if let Some(bytes) = encode(&reply, limit) {
                    send(&socket, &bytes, caller).await;
                }
            }
            // The caller asks again.
            Verdict::ReplyBehind(..) | Verdict::Forward(..) if pending.len() >= PENDING_MAX => {
                told(by, Transport::Udp, began, None);
            }
            waits @ (Verdict::ReplyBehind(..) | Verdict::Forward(..)) => {
                let (socket, answers) = (socket.clone(), answers.clone());
                pending.spawn(async move {
                    let reply = answers.reply(caller.ip(), waits, Transport::Udp).await;
                    told(by, Transport::Udp, began, reply.as_ref());
                    if let Some(bytes) = reply.and_then(|it| encode(&it, limit)) {
                        send(&socket, &bytes, caller).await;
                    }
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, bytes: &[u8], caller: SocketAddr) {
    if let Err(error) = socket.send_to(bytes, caller).await {
        tracing::debug!(%caller, %error, "an answer was not sent");
    }
}

async fn streams(listener: TcpListener, answers: Answers) {
    let mut open = JoinSet::new();
    let places = Places::new(STREAMS_MAX);
    loop {
        tokio::select! {
            accepted = listener.accept(), if open.len() < STREAMS_MAX => match accepted {
                Ok((stream, caller)) => {
                    // Who has its part of the streams is hung up on.
                    let Some(place) = places.take(caller.ip()) else { continue };
                    let answers = answers.clone();
                    open.spawn(async move {
                        let _place = place;
                        if let Err(error) = converse(stream, caller, &answers).await {
                            tracing::debug!(%caller, %error, "a stream has ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a stream cannot be accepted");
                    // Mostly for want of descriptors, which come back with the streams that end.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = open.join_next() => {}
        }
    }
}

/// Answers one question after another.
async fn converse(
    mut stream: TcpStream,
    caller: SocketAddr,
    answers: &Answers,
) -> std::io::Result<()> {
    loop {
        let question = async {
            let length = stream.read_u16().await?;
            let mut packet = vec![0; usize::from(length)];
            stream.read_exact(&mut packet).await?;
            Ok::<_, std::io::Error>(packet)
        };
        let packet = tokio::time::timeout(IDLE, question).await??;
        let zone = answers.zone.borrow().clone();
        let began = Instant::now();
        let verdict = judge(&zone, caller.ip(), &packet);
        let by = answered_by(&verdict);
        let reply = answers.reply(caller.ip(), verdict, Transport::Tcp).await;
        told(by, Transport::Tcp, began, reply.as_ref());
        let Some(bytes) = reply.and_then(|it| encode(&it, None)) else {
            return Ok(());
        };
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        let written = async {
            stream.write_all(&length.to_be_bytes()).await?;
            stream.write_all(&bytes).await
        };
        tokio::time::timeout(IDLE, written).await??;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::{
        op::{Query, ResponseCode},
        rr::{Name, RecordType},
    };
    use tokio::net::TcpSocket;

    use super::*;
    use crate::{config::Config, known::Known};

    const DEADLINE: Duration = Duration::from_secs(20);

    /// Of a zone that none of its callers is in: all are refused.
    fn answers() -> Answers {
        let config = Config::default();
        let subnet: ipnet::Ipv4Net = "10.9.0.0/24".parse().unwrap();
        let zone = Zone::new(&Known::default(), "app.berth", subnet.into());
        Answers {
            zone: watch::Sender::new(Arc::new(zone)).subscribe(),
            forwarder: Arc::new(Forwarder::new(&config, vec![])),
            egress: Egress::new(&config),
        }
    }

    /// Connects from an address of the loopback of its own.
    async fn connect(from: u8, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        let own = Ipv4Addr::new(127, 0, 9, from);
        socket.bind((own, 0).into()).unwrap();
        socket.connect(to).await.unwrap()
    }

    async fn say(stream: &mut TcpStream) -> std::io::Result<()> {
        let mut query = Message::query();
        let name = Name::from_ascii("web.app.berth.").unwrap();
        query.add_query(Query::query(name, RecordType::A));
        let mut packet = query.to_vec().unwrap();
        let length = u16::try_from(packet.len()).unwrap();
        packet.splice(..0, length.to_be_bytes());
        stream.write_all(&packet).await
    }

    async fn hear(stream: &mut TcpStream) -> std::io::Result<ResponseCode> {
        let hearing = async {
            let mut reply = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut reply).await?;
            Ok(Message::from_vec(&reply).unwrap().metadata.response_code)
        };
        let heard = tokio::time::timeout(DEADLINE, hearing).await;
        heard.expect("it is answered or hung up on")
    }

    async fn ask(stream: &mut TcpStream) -> std::io::Result<ResponseCode> {
        say(stream).await?;
        hear(stream).await
    }

    #[tokio::test]
    async fn who_has_its_part_of_the_streams_is_hung_up_on_and_one_more_than_all_waits() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let to = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(streams(listener, answers()));
        let mut open = vec![];
        for number in 0..STREAMS_MAX {
            if number == STREAMS_MAX / 4 {
                let mut more = connect(0, to).await;
                ask(&mut more).await.unwrap_err();
            }
            let caller = u8::try_from(number / (STREAMS_MAX / 4)).unwrap();
            let mut stream = connect(caller, to).await;
            assert_eq!(ask(&mut stream).await.unwrap(), ResponseCode::Refused);
            open.push(stream);
        }
        let mut one_more = connect(4, to).await;
        say(&mut one_more).await.unwrap();
        for stream in &mut open {
            ask(stream).await.unwrap();
        }
        let said = one_more.try_read(&mut [0]).unwrap_err();
        assert_eq!(said.kind(), std::io::ErrorKind::WouldBlock);
        drop(open.pop());
        let answered = hear(&mut one_more).await.unwrap();
        assert_eq!(answered, ResponseCode::Refused);
    }
}
