//! What servers hold against each other, and who is left out for it.
//!
//! One server's word alone moves nobody but itself: it gets another parent. Where several say the
//! same of one, that one is barred: what it claims counts for nothing, and it sends to nobody. Who
//! complains about everybody is not believed, since then it is the fault of that one. All of it is
//! forgotten after a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cohort_core::ids::ServerId;

use crate::Moment;

/// How long a grievance counts after it was last heard: long enough to end most transfers, short
/// enough that a server that was mended sends again soon.
pub(super) const LEFT_OUT: Duration = Duration::from_secs(60);

/// Complaints that a server says nothing count after this long: the child has been on a spare parent
/// since the first 300 ms, and a machine that was only busy has sent something again by then.
const SILENT_BELIEVED: Duration = Duration::from_secs(2);

/// Servers that must say the same before one is barred; all that could, where there are fewer.
const ACCUSERS_MIN: usize = 2;

/// Where only one could complain, it must have done so for this long, or show wrong bytes: it is more
/// likely that the other one is slow than that it lies, and a mirror is asked instead.
const ALONE: Duration = Duration::from_secs(15);

/// A server that complains about more than this many, or a quarter of the others where that is more,
/// is not believed.
const ACCUSED_MAX: usize = 2;

/// How long a parent under which a server was behind is passed over where there is another.
const TRIED_KEPT: Duration = Duration::from_secs(20);

/// Grievances of one server that are kept.
const KEPT_MAX: usize = 16;

/// A server may take back what it said that it holds this often, as restarts make it do.
const TAKEN_BACK_MAX: u32 = 2;

/// All grievances of one transfer.
#[derive(Debug, Default)]
pub(super) struct Trust {
    by: BTreeMap<ServerId, BTreeMap<ServerId, Grievance>>,
    taken_back: BTreeMap<ServerId, (u32, Moment)>,
}

#[derive(Debug, Clone, Copy)]
struct Grievance {
    /// When it counts from,
    from: Moment,
    /// and when it was last heard.
    heard: Moment,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// It was behind under this parent, and tries another: nobody's fault yet.
    Tried,
    /// No sign of life.
    Silence,
    /// Alive, but none of what it says that it holds.
    Nothing,
    /// Bytes that are not the signed ones.
    Wrong,
}

impl Trust {
    /// It sent wrong bytes.
    pub(super) fn wrong(&mut self, by: &ServerId, whom: &ServerId, now: Moment) {
        self.hear(by, whom, Grievance { from: now, heard: now, kind: Kind::Wrong });
    }

    /// It sends nothing, or hardly anything, of what it says that it holds.
    pub(super) fn nothing(&mut self, by: &ServerId, whom: &ServerId, now: Moment) {
        self.hear(by, whom, Grievance { from: now, heard: now, kind: Kind::Nothing });
    }

    /// A server that is slow was behind under this parent, and should try another.
    pub(super) fn tried(&mut self, by: &ServerId, whom: &ServerId, now: Moment) {
        self.hear(by, whom, Grievance { from: now, heard: now, kind: Kind::Tried });
    }

    /// All those that say nothing to a server; whoever is not among them does.
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

    /// A server holds less than it said.
    pub(super) fn took_back(&mut self, server: &ServerId, now: Moment) {
        let (count, at) = self.taken_back.entry(server.clone()).or_insert((0, now));
        *count += 1;
        *at = now;
    }

    /// From whom a server takes nothing.
    pub(super) fn refuses(&self, server: &ServerId, now: Moment) -> BTreeSet<ServerId> {
        self.those(server, |grievance| grievance.counts(now))
    }

    /// Under whom a server was behind.
    pub(super) fn fell_behind(&self, server: &ServerId, now: Moment) -> BTreeSet<ServerId> {
        self.those(server, |grievance| {
            grievance.kind == Kind::Tried && now.saturating_sub(grievance.heard) <= TRIED_KEPT
        })
    }

    fn those(&self, by: &ServerId, which: impl Fn(&Grievance) -> bool) -> BTreeSet<ServerId> {
        let kept = self.by.get(by).into_iter().flatten();
        kept.filter(|(_, grievance)| which(grievance)).map(|(whom, _)| whom.clone()).collect()
    }

    /// Who is barred, of a group in which these servers lack something, and so could complain.
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
