//! Servers' complaints about each other, and the servers barred for them.
//!
//! A single complaint moves only the server that made it: it gets another parent. A server that
//! several complain about is barred: its claims do not count, and it feeds no server. A server that
//! complains about everyone is not believed, since the fault is its own. All of it expires.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cohort_core::ids::ServerId;

use crate::Moment;

/// How long a complaint counts after the last repeat: long enough for most transfers to finish,
/// short enough that a repaired server soon feeds others again.
pub(super) const LEFT_OUT: Duration = Duration::from_secs(60);

/// A complaint of silence counts after this long. The child has been on a spare parent since 300
/// ms, and a machine that was only busy has sent something by then.
const SILENT_BELIEVED: Duration = Duration::from_secs(2);

/// Servers that must complain before one is barred, or all that could, if fewer.
const ACCUSERS_MIN: usize = 2;

/// A sole possible accuser must have complained for this long, or have received wrong bytes: the
/// accused is more likely slow than lying, and barring it means asking a mirror instead.
const ALONE: Duration = Duration::from_secs(15);

/// A server that complains about more than this many, or a quarter of the others if that is more,
/// is not believed.
const ACCUSED_MAX: usize = 2;

/// How long a server that fell behind under a parent prefers any other.
const TRIED_KEPT: Duration = Duration::from_secs(20);

/// Most complaints kept per server.
const KEPT_MAX: usize = 16;

/// How often a server may hold less than it had reported, as happens after restarts.
const TAKEN_BACK_MAX: u32 = 2;

/// All complaints within one transfer.
#[derive(Debug, Default)]
pub(super) struct Trust {
    by: BTreeMap<ServerId, BTreeMap<ServerId, Grievance>>,
    taken_back: BTreeMap<ServerId, (u32, Moment)>,
}

#[derive(Debug, Clone, Copy)]
struct Grievance {
    /// When it starts to count.
    from: Moment,
    /// When it was last repeated.
    heard: Moment,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// The server fell behind under this parent and tries another: no one is at fault yet.
    Tried,
    /// It sends no heartbeat.
    Silence,
    /// It is alive, but sends none of what it claims to hold.
    Nothing,
    /// It sent bytes that do not match the hashes.
    Wrong,
}

impl Trust {
    /// `whom` sent wrong bytes to `by`.
    pub(super) fn wrong(&mut self, by: &ServerId, whom: &ServerId, now: Moment) {
        self.hear(by, whom, Grievance { from: now, heard: now, kind: Kind::Wrong });
    }

    /// `whom` sends `by` hardly any of what it claims to hold.
    pub(super) fn nothing(&mut self, by: &ServerId, whom: &ServerId, now: Moment) {
        self.hear(by, whom, Grievance { from: now, heard: now, kind: Kind::Nothing });
    }

    /// `by` is slow, fell behind under `whom`, and should try another parent.
    pub(super) fn tried(&mut self, by: &ServerId, whom: &ServerId, now: Moment) {
        self.hear(by, whom, Grievance { from: now, heard: now, kind: Kind::Tried });
    }

    /// Sets the servers that are silent towards `by`. The others are heard again.
    pub(super) fn silent(&mut self, by: &ServerId, whom: &BTreeSet<&ServerId>, now: Moment) {
        if let Some(kept) = self.by.get_mut(by) {
            kept.retain(|whom_else, grievance| {
                let over = now.saturating_sub(grievance.heard) > LEFT_OUT;
                let undecided = now < grievance.from;
                !over && (!undecided || whom.contains(whom_else))
            });
        }
        for whom in whom {
            let from = now + SILENT_BELIEVED;
            self.hear(by, whom, Grievance { from, heard: now, kind: Kind::Silence });
        }
    }

    fn hear(&mut self, by: &ServerId, whom: &ServerId, new: Grievance) {
        if by == whom {
            return;
        }
        let kept = self.by.entry(by.clone()).or_default();
        if let Some(known) = kept.get_mut(whom) {
            known.from =
                if known.kind == Kind::Tried { new.from } else { known.from.min(new.from) };
            known.heard = new.heard;
            known.kind = known.kind.max(new.kind);
        } else if kept.len() < KEPT_MAX {
            kept.insert(whom.clone(), new);
        }
    }

    /// A server holds less than it had reported.
    pub(super) fn took_back(&mut self, server: &ServerId, now: Moment) {
        let (count, at) = self.taken_back.entry(server.clone()).or_insert((0, now));
        *count += 1;
        *at = now;
    }

    /// Servers that one refuses as parents.
    pub(super) fn refuses(&self, server: &ServerId, now: Moment) -> BTreeSet<ServerId> {
        self.those(server, |grievance| grievance.counts(now))
    }

    /// Parents under which a server fell behind.
    pub(super) fn fell_behind(&self, server: &ServerId, now: Moment) -> BTreeSet<ServerId> {
        self.those(server, |grievance| {
            grievance.kind == Kind::Tried && now.saturating_sub(grievance.heard) <= TRIED_KEPT
        })
    }

    fn those(&self, by: &ServerId, which: impl Fn(&Grievance) -> bool) -> BTreeSet<ServerId> {
        let kept = self.by.get(by).into_iter().flatten();
        kept.filter(|(_, grievance)| which(grievance)).map(|(whom, _)| whom.clone()).collect()
    }

    /// The barred servers, in a group in which the `lacking` servers could complain.
    pub(super) fn barred(&self, lacking: &BTreeSet<&ServerId>, now: Moment) -> BTreeSet<ServerId> {
        let most = ACCUSED_MAX.max(lacking.len() / 4);
        let mut accusers: BTreeMap<&ServerId, Vec<&Grievance>> = BTreeMap::new();
        for (_, kept) in self.by.iter().filter(|(by, _)| lacking.contains(by)) {
            let accused = || kept.iter().filter(|(_, grievance)| grievance.counts(now));
            if accused().count() <= most {
                for (whom, grievance) in accused() {
                    accusers.entry(whom).or_default().push(grievance);
                }
            }
        }
        let enough = |whom: &ServerId, said: &[&Grievance]| {
            let others = lacking.len() - usize::from(lacking.contains(&whom));
            said.len() >= ACCUSERS_MIN
                || (others <= 1 && said.iter().any(|said| said.stands_alone()))
        };
        let by_others = accusers.iter().filter(|(whom, said)| enough(whom, said));
        let fickle = self.taken_back.iter().filter(|(_, (count, at))| {
            *count > TAKEN_BACK_MAX && now.saturating_sub(*at) <= LEFT_OUT
        });
        let barred = by_others.map(|(whom, _)| *whom).chain(fickle.map(|(whom, _)| whom));
        barred.cloned().collect()
    }
}

impl Grievance {
    fn counts(&self, now: Moment) -> bool {
        self.kind != Kind::Tried && now >= self.from && now.saturating_sub(self.heard) <= LEFT_OUT
    }

    fn stands_alone(&self) -> bool {
        self.kind == Kind::Wrong || self.heard.saturating_sub(self.from) >= ALONE
    }
}
