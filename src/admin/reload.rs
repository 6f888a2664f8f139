//! `POST /-/reload`: has the configuration read anew, and says what came of it.
//!
//! It is off till the configuration says otherwise, and for clients on this host alone. A browser
//! on this host is such a client, and posts where any page that it shows tells it to. So whoever
//! speaks for a page is refused: a browser names the page's origin in each such request
//! (`Origin`), and a page that had its own name resolve to this host's address asks for that name
//! (`Host`). A reverse proxy on this host is such a client, too, whoever asks it: what it says
//! it passes on (`Forwarded`, `X-Forwarded-For` and their like) is refused.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State as Shared;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};

use super::{Client, Desk};

/// `POST /-/reload`
pub(super) async fn reload(
    Shared(desk): Shared<Arc<Desk>>,
    Extension(client): Extension<Client>,
    uri: Uri,
    headers: HeaderMap,
) -> (StatusCode, String) {
    if !desk.reloads.is_offered() {
        let text = "off: send SIGHUP, or set admin_reload = true in [listen]";
        return answer(StatusCode::FORBIDDEN, text);
    }
    if let Err(reason) = check(client, &uri, &headers) {
        return answer(StatusCode::FORBIDDEN, reason);
    }
    let Some(answered) = desk.reloads.ask() else {
        return answer(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many wait already, or the bus is stopping",
        );
    };
    match answered.await {
        Ok(Ok(changes)) => answer(StatusCode::OK, &changes),
        Ok(Err(reason)) => answer(StatusCode::INTERNAL_SERVER_ERROR, &reason),
        Err(_) => answer(StatusCode::SERVICE_UNAVAILABLE, "the bus is stopping"),
    }
}

fn answer(status: StatusCode, text: &str) -> (StatusCode, String) {
    (status, format!("{text}\n"))
}

/// Refuses who is not on this host, or speaks for somebody else or a web page.
fn check(Client(client): Client, uri: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
    if !client.ip().to_canonical().is_loopback() {
        return Err("only for clients on this host");
    }
    if headers.keys().any(is_of_proxy) {
        return Err("not for what a proxy passes on, which says nothing of who asks");
    }
    if headers.contains_key(header::ORIGIN) {
        return Err("not for web pages");
    }
    let mut hosts = headers.get_all(header::HOST).iter().peekable();
    let is_host = hosts.peek().is_some();
    let is_this_host = |host: &str| host.parse().is_ok_and(|host| is_this_host(&host));
    let all = hosts.all(|host| host.to_str().is_ok_and(is_this_host));
    if !is_host || !all || !uri.authority().is_none_or(self::is_this_host) {
        return Err("ask for it by a loopback address, or as localhost");
    }
    Ok(())
}

/// Whether proxies add this to what they pass on.
fn is_of_proxy(name: &HeaderName) -> bool {
    *name == header::FORWARDED || name.as_str().starts_with("x-forwarded-")
}

/// Whether this names a loopback address, with a port or without.
fn is_this_host(authority: &Authority) -> bool {
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let ip: Option<IpAddr> = bare.unwrap_or(host).parse().ok();
    let is_plain = !authority.as_str().contains('@');
    is_plain
        && match ip {
            Some(ip) => ip.to_canonical().is_loopback(),
            None => host.eq_ignore_ascii_case("localhost"),
        }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn may(client: &str, uri: &str, headers: &[(&str, &str)]) -> bool {
        let client: SocketAddr = client.parse().unwrap();
        let headers = headers.iter().map(|(name, value)| {
            let name: header::HeaderName = name.parse().unwrap();
            (name, value.parse().unwrap())
        });
        check(Client(client), &uri.parse().unwrap(), &headers.collect()).is_ok()
    }

    #[test]
    fn whoever_is_on_this_host_may_ask() {
        for client in [
            "127.0.0.1:1",
            "127.8.8.8:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            for host in [
                "127.0.0.1",
                "127.0.0.1:7278",
                "[::1]:7278",
                "localhost:1",
                "LocalHost",
            ] {
                assert!(
                    may(client, "/-/reload", &[("host", host)]),
                    "{client} {host}"
                );
            }
        }
        let uri = "http://localhost:7278/-/reload";
        assert!(may("[::1]:1", uri, &[("host", "localhost:7278")]));
    }

    #[test]
    fn what_a_proxy_passes_on_is_refused() {
        for (name, value) in [
            ("forwarded", "for=127.0.0.1"),
            ("X-Forwarded-For", "10.0.0.1"),
            ("x-forwarded-for", ""),
            ("x-forwarded-host", "localhost"),
            ("X-Forwarded-Proto", "https"),
        ] {
            let headers = [("host", "localhost"), (name, value)];
            assert!(!may("127.0.0.1:1", "/-/reload", &headers), "{name}");
        }
        let headers = [("host", "localhost"), ("accept", "*/*")];
        assert!(may("127.0.0.1:1", "/-/reload", &headers));
    }

    #[test]
    fn nobody_else_may_and_no_page() {
        for client in [
            "10.0.0.1:1",
            "[fe80::1]:1",
            "0.0.0.0:1",
            "[::ffff:10.0.0.1]:1",
        ] {
            assert!(
                !may(client, "/-/reload", &[("host", "localhost")]),
                "{client}"
            );
        }
        let here = "127.0.0.1:1";
        for host in [
            "bus.example",
            "localhost.example",
            "127.0.0.1.example",
            "10.0.0.1",
            "0.0.0.0",
            "localhost@bus.example",
            "bus.example@localhost",
            "",
            "[::2]",
            "localhost, bus.example",
        ] {
            assert!(!may(here, "/-/reload", &[("host", host)]), "{host}");
        }
        assert!(!may(here, "/-/reload", &[]), "a browser names a host");
        for origin in ["null", "http://localhost:7278", "http://bus.example"] {
            let headers = [("host", "localhost"), ("origin", origin)];
            assert!(!may(here, "/-/reload", &headers), "{origin}");
        }
        let two = [("host", "localhost"), ("host", "bus.example")];
        assert!(!may(here, "/-/reload", &two));
        let uri = "http://bus.example/-/reload";
        assert!(!may(here, uri, &[("host", "localhost")]));
    }
}
