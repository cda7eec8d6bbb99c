//! The PROXY protocol, versions 1 and 2: a load balancer says in front of everything else whom it speaks for
//! (haproxy's "The PROXY protocol").

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// With what version 2 begins; it cannot be a Postgres packet, nor TLS.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// With what version 1 begins.
const WORD: &[u8] = b"PROXY ";

/// The longest line of version 1, its end included.
const LONGEST_LINE: usize = 107;

/// The fixed part of version 2.
const FIXED: usize = 16;

/// How much may stand behind the fixed part: addresses, and more than any proxy adds to them.
const LONGEST_REST: usize = 4096;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The client that the connection is made for.
    From(SocketAddr),
    /// The proxy speaks for itself (a health check), or does not say for whom.
    Own,
}

/// Why it is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The connection begins with something else.
    #[error("no PROXY header where one is demanded")]
    Missing,
    /// It begins like one and goes on otherwise.
    #[error("malformed PROXY header")]
    Malformed,
}

/// Reads a header from the beginning of what was received: it and its length, or `None` if there is more to come.
pub fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyError> {
    if begins_alike(bytes, &SIGNATURE) {
        return version_2(bytes);
    }
    if begins_alike(bytes, WORD) {
        return version_1(bytes);
    }
    Err(ProxyError::Missing)
}

/// Whether one of the two is the beginning of the other.
fn begins_alike(bytes: &[u8], whole: &[u8]) -> bool {
    let length = bytes.len().min(whole.len());
    bytes[..length] == whole[..length]
}

fn version_1(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyError> {
    let window = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if window.len() < LONGEST_LINE {
            Ok(None)
        } else {
            Err(ProxyError::Malformed)
        };
    };
    let line = std::str::from_utf8(&window[..end]).map_err(|_| ProxyError::Malformed)?;
    let header = line_1(line).ok_or(ProxyError::Malformed)?;
    Ok(Some((header, end + 2)))
}

/// `PROXY TCP4 192.0.2.1 192.0.2.9 56324 6432`, or `PROXY UNKNOWN` and anything.
fn line_1(line: &str) -> Option<Header> {
    let mut words = line.split(' ').skip(1);
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(Header::Own);
    }
    let address = |word: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => Some(word.parse::<Ipv4Addr>().ok()?.into()),
            "TCP6" => Some(word.parse::<Ipv6Addr>().ok()?.into()),
            _ => None,
        }
    };
    let (source, _destination) = (address(words.next()?)?, address(words.next()?)?);
    let (port, _to) = (port(words.next()?)?, port(words.next()?)?);
    match words.next() {
        None => Some(Header::From(SocketAddr::new(source, port))),
        Some(_) => None,
    }
}

fn port(word: &str) -> Option<u16> {
    let is_plain = word.bytes().all(|byte| byte.is_ascii_digit());
    word.parse().ok().filter(|_| is_plain)
}

fn version_2(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyError> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(None);
    };
    let [.., version_and_command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if version_and_command >> 4 != 2 || length > LONGEST_REST {
        return Err(ProxyError::Malformed);
    }
    let Some(rest) = rest.get(..length) else {
        return Ok(None);
    };
    let header = match version_and_command & 0xf {
        0 => Header::Own,
        1 => from_2(family, rest).ok_or(ProxyError::Malformed)?,
        _ => return Err(ProxyError::Malformed),
    };
    Ok(Some((header, FIXED + length)))
}

/// What stands behind the addresses is passed over.
fn from_2(family: u8, rest: &[u8]) -> Option<Header> {
    let (source, ports): (IpAddr, &[u8]) = match family {
        // TCP over IPv4.
        0x11 => (rest.first_chunk::<4>().copied()?.into(), rest.get(8..)?),
        // TCP over IPv6.
        0x21 => (rest.first_chunk::<16>().copied()?.into(), rest.get(32..)?),
        // Unspecified, datagrams, unix sockets: nothing of it is an address of ours.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => return Some(Header::Own),
        _ => return None,
    };
    let (port, rest) = ports.split_first_chunk::<2>()?;
    rest.first_chunk::<2>()?;
    Some(Header::From(SocketAddr::new(
        source,
        u16::from_be_bytes(*port),
    )))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[0x20 | command, family], &length, rest].concat()
    }

    fn from(text: &str) -> Header {
        Header::From(text.parse().unwrap())
    }

    /// Whole headers and what they say.
    fn right() -> Vec<(Vec<u8>, Header)> {
        let four = [192, 0, 2, 1, 192, 0, 2, 9, 0xdc, 0x04, 0x19, 0x20];
        let mut six = [0; 36];
        (six[0], six[15], six[32], six[33]) = (0xfd, 7, 1, 2);
        let longer = [&four[..], b"\x04\x00\x02xx"].concat();
        vec![
            (
                b"PROXY TCP4 192.0.2.1 192.0.2.9 56324 6432\r\n".to_vec(),
                from("192.0.2.1:56324"),
            ),
            (
                b"PROXY TCP6 fd00::7 ::1 0 65535\r\n".to_vec(),
                from("[fd00::7]:0"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), Header::Own),
            (
                b"PROXY UNKNOWN ffff:f...f:ffff 1 2\r\n".to_vec(),
                Header::Own,
            ),
            (v2(1, 0x11, &four), from("192.0.2.1:56324")),
            (v2(1, 0x11, &longer), from("192.0.2.1:56324")),
            (v2(1, 0x21, &six), from("[fd00::7]:258")),
            (v2(0, 0x11, &four), Header::Own),
            (v2(0, 0x00, &[]), Header::Own),
            (v2(1, 0x00, &[1, 2]), Header::Own),
            (v2(1, 0x31, &[0; 216]), Header::Own),
        ]
    }

    #[test]
    fn a_header_is_read_however_much_of_it_and_of_what_follows_is_there() {
        for (bytes, header) in right() {
            for length in 0..bytes.len() {
                assert_eq!(parse(&bytes[..length]), Ok(None), "{length} of {bytes:?}");
            }
            for behind in [&b""[..], b"\0\0\0\x08\x04\xd2\x16\x2f", b"\r\nPROXY "] {
                let all = [&bytes[..], behind].concat();
                assert_eq!(parse(&all), Ok(Some((header, bytes.len()))), "{bytes:?}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused_at_once() {
        use ProxyError::{Malformed, Missing};
        let endless = [WORD, &[b'x'; LONGEST_LINE]].concat();
        let startup = [0, 0, 0, 8, 4, 210, 22, 47];
        for (bytes, error) in [
            (startup.to_vec(), Missing),
            (b"GET / HTTP/1.0\r\n".to_vec(), Missing),
            (b"PROXX".to_vec(), Missing),
            (b"\r\n\r\n\0\r\nQUIX".to_vec(), Missing),
            (b"\x16\x03\x01".to_vec(), Missing),
            (b"PROXY TCP4 192.0.2.1 192.0.2.9 1\r\n".to_vec(), Malformed),
            (
                b"PROXY TCP4 192.0.2.1 192.0.2.9 1 2 3\r\n".to_vec(),
                Malformed,
            ),
            (
                b"PROXY TCP4 192.0.2.1 192.0.2.9 +1 2\r\n".to_vec(),
                Malformed,
            ),
            (
                b"PROXY TCP4 192.0.2.1  192.0.2.9 1 2\r\n".to_vec(),
                Malformed,
            ),
            (b"PROXY TCP4 fd00::7 ::1 1 2\r\n".to_vec(), Malformed),
            (
                b"PROXY TCP6 192.0.2.1 192.0.2.9 1 2\r\n".to_vec(),
                Malformed,
            ),
            (
                b"PROXY UDP4 192.0.2.1 192.0.2.9 1 2\r\n".to_vec(),
                Malformed,
            ),
            (
                b"PROXY TCP4 192.0.2.1 192.0.2.9 1 65536\r\n".to_vec(),
                Malformed,
            ),
            (b"PROXY \xff\r\n".to_vec(), Malformed),
            (endless, Malformed),
            (v2(2, 0x11, &[0; 12]), Malformed),
            (v2(1, 0x11, &[0; 11]), Malformed),
            (v2(1, 0x21, &[0; 35]), Malformed),
            (v2(1, 0x41, &[0; 36]), Malformed),
            (
                v2(1, 0x11, &vec![0; LONGEST_REST + 1])[..FIXED].to_vec(),
                Malformed,
            ),
            ([&SIGNATURE[..], &[0x11, 0x11, 0, 12]].concat(), Malformed),
        ] {
            assert_eq!(parse(&bytes), Err(error), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics_and_takes_no_more_than_there_is(
            begin in prop::sample::select(vec![&b""[..], WORD, b"PROXY TCP4 ", &SIGNATURE, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0"]),
            rest in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = [begin, &rest].concat();
            if let Ok(Some((_, length))) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
                prop_assert!(matches!(parse(&bytes[..length - 1]), Ok(None)));
            }
        }

        #[test]
        fn any_address_comes_through(ip in any::<IpAddr>(), port in any::<u16>(), behind in any::<Vec<u8>>()) {
            let address = SocketAddr::new(ip, port);
            let family = if ip.is_ipv4() { "TCP4" } else { "TCP6" };
            let line = format!("PROXY {family} {ip} {ip} {port} 5\r\n");
            let both = |ip: &[u8]| [ip, ip, &port.to_be_bytes()[..], &[0, 5]].concat();
            let binary = match ip {
                IpAddr::V4(ip) => v2(1, 0x11, &both(&ip.octets())),
                IpAddr::V6(ip) => v2(1, 0x21, &both(&ip.octets())),
            };
            for header in [line.into_bytes(), binary] {
                let all = [&header[..], &behind].concat();
                prop_assert_eq!(parse(&all), Ok(Some((Header::From(address), header.len()))));
            }
        }
    }
}
