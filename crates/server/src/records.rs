//! What the leader writes to the registry, and what it then reports to the group.
//!
//! A leadership writes everything once, whatever the registry acknowledged to earlier ones: it may
//! have been lost since, or restored from a backup. A record that is there stays as it is.

use std::collections::BTreeMap;

use cohort_consensus::{Configuration, RaftId};
use cohort_core::ids::{AppId, Incarnation, Platform, Version};
use cohort_core::orders::MemberAddress;
use cohort_core::phase::{Phase, PhaseName};
use cohort_core::reason::Reason;
use cohort_core::state::{App, Ending, HistoryEntry, Verdict};
use cohort_core::{Body, State};

/// One record that the registry does not have yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The labels and the platform that the group's servers share; they never change.
    Info { labels: BTreeMap<String, String>, platform: Platform },
    /// The incarnation that the group is in.
    Bootstrap { incarnation: Incarnation },
    /// The addresses of the group's members.
    Members(Vec<MemberPlace>),
    /// The group's progress with an app.
    Progress(Progress),
    /// Nothing is left of a removed app in the group: its records and verdicts go.
    Gone { app: AppId, sequence: u64 },
    /// The group's judgement of a release. `due`: the registry has not acknowledged it.
    Verdict { app: AppId, verdict: Verdict, due: bool },
}

/// A member, its address, and whether it votes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberPlace {
    pub at: MemberAddress,
    /// A standby only replicates.
    pub voter: bool,
}

/// A group's progress with an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub app: AppId,
    /// Number of records of this app so far.
    pub sequence: u64,
    /// The registry has not acknowledged it.
    pub due: bool,
    pub phase: PhaseName,
    /// The release that the whole group runs, or ran last.
    pub running: Option<Version>,
    /// The release that is being rolled out, or was rejected.
    pub target: Option<Version>,
    /// Why the group rolled back, or is held.
    pub held_reason: Option<Reason>,
}

/// The records written under this leader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    info: bool,
    bootstrap: bool,
    members: Option<Vec<MemberPlace>>,
    /// The last record of each app.
    progress: BTreeMap<AppId, u64>,
    /// The last good verdict of each app.
    good: BTreeMap<AppId, Version>,
}

impl Written {
    /// Records that the registry accepted a record. Returns what the group has to know about it: if
    /// that gets lost, the record is written again, which is harmless.
    pub fn took(&mut self, record: Record) -> Option<Body> {
        match record {
            Record::Info { .. } => self.info = true,
            Record::Bootstrap { .. } => self.bootstrap = true,
            Record::Members(members) => self.members = Some(members),
            Record::Progress(Progress { app, sequence, due, .. }) => {
                self.progress.insert(app.clone(), sequence);
                return due.then_some(Body::RecordWritten { app, record: sequence });
            }
            Record::Gone { app, sequence } => {
                // It may be added again.
                self.progress.remove(&app);
                self.good.remove(&app);
                return Some(Body::RecordWritten { app, record: sequence });
            }
            Record::Verdict { app, verdict: Verdict { version, bad, .. }, due } => {
                let good = bad.is_none();
                if good {
                    self.good.insert(app.clone(), version.clone());
                }
                return due.then_some(Body::VerdictWritten { app, version, good });
            }
        }
        None
    }
}

/// The records that the registry does not have yet, in the order of writing.
#[must_use]
pub fn due(state: &State, configuration: &Configuration, written: &Written) -> Vec<Record> {
    let mut due = Vec::new();
    if !written.bootstrap {
        due.push(Record::Bootstrap { incarnation: state.incarnation });
    }
    let place = |at: MemberAddress| {
        let voter = configuration.is_voter(RaftId(at.member.0));
        MemberPlace { at, voter }
    };
    let members: Vec<MemberPlace> = state.member_addresses().into_iter().map(place).collect();
    if written.members.as_ref() != Some(&members) {
        due.push(Record::Members(members));
    }
    // The voters stand behind everything else.
    if let Some(platform) = state.platform.clone().filter(|_| !written.info) {
        due.push(Record::Info { labels: (*state.labels).clone(), platform });
    }
    for (id, app) in &state.apps {
        let progress = progress(id, app);
        if let Phase::Removing { stopped: true, .. } = app.phase {
            if progress.due {
                due.push(Record::Gone { app: id.clone(), sequence: app.record });
            }
            continue;
        }
        if progress.due || written.progress.get(id) != Some(&progress.sequence) {
            due.push(Record::Progress(progress));
        }
        due.extend(app.verdicts_due.iter().cloned().map(|mut verdict| {
            verdict.bad = verdict.bad.map(Reason::shortened);
            Record::Verdict { app: id.clone(), verdict, due: true }
        }));
        let good = good_verdict(app).filter(|good| written.good.get(id) != Some(&good.version));
        due.extend(good.map(|verdict| Record::Verdict { app: id.clone(), verdict, due: false }));
    }
    due
}

/// The verdict that the registry acknowledged about the release that the whole group runs, which
/// groups of later stages wait for. What it acknowledged about bad releases is not known any more.
fn good_verdict(app: &App) -> Option<Verdict> {
    let release = app.last_good.as_ref()?;
    let of_it = |entry: &&HistoryEntry| entry.version == release.version;
    let ended = app.history.iter().rev().find(of_it)?;
    let due = app.verdicts_due.iter().any(|due| due.version == release.version);
    (ended.ending == Ending::Completed && !due).then(|| Verdict {
        version: release.version.clone(),
        platform: release.platform.clone(),
        bad: None,
    })
}

fn progress(id: &AppId, app: &App) -> Progress {
    let going = || app.phase.rollout().map(|rollout| rollout.release.version.clone());
    let (target, held_reason) = match &app.phase {
        Phase::Held { rejected, reason, .. } => {
            (Some(rejected.version.clone()), Some(reason.clone().shortened()))
        }
        Phase::RollingBack { reason, .. } => (going(), Some(reason.clone().shortened())),
        Phase::Forward { .. } => (going(), None),
        Phase::Empty | Phase::Running { .. } | Phase::Removing { .. } => (None, None),
    };
    Progress {
        app: id.clone(),
        sequence: app.record,
        due: app.record_written < app.record,
        phase: app.phase.name(),
        running: app.last_good.as_ref().map(|release| release.version.clone()),
        target,
        held_reason,
    }
}
