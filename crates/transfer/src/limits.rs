//! Every limit of a server's transfers, with the reason for its value.

/// Limits of a server's transfers. Times are in milliseconds. Only tests change them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Concurrent requests of one fetch to mirrors, including hanging ones. Each holds at most two
    /// units in memory, so eight bound them to about 1 MiB, plus the sockets' buffers.
    pub requests_max: usize,
    /// Concurrent requests to one mirror: two, so that the wire does not idle between them.
    pub requests_per_source_max: usize,
    /// Most units of one request. 64 (4 MiB) is 0.7 s of a 50 Mbit/s downlink: long enough that a
    /// round trip barely matters, short enough that a slow mirror is soon replaced.
    pub request_units_max: u32,
    /// Units of a first request, while a mirror's rate is unknown.
    pub request_units_first: u32,
    /// How long a request should take at a mirror's measured rate.
    pub request_target_ms: u64,
    /// From the request to the response head, including the connection.
    pub first_byte_ms_max: u64,
    /// Between two pieces of a response.
    pub idle_ms_max: u64,
    /// For one whole unit. A slower source (3 KiB/s) is useless, even if it sends a byte now and
    /// then.
    pub unit_ms_max: u64,
    /// A request for some units that takes longer than this ends at the next unit, and the rest is
    /// requested again, so that one slow mirror does not delay the end. With a first request of 1
    /// MiB, this affects mirrors under 70 KiB/s.
    pub request_ms_max: u64,
    /// For the whole file of unit hashes (8 MiB at most).
    pub hashes_ms_max: u64,
    /// First pause after a source failed; doubled by each consecutive failure.
    pub backoff_ms_min: u64,
    /// Longest pause after consecutive failures: a mirror that recovers is used again soon.
    pub backoff_ms_max: u64,
    /// Pause after wrong bytes, doubled each time. Long: bytes are not wrong by chance.
    pub wrong_bytes_ms: u64,
    /// Longest `Retry-After` that is honoured in full.
    pub retry_after_ms_max: u64,
    /// Pause after a server had none of the missing units.
    pub absent_ms: u64,
    /// A parent silent for this long is replaced by the next one: three missed heartbeats. A longer
    /// limit would visibly delay the last server.
    pub silence_ms_max: u64,
    /// From the request to a parent to its first heartbeat: a handshake of two round trips on a
    /// busy machine.
    pub link_begin_ms_max: u64,
    /// If the group's leader is silent for this long, the heir continues on its own.
    pub no_leader_ms: u64,
    /// A fetch whose feeds sent no unit for this long follows its order instead.
    pub pull_after_ms: u64,
    /// A fetch that had sources and got no unit for this long fails, so that the group knows. The
    /// group's own deadline (ten minutes) is longer.
    pub give_up_ms: u64,
    /// Disk space to leave free, in bytes: the artifact still has to be unpacked, and logs and the
    /// group's own log need room too.
    pub reserve_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_max: 8,
            requests_per_source_max: 2,
            request_units_max: 64,
            request_units_first: 16,
            request_target_ms: 1_000,
            first_byte_ms_max: 10_000,
            idle_ms_max: 10_000,
            unit_ms_max: 20_000,
            request_ms_max: 15_000,
            hashes_ms_max: 60_000,
            backoff_ms_min: 250,
            backoff_ms_max: 60_000,
            wrong_bytes_ms: 10_000,
            retry_after_ms_max: 120_000,
            absent_ms: 500,
            silence_ms_max: 300,
            link_begin_ms_max: 2_000,
            no_leader_ms: 30_000,
            pull_after_ms: 5_000,
            give_up_ms: 120_000,
            reserve_bytes: 64 << 20,
        }
    }
}
