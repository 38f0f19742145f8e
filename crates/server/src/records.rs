//! What the leader writes to the registry, and what it then reports to the group.

use std::collections::BTreeMap;

use cohort_consensus::{Configuration, RaftId};
use cohort_core::ids::{AppId, Platform, Version};
use cohort_core::orders::MemberAddress;
use cohort_core::phase::{Phase, PhaseName};
use cohort_core::reason::Reason;
use cohort_core::state::{App, Verdict};
use cohort_core::{Body, State};

/// One record that the registry does not have yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The labels and the platform that the group's servers share; they never change.
    Info { labels: BTreeMap<String, String>, platform: Platform },
    /// The addresses of the group's members.
    Members(Vec<MemberPlace>),
    /// The group's progress with an app.
    Progress(Progress),
    /// Nothing is left of a removed app in the group: its records and verdicts go.
    Gone { app: AppId, sequence: u64 },
    /// The group's judgement of a release.
    Verdict { app: AppId, verdict: Verdict },
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
    members: Option<Vec<MemberPlace>>,
}

impl Written {
    /// Records that the registry accepted a record. Returns what the group has to know about it: if
    /// that gets lost, the record is written again, which is harmless.
    pub fn took(&mut self, record: Record) -> Option<Body> {
        match record {
            Record::Info { .. } => self.info = true,
            Record::Members(members) => self.members = Some(members),
            Record::Progress(Progress { app, sequence, .. }) | Record::Gone { app, sequence } => {
                return Some(Body::RecordWritten { app, record: sequence });
            }
            Record::Verdict { app, verdict: Verdict { version, bad, .. } } => {
                let good = bad.is_none();
                return Some(Body::VerdictWritten { app, version, good });
            }
        }
        None
    }
}

/// The records that the registry does not have yet, in the order of writing.
#[must_use]
pub fn due(state: &State, configuration: &Configuration, written: &Written) -> Vec<Record> {
    let mut due = Vec::new();
    if let Some(platform) = state.platform.clone().filter(|_| !written.info) {
        due.push(Record::Info { labels: (*state.labels).clone(), platform });
    }
    let place = |at: MemberAddress| {
        let voter = configuration.is_voter(RaftId(at.member.0));
        MemberPlace { at, voter }
    };
    let members: Vec<MemberPlace> = state.member_addresses().into_iter().map(place).collect();
    if written.members.as_ref() != Some(&members) {
        due.push(Record::Members(members));
    }
    for (id, app) in &state.apps {
        if app.record_written < app.record {
            due.push(match app.phase {
                Phase::Removing { stopped: true, .. } => {
                    Record::Gone { app: id.clone(), sequence: app.record }
                }
                _ => Record::Progress(progress(id, app)),
            });
        }
        due.extend(app.verdicts_due.iter().cloned().map(|mut verdict| {
            verdict.bad = verdict.bad.map(Reason::shortened);
            Record::Verdict { app: id.clone(), verdict }
        }));
    }
    due
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
        phase: app.phase.name(),
        running: app.last_good.as_ref().map(|release| release.version.clone()),
        target,
        held_reason,
    }
}
