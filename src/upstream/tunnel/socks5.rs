//! SOCKS 5 (RFC 1928) with user and password (RFC 1929). Names go to the proxy unresolved.

use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::Zeroizing;

use super::{Target, TunnelError};
use crate::config::ProxyAuth;
use crate::domain::policy::proxy::of_socks_reply;

const VERSION: u8 = 5;
/// Methods of authentication (RFC 1928 section 3).
const NO_AUTH: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;
const NO_METHOD: u8 = 0xff;
/// The version of RFC 1929.
const AUTH_VERSION: u8 = 1;
const CONNECT: u8 = 1;
/// Types of addresses (RFC 1928 section 5).
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

const NOT_SOCKS: &str = "the answer is not SOCKS 5";
const METHOD: &str = "the proxy requires an authentication that chatgate was not configured for";
const CREDENTIALS: &str = "the proxy rejects user or password";
const NAME_TOO_LONG: &str = "the name of the domain is longer than 255 bytes";

pub(super) async fn open(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    auth: Option<&ProxyAuth>,
    target: Target<'_>,
    asked: &mut bool,
) -> Result<(), TunnelError> {
    let request = connect_request(target)?;
    let methods: &[u8] =
        if auth.is_some() { &[VERSION, 2, NO_AUTH, USER_AND_PASSWORD] } else { &[VERSION, 1, NO_AUTH] };
    send(stream, methods).await?;
    match (read_array(stream).await?, auth) {
        ([VERSION, NO_AUTH], _) => {}
        ([VERSION, USER_AND_PASSWORD], Some(auth)) => {
            send(stream, &auth_request(auth)).await?;
            match read_array(stream).await? {
                [AUTH_VERSION, 0] => {}
                [AUTH_VERSION, _] => return Err(TunnelError::unauthorized(CREDENTIALS)),
                _ => return Err(TunnelError::invalid(NOT_SOCKS)),
            }
        }
        ([VERSION, NO_METHOD], _) => return Err(TunnelError::unauthorized(METHOD)),
        _ => return Err(TunnelError::invalid(NOT_SOCKS)),
    }
    send(stream, &request).await?;
    *asked = true;
    let [version, reply] = read_array(stream).await?;
    if version != VERSION {
        return Err(TunnelError::invalid(NOT_SOCKS));
    }
    if let Some(failure) = of_socks_reply(reply) {
        return Err(TunnelError { failure, cause: format!("the proxy answers with SOCKS reply {reply}") });
    }
    skip_bound_address(stream).await
}

/// Returns the request for a connection to the target.
fn connect_request(Target { host, port }: Target<'_>) -> Result<Vec<u8>, TunnelError> {
    let mut request = vec![VERSION, CONNECT, 0];
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => {
            request.push(IPV4);
            request.extend(ip.octets());
        }
        Ok(IpAddr::V6(ip)) => {
            request.push(IPV6);
            request.extend(ip.octets());
        }
        Err(_) => {
            let len = u8::try_from(host.len()).map_err(|_| TunnelError::invalid(NAME_TOO_LONG))?;
            request.extend([NAME, len]);
            request.extend(host.as_bytes());
        }
    }
    request.extend(port.to_be_bytes());
    Ok(request)
}

/// Returns the request with user and password. [`ProxyAuth`] limits both to 255 bytes.
fn auth_request(auth: &ProxyAuth) -> Zeroizing<Vec<u8>> {
    // Allocated once: a vector that grows leaves copies of the credentials behind.
    let mut request = Zeroizing::new(Vec::with_capacity(3 + auth.user().len() + auth.password().len()));
    request.push(AUTH_VERSION);
    for text in [auth.user(), auth.password()] {
        request.push(text.len() as u8);
        request.extend_from_slice(text.as_bytes());
    }
    request
}

/// Reads the rest of a successful reply: the address of the proxy's own end, which is of no use here. Exactly these
/// bytes, because what follows belongs to TLS.
async fn skip_bound_address(stream: &mut (impl AsyncRead + Unpin)) -> Result<(), TunnelError> {
    let [_reserved, kind] = read_array(stream).await?;
    let len = match kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => {
            let [len] = read_array(stream).await?;
            usize::from(len)
        }
        _ => return Err(TunnelError::invalid(NOT_SOCKS)),
    };
    let mut address_and_port = [0; 255 + 2];
    stream.read_exact(&mut address_and_port[..len + 2]).await?;
    Ok(())
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), TunnelError> {
    stream.write_all(bytes).await?;
    stream.flush().await?;
    Ok(())
}

async fn read_array<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> Result<[u8; N], TunnelError> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{auth, play};
    use super::*;
    use crate::config::ProxyProtocol;
    use crate::domain::policy::proxy::{ConnectFailure, ProxyFailure};

    /// A successful reply with an IPv4 address.
    const OPEN: &[u8] = &[5, 0, 0, 1, 10, 0, 0, 1, 4, 56];

    /// Runs the handshake without credentials. Returns the result and the sent bytes.
    async fn connect(host: &str, answers: &[&[u8]]) -> (Result<(), TunnelError>, Vec<u8>) {
        play(ProxyProtocol::Socks5, None, host, answers).await
    }

    #[tokio::test]
    async fn names_and_addresses_go_to_the_proxy() {
        let port = 443_u16.to_be_bytes();
        for (host, address) in [
            ("chat.test", [&[3, 9], b"chat.test".as_slice()].concat()),
            ("192.0.2.1", vec![1, 192, 0, 2, 1]),
            ("[2001:db8::1]", vec![4, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ] {
            let (result, sent) = connect(host, &[&[5, 0], OPEN]).await;
            assert_eq!(result, Ok(()), "{host}");
            assert_eq!(sent, [[5, 1, 0].as_slice(), &[5, 1, 0], &address, &port].concat(), "{host}");
        }
    }

    #[tokio::test]
    async fn replies_with_every_type_of_address_in_single_bytes_open_the_tunnel() {
        let v6 = [[5, 0, 0, 4].as_slice(), &[0; 18]].concat();
        let name = [[5, 0, 0, 3, 255].as_slice(), &[b'x'; 257]].concat();
        for reply in [OPEN, &v6, &name, &[5, 0, 0, 3, 0, 0, 0]] {
            let answers: Vec<&[u8]> = [[5, 0].as_slice(), reply].concat().leak().chunks(1).collect();
            assert_eq!(connect("chat.test", &answers).await.0, Ok(()));
        }
    }

    #[tokio::test]
    async fn credentials_are_sent_only_if_the_proxy_asks_for_them() {
        let run = |answers| play(ProxyProtocol::Socks5, Some(auth("user:pa:ss")), "192.0.2.1", answers);
        let (greeting, request) = ([5, 2, 0, 2], [5, 1, 0, 1, 192, 0, 2, 1, 1, 187]);
        let (result, sent) = run(&[&[5, 2], &[1, 0], OPEN]).await;
        assert_eq!(result, Ok(()));
        assert_eq!(sent, [greeting.as_slice(), &[1, 4], b"user", &[5], b"pa:ss", &request].concat());
        let (result, sent) = run(&[&[5, 0], OPEN]).await;
        assert_eq!((result, sent), (Ok(()), [greeting.as_slice(), &request].concat()));
        let error = run(&[&[5, 2], &[1, 1]]).await.0.expect_err("rejected");
        assert_eq!(error, TunnelError::unauthorized(CREDENTIALS));
        let error = run(&[&[5, 2], &[5, 0]]).await.0.expect_err("another version");
        assert_eq!(error, TunnelError::invalid(NOT_SOCKS));
    }

    #[tokio::test]
    async fn refusals_say_whose_failure_it_is() {
        for (answers, failure) in [
            ([[5, 0xff].as_slice(), &[]], ConnectFailure::Proxy(ProxyFailure::Unauthorized)),
            ([&[5, 0], &[5, 2, 0, 1]], ConnectFailure::Proxy(ProxyFailure::Refused)),
            ([&[5, 0], &[5, 5, 0, 1]], ConnectFailure::Domain),
            ([&[5, 0], &[5, 1]], ConnectFailure::Domain),
        ] {
            let error = connect("chat.test", &answers).await.0.expect_err("no tunnel");
            assert_eq!(error.failure, failure, "{error:?}");
        }
    }

    #[tokio::test]
    async fn invalid_answers_are_the_proxys_failure() {
        for answers in [
            [b"HTTP/1.1 400 Bad Request\r\n\r\n".as_slice(), &[]],
            [b"", b""],
            [&[4, 0], b""],
            // A method that was not offered.
            [&[5, 2], b""],
            [&[5, 1], b""],
            [&[5], b""],
            [&[5, 0], b""],
            [&[5, 0], &[4, 0, 0, 1]],
            [&[5, 0], &[5, 0, 0, 2, 0, 0, 0, 0, 0, 0]],
            [&[5, 0], &OPEN[..9]],
        ] {
            let error = connect("chat.test", &answers).await.0.expect_err("no tunnel");
            assert_eq!(error.failure, ConnectFailure::Proxy(ProxyFailure::Invalid), "{answers:?}");
        }
        let error = connect(&"x".repeat(256), &[&[5, 0], OPEN]).await.0.expect_err("too long");
        assert_eq!(error, TunnelError::invalid(NAME_TOO_LONG));
    }
}
