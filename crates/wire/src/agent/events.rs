//! What happened in a group, from its log.

use cohort_core::Event;
use cohort_core::ids::Incarnation;
use serde::{Deserialize, Serialize};

/// `POST` an [`EventsRequest`], everybody with a certificate: what happened in the group. The
/// response of a server that carries a member is an [`EventsAnswer`].
pub const EVENTS: &str = "/v1/events";
/// Most events in one answer.
pub const EVENTS_MAX: usize = 500;
/// The longest that an answer waits for an event, in milliseconds.
pub const EVENTS_WAIT_MS_MAX: u64 = 20_000;

/// Asks for events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsRequest {
    /// The incarnation that `after` is of; `None`: the present one.
    pub incarnation: Option<Incarnation>,
    /// Only of entries after this index of the log; `None`: the last [`EVENTS_MAX`].
    pub after: Option<u64>,
    /// How long to wait for one if there is none, at most [`EVENTS_WAIT_MS_MAX`].
    pub wait_ms: u64,
}

/// Events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsAnswer {
    /// The incarnation of the group whose log this is: another one counts from its own start.
    pub incarnation: Incarnation,
    /// Oldest first. Those of one entry are never in two answers.
    pub events: Vec<Happened>,
    /// Some that were asked for are no longer known here.
    pub gap: bool,
    /// Where to go on; members number entries alike.
    pub end: u64,
}

/// Something that happened. Every member of the group tells the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happened {
    /// The entry of the log that caused it.
    pub index: u64,
    /// When the member that tells it applied that entry, by its clock, as Unix time in
    /// milliseconds; `None` if that was before its agent started.
    pub unix_ms: Option<u64>,
    #[serde(flatten)]
    pub event: Event,
}
