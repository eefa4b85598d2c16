//! How sizes, shares of a CPU, times, pairs and ports are read.

use std::time::Duration;

use berth_api::v1;

/// A declared port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortArg {
    pub(crate) port: u16,
    pub(crate) protocol: v1::Protocol,
}

/// `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) value: String,
}

pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let duration: jiff::SignedDuration =
        text.parse().map_err(|err: jiff::Error| err.to_string())?;
    Duration::try_from(duration).map_err(|_| "must not be less than zero".to_owned())
}

pub(crate) fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_time(text)? {
        Duration::ZERO => Err("must be longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

pub(crate) fn parse_pair(text: &str) -> Result<Pair, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok(Pair {
            key: key.to_owned(),
            value: value.to_owned(),
        }),
        Some(_) | None => Err("must be KEY=VALUE".to_owned()),
    }
}

pub(crate) fn parse_port(text: &str) -> Result<PortArg, String> {
    let (port, protocol) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), v1::Protocol::Tcp),
        Some((port, "udp")) => (port, v1::Protocol::Udp),
        Some((_, other)) => return Err(format!("`{other}` is neither tcp nor udp")),
    };
    match digits(port).and_then(|port| u16::try_from(port).ok()) {
        Some(port) if port > 0 => Ok(PortArg { port, protocol }),
        Some(_) | None => Err("must be 1 to 65535".to_owned()),
    }
}

pub(crate) fn parse_cpu_millis(text: &str) -> Result<u32, String> {
    let wrong = || "must be a number of CPUs with at most three decimals, as `0.5`".to_owned();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if fraction.is_empty() || fraction.len() > 3 {
        return Err(wrong());
    }
    let whole = digits(whole).ok_or_else(wrong)?;
    let thousandths = digits(&format!("{fraction:0<3}")).ok_or_else(wrong)?;
    let millis = whole
        .checked_mul(1000)
        .and_then(|it| it.checked_add(thousandths));
    match millis.and_then(|it| u32::try_from(it).ok()) {
        Some(0) => Err("must be more than 0".to_owned()),
        Some(millis) => Ok(millis),
        None => Err(wrong()),
    }
}

pub(crate) fn parse_memory_bytes(text: &str) -> Result<u64, String> {
    let wrong = || "must be a number of bytes, or one followed by K, M, G or T".to_owned();
    let end = text
        .find(|it: char| !it.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let exponent = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 1,
        "m" | "mb" | "mi" | "mib" => 2,
        "g" | "gb" | "gi" | "gib" => 3,
        "t" | "tb" | "ti" | "tib" => 4,
        _ => return Err(wrong()),
    };
    let number = digits(number).ok_or_else(wrong)?;
    match number.checked_mul(1024_u64.pow(exponent)) {
        Some(0) => Err("must be more than 0".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err(wrong()),
    }
}

/// Reads digits only: `parse` alone would take a sign.
fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|it| it.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn sizes_are_read_in_powers_of_1024() {
        let cases = [
            ("1",                    Some(1)),
            ("67108864",             Some(64 << 20)),
            ("64M",                  Some(64 << 20)),
            ("64m",                  Some(64 << 20)),
            ("64MiB",                Some(64 << 20)),
            ("1G",                   Some(1 << 30)),
            ("2Ti",                  Some(2 << 40)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("17179869184G",         None),
            ("0",                    None),
            ("",                     None),
            ("M",                    None),
            ("-1",                   None),
            ("+1",                   None),
            ("1.5G",                 None),
            ("1X",                   None),
            ("1é",                   None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_memory_bytes(text).ok(), expected, "{text}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn shares_of_a_cpu_are_read_exactly() {
        let cases = [
            ("0.5",       Some(500)),
            ("0.05",      Some(50)),
            ("0.001",     Some(1)),
            ("1",         Some(1000)),
            ("2.25",      Some(2250)),
            ("1024",      Some(1_024_000)),
            ("0",         None),
            ("0.0",       None),
            ("0.0001",    None),
            (".5",        None),
            ("1.",        None),
            ("-1",        None),
            ("1.-1",      None),
            ("nan",       None),
            ("1e3",       None),
            ("4294968",   None),
            ("",          None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_cpu_millis(text).ok(), expected, "{text}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn ports_are_read_with_their_protocol() {
        let cases = [
            ("80",         Some((80, v1::Protocol::Tcp))),
            ("80/tcp",     Some((80, v1::Protocol::Tcp))),
            ("53/udp",     Some((53, v1::Protocol::Udp))),
            ("65535",      Some((65535, v1::Protocol::Tcp))),
            ("0",          None),
            ("65536",      None),
            ("80/sctp",    None),
            ("80/",        None),
            ("/udp",       None),
            ("+80",        None),
            ("80/tcp/tcp", None),
            ("",           None),
        ];
        for (text, expected) in cases {
            let read = parse_port(text).ok().map(|it| (it.port, it.protocol));
            assert_eq!(read, expected, "{text}");
        }
    }

    #[test]
    fn a_pair_keeps_every_sign_after_the_first_equals() {
        let pair = parse_pair("A=b=c").expect("it is a pair");
        assert_eq!((pair.key.as_str(), pair.value.as_str()), ("A", "b=c"));
        assert!(parse_pair("=b").is_err());
        assert!(parse_pair("A").is_err());
    }

    #[test]
    fn a_timeout_is_read_in_words_and_is_longer_than_zero() {
        assert_eq!(parse_timeout("1m 30s").ok(), Some(Duration::from_secs(90)));
        assert_eq!(
            parse_timeout("250ms").ok(),
            Some(Duration::from_millis(250))
        );
        assert!(parse_timeout("0s").is_err());
        assert!(parse_timeout("-5s").is_err());
        assert!(parse_timeout("90").is_err());
    }
}
