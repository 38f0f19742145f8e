//! The infrastructure registry: what leaders read of it, and what they write, which may come late.

use std::collections::BTreeMap;
use std::sync::Arc;

use cohort_consensus::{Index, Term};
use cohort_core::gate::{ForeignVerdict, RegistryView};
use cohort_core::ids::{AppId, GroupId, Version};
use cohort_server::records::{MemberPlace, Record};

/// When a group decided what is written, in its own order of events.
type Stamp = (Term, Index);
/// A record of a group: a verdict about this version, or its members.
type Key = (GroupId, Option<(AppId, Version)>);

#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// Its content, as leaders read it; shared with those that have read it.
    pub(crate) view: Arc<RegistryView>,
    /// Where the members of each group are.
    pub(crate) members: BTreeMap<GroupId, Vec<MemberPlace>>,
    /// Whether it is unreachable.
    pub(crate) away: bool,
    /// Whether it answers, but fails at every write.
    pub(crate) refuses: bool,
    /// How long writes take at most in addition, in milliseconds.
    pub(crate) slow_ms: u64,
    /// Whether a late write replaces a newer record.
    pub(crate) unfenced: bool,
    /// Writes on their way, by arrival.
    in_flight: BTreeMap<(u64, u64), (GroupId, Stamp, Record)>,
    /// The decision that each record is of.
    stamps: BTreeMap<Key, Stamp>,
    sent: u64,
}

impl Registry {
    /// A group writes something that it decided at `stamp`; it arrives at `at_ms`.
    pub(crate) fn write(&mut self, at_ms: u64, group: &GroupId, stamp: Stamp, record: Record) {
        self.sent += 1;
        self.in_flight.insert((at_ms, self.sent), (group.clone(), stamp, record));
    }

    /// What has arrived by now is written, unless something newer is.
    pub(crate) fn arrive(&mut self, now_ms: u64) {
        while let Some(first) = self.in_flight.first_entry().filter(|it| it.key().0 <= now_ms) {
            let (group, stamp, record) = first.remove();
            let about = match &record {
                Record::Verdict { app, verdict, .. } => {
                    Some((app.clone(), verdict.version.clone()))
                }
                Record::Info { .. }
                | Record::Bootstrap { .. }
                | Record::Members(_)
                | Record::Progress(_)
                | Record::Gone { .. } => None,
            };
            let known = self.stamps.entry((group.clone(), about)).or_insert(stamp);
            if *known <= stamp || self.unfenced {
                *known = stamp;
                self.take(group, record);
            }
        }
    }

    fn take(&mut self, group: GroupId, record: Record) {
        match record {
            Record::Members(members) => {
                self.members.insert(group, members);
            }
            Record::Verdict { app, verdict, .. } => {
                let verdict = ForeignVerdict {
                    group,
                    app,
                    version: verdict.version,
                    platform: verdict.platform,
                    bad: verdict.bad,
                };
                let verdicts = &mut Arc::make_mut(&mut self.view).verdicts;
                verdicts.retain(|known| {
                    (&known.group, &known.app, &known.version)
                        != (&verdict.group, &verdict.app, &verdict.version)
                });
                verdicts.push(verdict);
            }
            Record::Gone { app, .. } => {
                let verdicts = &mut Arc::make_mut(&mut self.view).verdicts;
                verdicts.retain(|known| (&known.group, &known.app) != (&group, &app));
            }
            // The registry has the first two, and nobody reads the other one here.
            Record::Info { .. } | Record::Bootstrap { .. } | Record::Progress(_) => {}
        }
    }
}
