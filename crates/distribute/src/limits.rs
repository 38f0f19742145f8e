//! Every limit of a transfer, with the reason for its number. Times in milliseconds.

/// Longest name in a progress report or error, in bytes: a URL or `server (host:port)`.
pub(crate) const NAME_BYTES_MAX: usize = 200;

/// Limits of one server's transfers. Tests shorten the times; nothing else needs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Requests of one fetch that run at once. Each holds at most two units in memory, so eight
    /// bound a fetch to about 1 MiB beside what the sockets buffer.
    pub requests_max: usize,
    /// Requests to one source that run at once: two, so that the wire does not idle between them.
    pub requests_per_source_max: usize,
    /// Units of one request, at most. 64 (4 MiB) is 0.7 s of a 50 Mbit/s downlink: long enough
    /// that a round trip hardly shows, short enough that work is shared anew soon.
    pub request_units_max: u32,
    /// Units of one request to a source whose rate is not known yet.
    pub request_units_first: u32,
    /// How long a request should take at the source's measured rate.
    pub request_target_ms: u64,
    /// From asking to the first byte of an answer, the connection included.
    pub first_byte_ms_max: u64,
    /// Between two pieces of an answer.
    pub idle_ms_max: u64,
    /// For one whole unit: a source under 64 KiB in this time (3 KiB/s) is no source at all, even
    /// when it sends a byte now and then.
    pub unit_ms_max: u64,
    /// After this long a request for some units is ended at the next unit, and the rest of it is
    /// shared out anew: so that one slow source does not hold up the end. At a first request of
    /// 1 MiB this concerns sources under 70 KiB/s.
    pub request_ms_max: u64,
    /// For the whole file of unit hashes (8 MiB at most).
    pub hashes_ms_max: u64,
    /// First pause after a source failed; doubled by each failure in a row.
    pub backoff_ms_min: u64,
    /// Longest pause after failures in a row. A minute: a mirror that is back is used again soon.
    pub backoff_ms_max: u64,
    /// Pause after wrong bytes, doubled like the other. Long: bytes do not get wrong by chance.
    pub wrong_bytes_ms: u64,
    /// Longest `Retry-After` that is obeyed to the letter.
    pub retry_after_ms_max: u64,
    /// Pause when a source has not got the units yet.
    pub absent_ms: u64,
    /// A parent that says nothing for this long, not even that it lives, is left for the next one:
    /// three missed signs of life. Longer would be seen in the time that the last server needs.
    pub silence_ms_max: u64,
    /// From asking a parent to its first sign of life: two round trips for the handshake, and a
    /// machine that is busy.
    pub link_begin_ms_max: u64,
    /// Without a word of the group's leader for this long, one server goes on by itself.
    pub no_leader_ms: u64,
    /// A guided fetch that got no unit for this long asks those that are said to hold it whole.
    pub pull_after_ms: u64,
    /// A fetch that got no new unit for this long although it had sources gives up, so that the
    /// group hears of it. The group's own deadline (ten minutes) is longer.
    pub give_up_ms: u64,
    /// Free space to leave on the disk beside the artifact, in bytes: the artifact is yet to be
    /// unpacked, and logs and the group's own log live there as well.
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
