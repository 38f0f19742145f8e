//! From the start of a rollout to its last wave.

use std::collections::BTreeSet;

use super::{Applied, Turn};
use crate::command::WhyNot;
use crate::ids::{Revision, ServerId, Version};
use crate::phase::{Milestone, Phase, WaveStep};
use crate::reason::Reason;
use crate::release::Release;
use crate::state::{Ending, HISTORY_MAX, HistoryEntry, Rollout, Verdict, push_bounded};

impl Turn<'_> {
    /// empty ─► running: every server was found running the same release.
    pub(crate) fn adopt(&mut self, release: &Release) -> Applied {
        if self.app.phase != Phase::Empty {
            return self.not_now(WhyNot::NotEmpty);
        }
        let servers = &self.app.servers;
        if servers.is_empty() || !servers.values().all(|here| here.settled_on(Some(release))) {
            return self.not_now(WhyNot::NotOnAllServers);
        }
        self.app.last_good = Some(release.clone());
        self.app.good_checks = self.app.newest_checks().revision;
        let entry = HistoryEntry {
            version: release.version.clone(),
            ending: Ending::Adopted,
            reason: None,
            by: self.actor.to_owned(),
            started: self.clock,
            ended: self.clock,
            waves: 0,
        };
        push_bounded(&mut self.app.history, entry, HISTORY_MAX);
        self.enter(Phase::Running { since: self.clock });
        Ok(())
    }

    /// any state but removing ─► marked-old: a release rolls out. From a rollback only if that is
    /// stuck.
    pub(crate) fn start_rollout(
        &mut self,
        release: &Release,
        revision: Revision,
        lead: &ServerId,
    ) -> Applied {
        self.knows(lead)?;
        if let Some(why) = self.why_not_start(release, revision) {
            return self.not_now(why);
        }
        match self.app.phase.clone() {
            Phase::Forward { rollout, .. } => {
                let reason = Reason::Superseded { version: release.version.clone() };
                self.remember(&rollout, Ending::Superseded, Some(reason));
            }
            Phase::RollingBack { rollout, reason, .. } => {
                self.reject(&rollout.release, reason.clone());
                self.remember(&rollout, Ending::Superseded, Some(reason));
            }
            Phase::Empty | Phase::Running { .. } | Phase::Held { .. } | Phase::Removing { .. } => {}
        }
        self.app.generation = self.app.generation.next();
        // A failed change does not block a new plan. What a lost server may still be doing is kept
        // until it reports the outcome or gets another change.
        self.app.servers.values_mut().for_each(|here| here.forget_ended());
        let rollout = Box::new(Rollout {
            release: release.clone(),
            policy: self.app.policy.clone(),
            revision,
            checks: self.app.newest_checks().revision,
            by: self.actor.to_owned(),
            started: self.clock,
            lead: lead.clone(),
            waves: 0,
            despite_pause: false,
            approved: false,
            release_failures: 0,
            surroundings_failures: 0,
            failures: Vec::new(),
            failed: BTreeSet::new(),
            progress: self.clock,
            lost: BTreeSet::new(),
            unfetched: BTreeSet::new(),
            overruled: BTreeSet::new(),
        });
        self.enter(Phase::Forward { rollout, at: Milestone::MarkedOld { recorded: false } });
        Ok(())
    }

    /// The leader found it on the channel: not while the app is paused.
    pub(crate) fn start_offered(
        &mut self,
        release: &Release,
        revision: Revision,
        lead: &ServerId,
    ) -> Applied {
        match self.app.pause {
            Some(_) => self.not_now(WhyNot::Paused),
            None => self.start_rollout(release, revision, lead),
        }
    }

    fn why_not_start(&self, release: &Release, revision: Revision) -> Option<WhyNot> {
        let app = &*self.app;
        let runs = || app.servers.values().all(|here| here.settled_on(Some(release)));
        if self.platform != Some(&release.platform) {
            Some(WhyNot::OtherPlatform)
        } else if matches!(app.phase, Phase::Removing { .. }) {
            Some(WhyNot::BeingRemoved)
        } else if app.revision != revision {
            Some(WhyNot::PolicyChanged)
        } else if app.rejection_of(release).is_some() {
            Some(WhyNot::ReleaseRejected)
        } else if !app.blocking_takeover().is_empty() {
            Some(WhyNot::ServerChanging)
        } else if app.phase.rolling_back().is_some_and(|it| !it.is_stuck(self.clock)) {
            Some(WhyNot::RollingBack)
        } else if matches!(app.phase, Phase::Running { .. }) && runs() {
            Some(WhyNot::AlreadyRunning)
        } else if app.phase.rollout().is_some_and(|rollout| rollout.release == *release) {
            Some(WhyNot::AlreadyRollingOut)
        } else {
            None
        }
    }

    /// A new leader continues the rollout: its server now fetches from the mirror.
    pub(crate) fn take_lead(&mut self, lead: &ServerId) -> Applied {
        self.knows(lead)?;
        match self.app.phase.rollout_mut() {
            Some(rollout) => rollout.lead = lead.clone(),
            None => return self.not_now(WhyNot::NoRollout),
        }
        Ok(())
    }

    /// The registry acknowledged the app's record up to this count.
    pub(crate) fn record_written(&mut self, record: u64) -> Applied {
        let app = &mut *self.app;
        app.record_written = app.record_written.max(record.min(app.record));
        if let Phase::Forward { at: Milestone::MarkedOld { recorded }, .. } = &mut app.phase {
            *recorded |= app.record_written == app.record;
        }
        Ok(())
    }

    /// The registry acknowledged a verdict.
    pub(crate) fn verdict_written(&mut self, version: &Version, good: bool) -> Applied {
        let written = |due: &Verdict| due.version == *version && due.bad.is_none() == good;
        self.app.verdicts_due.retain(|due| !written(due));
        Ok(())
    }

    /// marked-old ─► leader-holds: the registry knows, and the leader's server has all the bytes.
    pub(crate) fn leader_holds(&mut self, server: &ServerId) -> Applied {
        let Phase::Forward { at: Milestone::MarkedOld { recorded }, .. } = &self.app.phase else {
            return self.not_now(WhyNot::NothingToVerify);
        };
        if !recorded {
            return self.not_now(WhyNot::NotRecorded);
        }
        self.has_bytes(server)?;
        self.reach(Milestone::LeaderHolds);
        Ok(())
    }

    /// leader-holds ─► verified: the leader has checked the signature and every byte itself.
    pub(crate) fn verify(&mut self, server: &ServerId) -> Applied {
        let Phase::Forward { at: Milestone::LeaderHolds, .. } = &self.app.phase else {
            return self.not_now(WhyNot::NothingToVerify);
        };
        self.has_bytes(server)?;
        self.reach(Milestone::Verified);
        Ok(())
    }

    fn has_bytes(&self, server: &ServerId) -> Applied {
        let artifact = self.app.phase.forward().map(|rollout| &rollout.release.artifact);
        let here = self.app.servers.get(server);
        match (artifact, here) {
            (Some(artifact), Some(here)) if here.has(artifact) => Ok(()),
            _ => self.not_now(WhyNot::BytesMissing),
        }
    }

    /// verified, wave-baked ─► wave-assigned: the next wave starts.
    pub(crate) fn start_wave(&mut self, number: u32, servers: &BTreeSet<ServerId>) -> Applied {
        let Some(rollout) = self.app.phase.between_waves() else {
            return self.not_now(WhyNot::WaveInProgress);
        };
        if self.app.pause_of(rollout).is_some() {
            return self.not_now(WhyNot::Paused);
        }
        if rollout.awaits_approval() {
            return self.not_now(WhyNot::AwaitsApproval);
        }
        if number != rollout.waves + 1 {
            return self.not_now(WhyNot::NotNextWave);
        }
        if servers.is_empty() || !servers.is_subset(&self.app.remaining(rollout).cloned().collect())
        {
            return self.not_now(WhyNot::WrongServers);
        }
        if let Some(rollout) = self.app.phase.rollout_mut() {
            rollout.waves = number;
        }
        self.progress();
        let (servers, since) = (servers.clone(), self.clock);
        self.reach(Milestone::Wave { servers, step: WaveStep::Assigned, since });
        Ok(())
    }

    /// A wave waits for a server that is out of service: it takes it in, in addition to
    /// `max_parallel`. The server may still have to fetch the bytes.
    pub(crate) fn widen_wave(&mut self, server: &ServerId) -> Applied {
        let remaining = self.app.phase.forward().map(|rollout| self.app.remaining(rollout));
        if !remaining.is_some_and(|mut remaining| remaining.any(|one| one == server)) {
            return self.not_now(WhyNot::WrongServers);
        }
        match &mut self.app.phase {
            Phase::Forward {
                at: Milestone::Wave { servers, step: WaveStep::Downloaded, .. },
                ..
            } => servers.insert(server.clone()),
            Phase::Empty
            | Phase::Running { .. }
            | Phase::Forward { .. }
            | Phase::RollingBack { .. }
            | Phase::Held { .. }
            | Phase::Removing { .. } => return self.not_now(WhyNot::NotItsTurn),
        };
        self.progress();
        Ok(())
    }
}
