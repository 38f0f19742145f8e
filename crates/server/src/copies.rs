//! Machines that call in the name of a server that another machine runs as: a copied disk, or a
//! restored image next to the machine it was taken of.
//!
//! A server's agent introduces itself to the group once per start, and the log has who it is. Only
//! the leader can tell whether the earlier one still runs: it has heard from it, or not.

use std::collections::BTreeMap;

use cohort_core::State;
use cohort_core::capacity::COUNTED_ON_MS;
use cohort_core::ids::ServerId;
use cohort_core::state::Process;

use crate::contacts::Contacts;

/// An agent that was heard from within this time still runs, in milliseconds.
const RUNS_MS: u64 = COUNTED_ON_MS;
/// Where two machines are known to run as one server, the first one may be silent for this long
/// before the other one takes its place, in milliseconds. 10 min: a reboot, with a check of its
/// file system.
pub(crate) const RETURNS_MS: u64 = 600_000;
/// A copy is reported for this long after its last attempt, in milliseconds.
const REPORTED_MS: u64 = 60_000;
/// The last attempt is worth a new view after this long, in milliseconds.
const NEWS_MS: u64 = 10_000;

/// Pause before an agent starts over that has found for the third time that another one speaks for
/// its server, in milliseconds; doubled every time after that.
const CONTESTED_PAUSE_MS: u64 = 10_000;
/// The longest such pause, in milliseconds.
const CONTESTED_PAUSE_MS_MAX: u64 = 600_000;

/// An agent that was refused because another one runs as its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The host that it called from.
    pub host: String,
    /// The first and the last attempt, on the leader's monotonic clock.
    pub since_ms: u64,
    pub at_ms: u64,
}

/// An agent that introduces itself.
#[derive(Debug, Clone, Copy)]
pub struct Introduced<'a> {
    pub server: &'a ServerId,
    pub process: &'a Process,
    /// The process of the server's member that the leader hears right now, if there is one.
    pub member_life: Option<u64>,
}

/// The leader's answer to an agent that introduces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Introduction {
    Accepted,
    /// The leader has not listened for long enough to know.
    TooEarly,
    /// Another machine runs as this server, on this host.
    Elsewhere {
        host: String,
    },
}

/// The agents refused lately, by the server that they called as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copies(BTreeMap<ServerId, Refusal>);

impl Copies {
    /// Judges an agent that introduces itself. `listens_ms` is how long the leader has listened.
    ///
    /// One that calls from the same host has restarted: the earlier process has ended. On another
    /// host, the machine whose member is heard is the server: nobody would vouch for another.
    /// Where none is heard, either the machine has moved, and the earlier process is silent from
    /// then on; or there are two, if the earlier one was heard after the other had first called.
    #[must_use]
    pub fn judge(
        &self,
        state: &State,
        contacts: &Contacts,
        (now_ms, listens_ms): (u64, u64),
        introduced: &Introduced<'_>,
    ) -> Introduction {
        let Introduced { server, process, member_life } = *introduced;
        let Some(known) = state.servers.get(server).map(|server| &server.process) else {
            return Introduction::Accepted;
        };
        if known.life == process.life || known.host == process.host || known.host.is_empty() {
            return Introduction::Accepted;
        }
        // The machine with the group's log is the server, whichever agent came first.
        match member_life {
            Some(life) if life == process.life => return Introduction::Accepted,
            Some(_) => return Introduction::Elsewhere { host: known.host.clone() },
            None => {}
        }
        let heard_ms = contacts.of(server).map(|contact| contact.at_ms);
        let called = self.0.get(server).filter(|refusal| refusal.host == process.host);
        let are_two = called.is_some_and(|refusal| heard_ms > Some(refusal.since_ms));
        let runs_ms = if are_two { RETURNS_MS } else { RUNS_MS };
        if heard_ms.is_some_and(|at_ms| now_ms.saturating_sub(at_ms) < runs_ms) {
            return Introduction::Elsewhere { host: known.host.clone() };
        }
        if listens_ms < RUNS_MS { Introduction::TooEarly } else { Introduction::Accepted }
    }

    /// Records an attempt. Returns whether it is news.
    pub fn refused(&mut self, now_ms: u64, server: &ServerId, host: &str) -> bool {
        self.0.retain(|_, refusal| now_ms.saturating_sub(refusal.at_ms) < REPORTED_MS);
        match self.0.get_mut(server).filter(|refusal| refusal.host == host) {
            Some(refusal) if now_ms.saturating_sub(refusal.at_ms) < NEWS_MS => false,
            Some(refusal) => {
                refusal.at_ms = now_ms;
                true
            }
            None => {
                let refusal = Refusal { host: host.to_owned(), since_ms: now_ms, at_ms: now_ms };
                self.0.insert(server.clone(), refusal);
                true
            }
        }
    }

    /// Records that an agent on this host is the server from now on: it was no copy. Returns
    /// whether it had been refused.
    pub fn accepted(&mut self, server: &ServerId, host: &str) -> bool {
        let refused = self.0.get(server).is_some_and(|refusal| refusal.host == host);
        refused && self.0.remove(server).is_some()
    }

    /// The agent that was refused as this server, if it was lately.
    #[must_use]
    pub fn of(&self, server: &ServerId, now_ms: u64) -> Option<&Refusal> {
        let refusal = self.0.get(server);
        refusal.filter(|refusal| now_ms.saturating_sub(refusal.at_ms) < REPORTED_MS + NEWS_MS)
    }
}

/// How long an agent pauses that starts over because its disk went back or another agent spoke for
/// its server, for the `times`th time. A disk goes back once, which its agent and its member find:
/// an agent that finds so again and again runs next to another one with the same identity, and
/// without a pause the two would take the server from each other all the time.
#[must_use]
pub fn contested_pause_ms(times: u32) -> Option<u64> {
    let doublings = times.checked_sub(3)?;
    let pause_ms = CONTESTED_PAUSE_MS.saturating_mul(2u64.saturating_pow(doublings));
    Some(pause_ms.min(CONTESTED_PAUSE_MS_MAX))
}

#[cfg(test)]
#[path = "copies_test.rs"]
mod copies_test;
