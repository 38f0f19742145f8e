//! Every limit of the transport, and the reason for its value.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::dscp::Dscp;
use crate::http::Refusals;

/// Most connections of a server. A thousand agents with a control and a bulk connection each, twice
/// that when all reconnect after a hub restart. At about 40 KB each, at most 160 MB.
pub const CONNECTIONS_MAX: usize = 4096;

/// Most concurrent connections without a certificate on a port with TLS: handshakes, the only work
/// that such a client can cause, and joining servers. The rest is for peers.
pub const STRANGERS_MAX: usize = 512;

/// Most of them from one address (IPv6: from one /64). More than [`CONNECTS_BURST_MAX`], so that
/// servers behind one address that all come back at once do not end each other's handshakes.
pub const STRANGERS_PER_ADDRESS_MAX: usize = 256;

/// New connections of one address per second, with a certificate or not: the handshakes of a flood
/// then take a few hundredths of a processor. Ten thousand servers behind one address make 33 for
/// their checks with the hub.
pub const CONNECTS_PER_S_MAX: u32 = 100;

/// New connections of one address at once: a site of two hundred servers that comes back.
pub const CONNECTS_BURST_MAX: u32 = 200;

/// Requests of one address per second without a certificate: a mirror's readers behind one address,
/// each of which reads many units over one connection.
pub const REQUESTS_PER_S_MAX: u32 = 500;

/// See [`REQUESTS_PER_S_MAX`].
pub const REQUESTS_BURST_MAX: u32 = 2000;

/// Connections of one address to a repository: a site of a thousand servers behind one address,
/// with two each.
pub const SITE_CONNECTIONS_MAX: usize = 2048;

/// New ones per second.
pub const SITE_CONNECTS_PER_S_MAX: u32 = 500;

/// Requests of one address to a repository per second: units of a mebibyte at 40 Gbit/s.
pub const SITE_REQUESTS_PER_S_MAX: u32 = 5000;

/// Connections and requests to a port of probes per second: as many as one processor can answer.
pub const PROBES_PER_S_MAX: u32 = 20_000;

/// File descriptors that a hub or a mirror asks for: its two ports, and its files.
pub const FILES_WANTED: u64 = 2 * CONNECTIONS_MAX as u64 + 1024;

/// Raises the soft limit of this process's file descriptors, as far as the hard limit permits, for
/// processes that start no others: a child might not expect numbers above 1024.
pub fn raise_files() {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(FILES_WANTED).min(FILES_WANTED);
    if limit.current.is_some_and(|soft| soft < hard) {
        let raised = Rlimit { current: Some(hard), ..limit };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit of file descriptors");
        }
    }
}

/// Addresses whose rates a port remembers, at about 150 bytes each.
pub const NETWORKS_MAX: usize = 16_384;

/// Connections that operators may make in addition, when all others are busy: they stop what goes
/// wrong.
pub const OPERATORS_RESERVE: usize = 64;

/// Requests in progress on the path that has a reserve, when all others are taken.
pub const URGENT_REQUESTS_MAX: usize = 64;

/// Requests in progress, including long polls: one per agent in a group of a thousand. Beyond that,
/// a 503 is better than a slow response.
pub const REQUESTS_MAX: usize = 2048;

/// For a request's headers, and for a connection's idle time between requests. Twice the client's
/// [`POOL_IDLE_TIMEOUT`], so that the client closes first and requests rarely hit a closing
/// connection.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(20);

/// Most bytes of headers; our own are below 1 KiB.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;

/// Most headers; our own requests have fewer than ten.
pub const HEADERS_MAX: usize = 64;

/// The longest pause in a response body before the call fails.
pub const CHUNK_TIMEOUT: Duration = Duration::from_secs(20);

/// `Retry-After` of a 503, in seconds: the shortest expressible time.
pub const RETRY_AFTER_S: u64 = 1;

/// Pause after an accept failed for lack of file descriptors: long enough for some to be closed,
/// too short to matter.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// For the TCP connection and the TLS handshake, each.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The default deadline of a call.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// The default limit of a response; the state of a group of a thousand servers is below 2 MiB of
/// JSON.
pub const RESPONSE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The largest error response that is read, in bytes.
pub const ERROR_BYTES_MAX: u64 = 64 * 1024;

/// Idle connections per target and protocol: calls to one server rarely overlap.
pub const POOL_IDLE_PER_TARGET_MAX: usize = 4;

/// Idle connections in total: the leader talks to a thousand servers, but not to all of them within
/// [`POOL_IDLE_TIMEOUT`].
pub const POOL_IDLE_MAX: usize = 512;

/// How long a connection may be idle; less than the server's [`HEADER_READ_TIMEOUT`].
pub const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Open connections of one client, both busy and idle.
pub const CLIENT_CONNECTIONS_MAX: usize = 2048;

/// A vanished peer is detected after [`TCP_KEEPALIVE_IDLE`] and [`TCP_KEEPALIVE_PROBES`] probes,
/// [`TCP_KEEPALIVE_INTERVAL`] apart: 15 s.
pub const TCP_KEEPALIVE_IDLE: Duration = Duration::from_secs(6);
/// See [`TCP_KEEPALIVE_IDLE`].
pub const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// See [`TCP_KEEPALIVE_IDLE`].
pub const TCP_KEEPALIVE_PROBES: u32 = 3;

/// How long bytes may stay unacknowledged or, because the peer does not read, unsent: the write
/// timeout of all connections, in milliseconds.
pub const TCP_USER_TIMEOUT_MS: u32 = 20_000;

/// Largest Raft message: batches of entries are limited to 1 MiB by the sender; the snapshot of a
/// group of a thousand servers with its history is below 8 MiB.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes per write: four TLS records.
pub const FRAME_BATCH_BYTES: usize = 64 * 1024;

/// For both greetings of a framed connection.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest greeting: five short names and numbers.
pub const HELLO_BYTES_MAX: usize = 4096;

/// Longest reason of a kill switch, in bytes: a few sentences.
pub const KILL_REASON_BYTES_MAX: usize = 2000;

// The client closes an idle connection well before the server does.
const _: () = assert!(POOL_IDLE_TIMEOUT.as_secs() * 2 <= HEADER_READ_TIMEOUT.as_secs());
// A flood of handshakes leaves most connections to authenticated peers.
const _: () = assert!(STRANGERS_MAX * 4 <= CONNECTIONS_MAX);
// One address alone does not fill the part of strangers.
const _: () = assert!(STRANGERS_PER_ADDRESS_MAX * 2 <= STRANGERS_MAX);
const _: () = assert!(STRANGERS_PER_ADDRESS_MAX > CONNECTS_BURST_MAX as usize);

/// Limits of a server, all enforced by [`serve`](crate::http::serve).
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Includes those still in the handshake.
    pub connections_max: usize,
    /// Per certificate. A peer has at most four idle connections ([`POOL_IDLE_PER_TARGET_MAX`]) per
    /// protocol, and a download uses a handful; 64 leaves room for an operator's scripts and stops
    /// a runaway loop.
    pub connections_per_peer_max: usize,
    /// Without a certificate: handshakes, and joining servers. A port without TLS has no others.
    pub strangers_max: usize,
    /// Of one address.
    pub strangers_per_address_max: usize,
    /// New connections per second of one address.
    pub connects_per_s_max: u32,
    pub connects_burst_max: u32,
    /// Requests per second of one address, without a certificate.
    pub requests_per_s_max: u32,
    pub requests_burst_max: u32,
    /// No request of this port takes long: who has one in progress does not read the answer, and
    /// gives way too.
    pub requests_are_short: bool,
    /// Requests of this path have a reserve ([`URGENT_REQUESTS_MAX`]).
    pub urgent_path: Option<&'static str>,
    /// Counts what is refused.
    pub refusals: Refusals,
    /// A handshake takes two round trips; five seconds allow for two lost packets on a bad line.
    pub handshake_timeout: Duration,
    /// Concurrent requests, including long polls.
    pub requests_max: usize,
    /// Also the longest idle time of a connection.
    pub header_read_timeout: Duration,
    pub header_bytes_max: usize,
    pub headers_max: usize,
    /// Limit for paths not in `body_limits`. Policies are a few kilobytes; the largest message is
    /// a batch of a thousand reports.
    pub request_body_bytes_max: u64,
    /// Path prefixes with a body limit of their own, in bytes; the first match counts. Where it is
    /// large, the handler must stream the body.
    pub body_limits: Vec<(String, u64)>,
    /// The longest pause in a request's body before the client is disconnected.
    pub body_idle_timeout: Duration,
    /// How long requests in progress may continue after a stop. Less than the ten seconds after
    /// which `docker stop` kills.
    pub shutdown_grace: Duration,
    /// For connections that carry artifacts between servers.
    pub dscp_bulk: Dscp,
    /// For connections without TLS: a repository's packets may wait, responses to probes may not.
    pub dscp_plain: Dscp,
}

impl ServerLimits {
    /// These limits, within what a process with so many file descriptors can have open: half of
    /// them for one port, half of those for strangers.
    pub(crate) fn within_files(self, files: usize) -> Self {
        let (connections, strangers) = (files / 2, files / 4);
        Self {
            connections_max: self.connections_max.min(connections),
            strangers_max: self.strangers_max.min(strangers),
            ..self
        }
    }

    /// These limits, within this process's file descriptors.
    pub(crate) fn within_process(self) -> Self {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        self.within_files(usize::try_from(files).unwrap_or(usize::MAX))
    }

    /// For a repository's port: a whole site may share one address, and read unit by unit.
    #[must_use]
    pub fn repository() -> Self {
        Self {
            strangers_per_address_max: SITE_CONNECTIONS_MAX,
            connects_per_s_max: SITE_CONNECTS_PER_S_MAX,
            connects_burst_max: SITE_CONNECTIONS_MAX as u32,
            requests_per_s_max: SITE_REQUESTS_PER_S_MAX,
            requests_burst_max: SITE_REQUESTS_PER_S_MAX,
            dscp_plain: Dscp::LOWER_EFFORT,
            ..Self::default()
        }
    }

    /// For a port of probes on loopback, where a balancer and every local user share one address: a
    /// rate would let one close it for the other, so that the newest connection always gets its
    /// turn.
    #[must_use]
    pub fn probes() -> Self {
        Self {
            connects_per_s_max: PROBES_PER_S_MAX,
            connects_burst_max: PROBES_PER_S_MAX,
            requests_per_s_max: PROBES_PER_S_MAX,
            requests_burst_max: PROBES_PER_S_MAX,
            requests_are_short: true,
            ..Self::default()
        }
    }
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            connections_per_peer_max: 64,
            strangers_max: STRANGERS_MAX,
            strangers_per_address_max: STRANGERS_PER_ADDRESS_MAX,
            connects_per_s_max: CONNECTS_PER_S_MAX,
            connects_burst_max: CONNECTS_BURST_MAX,
            requests_per_s_max: REQUESTS_PER_S_MAX,
            requests_burst_max: REQUESTS_BURST_MAX,
            requests_are_short: false,
            urgent_path: None,
            refusals: Refusals::default(),
            handshake_timeout: Duration::from_secs(5),
            requests_max: REQUESTS_MAX,
            header_read_timeout: HEADER_READ_TIMEOUT,
            header_bytes_max: HEADER_BYTES_MAX,
            headers_max: HEADERS_MAX,
            request_body_bytes_max: 4 * 1024 * 1024,
            body_limits: Vec::new(),
            body_idle_timeout: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(5),
            dscp_bulk: Dscp::LOWER_EFFORT,
            dscp_plain: Dscp::DEFAULT,
        }
    }
}

/// Receive window of a bulk connection. Within a zone (round trips below a millisecond), it carries
/// more than 2 Gbit/s, and it is less than a 20 ms queue holds at 100 Mbit/s. An auto-tuned window
/// fills every queue until packets are dropped, and a chain of equally fast links never recovers
/// the lost time.
pub const BULK_WINDOW_BYTES: usize = 256 * 1024;
