//! Every limit of the transport, with the reason for its size.

use std::time::Duration;

use crate::dscp::Dscp;

/// A thousand agents, each with a control and a bulk connection, and as many again while a hub
/// restarts and everybody comes back at once. Each costs about 40 KB, so 160 MB at the worst.
pub const CONNECTIONS_MAX: usize = 4096;

/// A peer keeps at most four idle connections ([`POOL_IDLE_PER_TARGET_MAX`]) per protocol, and a
/// download uses a handful; 64 leaves room for a person's scripts and stops a runaway loop.
pub const CONNECTIONS_PER_PEER_MAX: usize = 64;

/// Handshakes are the one thing that a stranger can make us do. A quarter of the connections, so
/// that a flood of them cannot take the place of those who are in.
pub const HANDSHAKES_MAX: usize = 512;

/// A handshake is two round trips; five seconds forgive a lost packet on a bad line, twice.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests in progress. Long polls count, one per agent of a group of a thousand, so this is above
/// that; beyond it 503 is a better answer than a slow one.
pub const REQUESTS_MAX: usize = 2048;

/// How long the headers of a request may take, and how long a connection may idle between two.
/// Twice the client's [`POOL_IDLE_TIMEOUT`], so that it is the client who lets go first and a
/// request rarely meets a closing connection.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(20);

/// Our own headers are below 1 KiB.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;

/// Our own requests have fewer than ten.
pub const HEADERS_MAX: usize = 64;

/// Reports and policies are some kilobytes; the largest message is a batch of a thousand reports.
/// Routes that take artifacts say so ([`ServerLimits::large_bodies`]).
pub const REQUEST_BODY_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The longest pause in a request's body before its sender is given up.
pub const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest pause in a response's body before the server is given up.
pub const CHUNK_TIMEOUT: Duration = Duration::from_secs(20);

/// What `Retry-After` says when there is too much to do: in seconds, the shortest it can express.
pub const RETRY_AFTER_S: u64 = 1;

/// How long requests in progress may go on after a stop was asked for. Below the ten seconds after
/// which `docker stop` kills.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// After an accept failed for want of file descriptors: long enough for some to be closed, short
/// enough to go unnoticed.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection may take to be made (TCP and TLS, each).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a call may take when the caller does not say.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// The largest answer that is read when the caller does not say; the state of a group of a thousand
/// servers is below 2 MiB of JSON.
pub const RESPONSE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The largest error answer that is read; beyond that its text helps nobody.
pub const ERROR_BYTES_MAX: u64 = 64 * 1024;

/// Idle connections that are kept per target and protocol: calls to one server rarely overlap.
pub const POOL_IDLE_PER_TARGET_MAX: usize = 4;

/// Idle connections that are kept in all: the leader talks to a thousand servers, but not to all of
/// them within [`POOL_IDLE_TIMEOUT`].
pub const POOL_IDLE_MAX: usize = 512;

/// How long an idle connection is kept. See [`HEADER_READ_TIMEOUT`].
pub const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that one client has open, in use and idle.
pub const CLIENT_CONNECTIONS_MAX: usize = 2048;

/// A peer that vanished without a word is noticed after about [`TCP_KEEPALIVE_IDLE`] and
/// [`TCP_KEEPALIVE_PROBES`] probes, [`TCP_KEEPALIVE_INTERVAL`] apart: 15 s.
pub const TCP_KEEPALIVE_IDLE: Duration = Duration::from_secs(6);
/// See [`TCP_KEEPALIVE_IDLE`].
pub const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// See [`TCP_KEEPALIVE_IDLE`].
pub const TCP_KEEPALIVE_PROBES: u32 = 3;

/// How long sent bytes may stay unacknowledged, or unsent because the reader does not read: the
/// write timeout of everything here, in milliseconds.
pub const TCP_USER_TIMEOUT_MS: u32 = 20_000;

/// One message of Raft: a batch of entries is bounded to 1 MiB where it is made; a snapshot of a
/// group of a thousand servers with its history is below 8 MiB.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes that wait to be sent on one connection. At least one frame of the largest size; Raft sends
/// again what is refused, so that waiting longer only makes it older.
pub const FRAME_QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Frames that wait to be sent on one connection: more than the messages that Raft has in flight.
pub const FRAME_QUEUE_MAX: usize = 4096;

/// How much of the queue is written at once: one TLS record is 16 KiB.
pub const FRAME_BATCH_BYTES: usize = 64 * 1024;

/// How long the first message of a framed connection may take.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// A hello is five short names and numbers.
pub const HELLO_BYTES_MAX: usize = 4096;

/// Groups that a kill register is kept for on one machine. A hub keeps one per group.
pub const KILL_SCOPES_MAX: usize = 10_000;

/// How far one change may raise a register's epoch beyond the last one or the time of day (in
/// seconds), whichever is higher: eleven days of wrong clocks. Without a bound, one slip (or one stolen key) could set the last epoch there is, and
/// nobody could ever switch off again.
pub const KILL_EPOCH_STEP_MAX: u64 = 1_000_000;

/// The reason given with a kill switch: some sentences.
pub const KILL_REASON_BYTES_MAX: usize = 2000;

// A frame of the largest size fits into an empty queue, or it could never be sent.
const _: () = assert!(FRAME_QUEUE_BYTES_MAX >= FRAME_BYTES_MAX);
// The client lets go of an idle connection well before the server does.
const _: () = assert!(POOL_IDLE_TIMEOUT.as_secs() * 2 <= HEADER_READ_TIMEOUT.as_secs());
// A flood of handshakes leaves most connections to those who are in.
const _: () = assert!(HANDSHAKES_MAX * 4 <= CONNECTIONS_MAX);

/// What a server allows; [`Default`] takes the constants of this module.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Connections, handshakes in progress included.
    pub connections_max: usize,
    /// Connections of one peer (by certificate; by address when it has none).
    pub connections_per_peer_max: usize,
    /// Handshakes in progress.
    pub handshakes_max: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// Requests in progress.
    pub requests_max: usize,
    /// How long the headers of a request may take; also how long a connection may idle.
    pub header_read_timeout: Duration,
    /// Bytes of a request's headers.
    pub header_bytes_max: usize,
    /// Number of a request's headers.
    pub headers_max: usize,
    /// Bytes of a request's body.
    pub request_body_bytes_max: u64,
    /// Routes whose bodies may be larger: the beginning of the path, and how large. The first that
    /// matches counts. The handler must stream them, and check the caller's role before reading.
    pub large_bodies: Vec<(String, u64)>,
    /// The longest pause in a request's body.
    pub body_idle_timeout: Duration,
    /// How long requests in progress may go on after a stop was asked for.
    pub shutdown_grace: Duration,
    /// How packets of connections that carry artifacts from server to server are marked.
    pub dscp_bulk: Dscp,
    /// The same for connections without TLS: a repository's packets may wait, a probe's answers not.
    pub dscp_plain: Dscp,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            connections_per_peer_max: CONNECTIONS_PER_PEER_MAX,
            handshakes_max: HANDSHAKES_MAX,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            requests_max: REQUESTS_MAX,
            header_read_timeout: HEADER_READ_TIMEOUT,
            header_bytes_max: HEADER_BYTES_MAX,
            headers_max: HEADERS_MAX,
            request_body_bytes_max: REQUEST_BODY_BYTES_MAX,
            large_bodies: Vec::new(),
            body_idle_timeout: BODY_IDLE_TIMEOUT,
            shutdown_grace: SHUTDOWN_GRACE,
            dscp_bulk: Dscp::LOWER_EFFORT,
            dscp_plain: Dscp::DEFAULT,
        }
    }
}

/// Receive window of a bulk connection, in bytes. Within a zone (round trips under a millisecond)
/// it carries 2 Gbit/s and more, and it is less than what a queue of 20 ms holds at 100 Mbit/s: a
/// window that grows by itself fills every queue until packets are dropped, and in a chain of links
/// that are equally fast no hop ever makes up for that.
pub const BULK_WINDOW_BYTES: usize = 256 * 1024;
