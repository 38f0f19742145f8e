//! What a health check looks at: always the server itself. A policy names no host and no program's
//! path, so that whoever can forge one makes no server run or reach anything else.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;

use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

use crate::ids::{CheckName, PortName};

/// Longest path of an HTTP check, in bytes. 1 KiB: a path with a query, not a payload.
pub const PATH_BYTES_MAX: usize = 1024;
/// Most headers that an HTTP check sends or expects, and most values that it expects in JSON.
const ENTRIES_MAX: usize = 16;
/// Longest text that a check sends or expects, in bytes.
const TEXT_BYTES_MAX: usize = 4096;
/// Longest certificates of a check's own authority, in bytes: a root and two intermediates.
const CA_BYTES_MAX: usize = 16 * 1024;
/// Longest name of a gRPC service, in bytes. At most 127: its length is one byte in the request.
const SERVICE_BYTES_MAX: usize = 120;
/// Longest name of a socket, in bytes.
const SOCKET_BYTES_MAX: usize = 64;

/// What is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Probe {
    /// Something accepts connections.
    Tcp(TcpProbe),
    /// A request gets the expected response.
    Http(Box<HttpProbe>),
    /// The service says `SERVING` by the gRPC health protocol.
    Grpc(Box<GrpcProbe>),
    /// A program exits with status 0.
    Exec { name: CheckName },
}

/// A connection, and what is said over it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpProbe {
    /// `None`: the app's own port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortAt>,
    /// Instead of a port: a Unix socket in the app's runtime directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// A text to send once connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<String>,
    /// A text that the answer contains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
}

/// A port of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum PortAt {
    Number(NonZeroU16),
    /// One that the server's configuration names.
    Named(PortName),
}

impl fmt::Display for PortAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortAt::Number(number) => number.fmt(f),
            PortAt::Named(name) => name.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for PortAt {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OfNumberOrName;

        impl Visitor<'_> for OfNumberOrName {
            type Value = PortAt;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 1 to 65535, or the name of one in `ports` of agent.toml")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<PortAt, E> {
                let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
                let wrong = || E::invalid_value(Unexpected::Unsigned(number), &self);
                port.map(PortAt::Number).ok_or_else(wrong)
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<PortAt, E> {
                match u64::try_from(number) {
                    Ok(number) => self.visit_u64(number),
                    Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
                }
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<PortAt, E> {
                name.parse().map(PortAt::Named).map_err(E::custom)
            }
        }

        from.deserialize_any(OfNumberOrName)
    }
}

/// An HTTP request, and the expected response. Redirects are not followed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    /// `None`: the app's own port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortAt>,
    /// Instead of a port: a Unix socket in the app's runtime directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Path and query, such as `/healthz`.
    pub path: String,
    #[serde(default, skip_serializing_if = "Method::is_get")]
    pub method: Method,
    /// Sent with the request; `Host` replaces the server's address.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Sent with `POST`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsProbe>,
    /// The expected status; 200 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_status: Option<u16>,
    /// A text that the body contains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_body: Option<String>,
    /// Text that response headers must contain, by header name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub expect_header: BTreeMap<String, String>,
    /// Values in a JSON body, by JSON pointer (RFC 6901) such as `/status`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub expect_json: BTreeMap<String, Scalar>,
}

/// A question by the [gRPC health protocol](https://grpc.io/docs/guides/health-checking/).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpcProbe {
    /// `None`: the app's own port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortAt>,
    /// Instead of a port: a Unix socket in the app's runtime directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// The full name of the service asked about, such as `shop.v1.Orders`; `None`: the whole
    /// server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsProbe>,
}

/// How the service proves who it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsProbe {
    /// The name asked for (SNI), which the certificate is for; `localhost` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Certificates of the authority that issues it, PEM; the server's system trusts others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Any certificate will do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
}

/// How an HTTP check asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    #[default]
    Get,
    Head,
    Post,
}

impl Method {
    /// The method's name in a request.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_get(&self) -> bool {
        *self == Method::Get
    }
}

/// A value in JSON that is neither list nor object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    Bool(bool),
    Number(i64),
    Text(String),
}

impl Probe {
    /// Checks what no type says.
    ///
    /// # Errors
    /// The key, and what is right.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            Probe::Tcp(TcpProbe { port, socket, send, expect }) => {
                is_somewhere(port.as_ref(), socket.as_deref())?;
                // Whoever can sign a policy may say nothing to other programs of the server.
                if send.is_some() && port.is_some() {
                    return Err("a check that sends goes to the app's own port or socket: leave \
                                out `port`"
                        .into());
                }
                short("send", send.as_deref())?;
                short("expect", expect.as_deref())
            }
            Probe::Http(probe) => probe.validate(),
            Probe::Grpc(probe) => probe.validate(),
            Probe::Exec { .. } => Ok(()),
        }
    }
}

impl GrpcProbe {
    fn validate(&self) -> Result<(), String> {
        is_somewhere(self.port.as_ref(), self.socket.as_deref())?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._".contains(&byte);
        let is_name = |name: &str| {
            !name.is_empty() && name.len() <= SERVICE_BYTES_MAX && name.bytes().all(allowed)
        };
        if self.service.as_deref().is_some_and(|name| !is_name(name)) {
            return Err("a check's service is the full name of a gRPC service, such as \
                        \"shop.v1.Orders\""
                .into());
        }
        self.tls.as_ref().map_or(Ok(()), TlsProbe::validate)
    }
}

impl HttpProbe {
    fn validate(&self) -> Result<(), String> {
        is_somewhere(self.port.as_ref(), self.socket.as_deref())?;
        if !is_path(&self.path) {
            return Err(format!(
                "a check's path must start with `/`, and have at most {PATH_BYTES_MAX} \
                 printable characters without spaces, braces or `#`"
            ));
        }
        if self.expect_status.is_some_and(|status| !(100..=599).contains(&status)) {
            return Err("a check's expect_status must be 100 to 599".into());
        }
        // Whoever can sign a policy may ask anything on the server, and change nothing but the app.
        if self.method == Method::Post && self.port.is_some() {
            return Err("a check with method POST goes to the app's own port or socket: leave \
                        out `port`"
                .into());
        }
        let is_host = |name: &String| name.eq_ignore_ascii_case("host");
        if self.port.is_some() && !self.headers.keys().all(is_host) {
            return Err("a check with headers besides Host goes to the app's own port or socket: \
                        leave out `port`"
                .into());
        }
        if self.body.is_some() && self.method != Method::Post {
            return Err("a check with a body needs method = \"POST\"".into());
        }
        let reads_body = self.expect_body.is_some() || !self.expect_json.is_empty();
        if self.method == Method::Head && reads_body {
            return Err("the answer to a check with method HEAD has no body to expect".into());
        }
        short("body", self.body.as_deref())?;
        short("expect_body", self.expect_body.as_deref())?;
        for (key, headers) in [("headers", &self.headers), ("expect_header", &self.expect_header)] {
            if headers.len() > ENTRIES_MAX {
                return Err(format!(
                    "a check's {key} are {}; at most {ENTRIES_MAX}",
                    headers.len()
                ));
            }
            for (name, value) in headers {
                if !is_header(name, value) {
                    return Err(format!("a check's {key} has an invalid header `{name}`"));
                }
            }
        }
        if self.expect_json.len() > ENTRIES_MAX {
            return Err(format!("a check's expect_json has more than {ENTRIES_MAX} values"));
        }
        for (pointer, value) in &self.expect_json {
            if !pointer.starts_with('/') {
                return Err(format!(
                    "a check's expect_json names `{pointer}`: a value is named by its path, such \
                     as \"/status\""
                ));
            }
            short("expect_json", Some(pointer))?;
            if let Scalar::Text(text) = value {
                short("expect_json", Some(text))?;
            }
        }
        self.tls.as_ref().map_or(Ok(()), TlsProbe::validate)
    }
}

impl TlsProbe {
    fn validate(&self) -> Result<(), String> {
        if self.insecure && self.ca.is_some() {
            return Err("a check's tls is insecure: its ca is not used; leave out one".into());
        }
        let is_name = |name: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
            !name.is_empty() && name.len() <= 253 && name.bytes().all(allowed)
        };
        if self.server_name.as_deref().is_some_and(|name| !is_name(name)) {
            return Err("a check's tls.server_name is a DNS name, such as \"example.com\"".into());
        }
        if self.ca.as_ref().is_some_and(|ca| ca.len() > CA_BYTES_MAX) {
            return Err(format!("a check's tls.ca has more than {CA_BYTES_MAX} bytes"));
        }
        Ok(())
    }
}

fn is_somewhere(port: Option<&PortAt>, socket: Option<&str>) -> Result<(), String> {
    let Some(socket) = socket else { return Ok(()) };
    if port.is_some() {
        return Err("a check goes to a port or to a socket: leave out one".into());
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_name = !socket.starts_with('.') && socket.bytes().all(allowed);
    if socket.is_empty() || socket.len() > SOCKET_BYTES_MAX || !is_name {
        return Err("a check's socket is the name of one in the app's runtime directory, such as \
                    \"web.sock\" for $COHORT_RUNTIME_DIR/web.sock"
            .into());
    }
    Ok(())
}

fn short(key: &str, text: Option<&str>) -> Result<(), String> {
    match text {
        Some("") => Err(format!("a check's {key} is empty: leave it out")),
        Some(text) if text.len() > TEXT_BYTES_MAX => {
            Err(format!("a check's {key} has more than {TEXT_BYTES_MAX} bytes"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Whether a text is a path and query as in a request, with nothing that could make it another
/// host's or a second line.
fn is_path(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b"#{}".contains(&byte);
    text.starts_with('/') && text.len() <= PATH_BYTES_MAX && text.bytes().all(allowed)
}

fn is_header(name: &str, value: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let text = |byte: u8| byte == b'\t' || (b' '..=b'~').contains(&byte);
    !name.is_empty()
        && name.len() <= 128
        && name.bytes().all(token)
        && value.len() <= TEXT_BYTES_MAX
        && value.bytes().all(text)
}

#[cfg(test)]
#[path = "probe_test.rs"]
mod probe_test;
