//! How a server comes to carry the group's log, and when it stops.

use std::collections::BTreeMap;

use cohort_core::command::COMMAND_VERSION;
use cohort_core::ids::{BootEpoch, GroupId, Incarnation, MemberId, Platform, ServerId};
use cohort_core::orders::Orders;
use cohort_core::state::Process;
use cohort_core::{Body, Command, State};

use crate::asking::Received;

/// How often a member checks whether the group has a newer incarnation, in milliseconds.
pub const LOOK_EVERY_MS: u64 = 5_000;
/// A member with a leader only asks at every 12th check, once a minute: the old incarnation may
/// still have a majority.
const LOOKS_WHILE_LED: u64 = 12;
/// The most starts of an agent that its disk may have gone back by: a restart in every second for
/// eleven days.
const HEARD_AHEAD_MAX: u64 = 1_000_000;
/// The label of a server's zone.
const ZONE: &str = "zone";
/// The first member of a group.
pub const FIRST_MEMBER: MemberId = MemberId(1);

/// What to do with the log found on a server's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Open,
    /// It belongs to another group: stop, an operator has to intervene.
    OtherGroup,
    /// The group has a newer incarnation: put the old log aside and never open it again.
    SetAside,
}

/// Judges the log on the disk, of `group` in its `incarnation`. `present` is the group's
/// incarnation in the registry; `None` if it does not respond.
#[must_use]
pub fn found(
    group: &str,
    incarnation: Incarnation,
    own_group: &GroupId,
    present: Option<Incarnation>,
) -> Found {
    if group != own_group.as_str() {
        return Found::OtherGroup;
    }
    if present.is_some_and(|present| present > incarnation) { Found::SetAside } else { Found::Open }
}

/// Whether a member asks the registry for the group's incarnation, at its `look`th check.
#[must_use]
pub fn asks_for_incarnation(look: u64, has_leader: bool) -> bool {
    !has_leader || look.is_multiple_of(LOOKS_WHILE_LED)
}

/// Whether fresh orders say that this server carries another member than `own`, or none.
///
/// A server that left and came back gets another number. Orders are read through the leader, so
/// what they say is committed; orders of another incarnation say nothing about this one.
#[must_use]
pub fn carries_another(
    received: &Received,
    now_ms: u64,
    incarnation: Incarnation,
    own: MemberId,
) -> bool {
    let orders = &received.orders;
    received.fresh(now_ms)
        && orders.incarnation == incarnation
        && orders.member.as_ref().is_none_or(|ordered| ordered.member > own)
}

/// The group's log on a server's disk, as its agent knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnLog {
    None,
    /// Not read yet.
    Closed,
    Open {
        incarnation: Incarnation,
        member: MemberId,
        /// The group vouches for it.
        proven: bool,
    },
}

impl OwnLog {
    /// Whether the agent obeys: it carries no log, or the group's members vouch for it.
    #[must_use]
    pub fn vouched(self) -> bool {
        matches!(self, OwnLog::None | OwnLog::Open { proven: true, .. })
    }
}

/// What a server does with orders that it received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obedience {
    Obey,
    /// Nobody vouches for the log on this disk yet: this may be a copy of another machine.
    Ignore,
    /// This member's number is no longer this server's: set its log aside and start over.
    Retired {
        incarnation: Incarnation,
        member: MemberId,
    },
    /// The disk went back to an earlier state: start over, after the start that the group has heard
    /// of.
    EarlierDisk {
        heard: BootEpoch,
    },
}

/// Judges orders. `start` is the agent's, which has reported if it obeyed orders before.
#[must_use]
pub fn obedience(
    received: &Received,
    now_ms: u64,
    log: OwnLog,
    (start, reported): (BootEpoch, bool),
) -> Obedience {
    match log {
        OwnLog::Closed => return Obedience::Ignore,
        // A number that is no longer this server's will never be vouched for.
        OwnLog::Open { incarnation, member, proven: false } => {
            return match carries_another(received, now_ms, incarnation, member) {
                true => Obedience::Retired { incarnation, member },
                false => Obedience::Ignore,
            };
        }
        OwnLog::None | OwnLog::Open { .. } => {}
    }
    let earliest = BootEpoch(start.0.saturating_add(u64::from(reported)));
    if is_earlier_disk(&received.orders, earliest) {
        return Obedience::EarlierDisk { heard: received.orders.heard };
    }
    Obedience::Obey
}

/// Whether the group has reports of the `earliest` start that is not this agent's, or a later one.
/// Its disk is an earlier one, or another machine spoke for the server meanwhile. The agent counts
/// on from there: the group would ignore its reports as old ones. A member that names an impossible
/// number is not believed: numbers are used up for good.
fn is_earlier_disk(orders: &Orders, earliest: BootEpoch) -> bool {
    // One that was lost counts from a clock that may be years behind the one before.
    let highest = earliest.0.saturating_add(HEARD_AHEAD_MAX).max(BootEpoch::FIRST_MAX.0);
    (earliest.0..=highest).contains(&orders.heard.0)
}

/// Whether this server founds the group. `bootstrap` is the incarnation that the registry issued
/// and its first server; `founded` is the incarnation of the members in the registry, if any.
///
/// A group that was founded has members: a first server that lost its disk joins again.
#[must_use]
pub fn founds(
    server: &ServerId,
    bootstrap: (Incarnation, &ServerId),
    founded: Option<Incarnation>,
) -> bool {
    let (incarnation, first) = bootstrap;
    first == server && founded.is_none_or(|founded| founded < incarnation)
}

/// A server's failure domain, widest part first: its rack, within its zone in a group that spans
/// zones. `own` are its labels, `shared` those of the group.
#[must_use]
pub fn failure_domain(
    rack: Option<&str>,
    own: &BTreeMap<String, String>,
    shared: &BTreeMap<String, String>,
) -> Option<String> {
    let zone = own.get(ZONE).filter(|_| !shared.contains_key(ZONE)).map(String::as_str);
    let parts: Vec<&str> = zone.into_iter().chain(rack).collect();
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// A founder's facts about its server and its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founder {
    pub server: ServerId,
    /// Its address for peers, `host:port`.
    pub address: String,
    pub rack: Option<String>,
    pub process: Process,
    /// The labels that the group's servers share.
    pub labels: BTreeMap<String, String>,
    pub platform: Platform,
}

/// The initial state of a group: its first server, which carries [`FIRST_MEMBER`].
///
/// # Panics
/// Never: an empty state takes its first server.
#[must_use]
pub fn founding_state(group: GroupId, incarnation: Incarnation, founder: Founder) -> State {
    let Founder { server, address, rack, process, labels, platform } = founder;
    let mut state = State::new(group, incarnation);
    let bodies = [
        Body::SetUp { labels, platform },
        Body::AddServer { server: server.clone(), address, rack, process },
        Body::AllocateMember { server: server.clone() },
    ];
    for body in bodies {
        let actor = format!("agent {server}");
        let command = Command { version: COMMAND_VERSION, incarnation, actor, request: None, body };
        state.apply(&command).expect("an empty state takes its first server");
    }
    state
}
