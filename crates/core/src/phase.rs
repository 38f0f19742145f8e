//! The states of a group, per app: drawn in `docs/state-machine.md`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::{ClockMs, ServerId};
use crate::reason::Reason;
use crate::release::Release;
use crate::state::{ActivationStage, Rollout, ServerApp};

/// The phase of one app in a group. Read the variants in order: they form one sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Phase {
    /// No release has been good here yet,
    Empty,
    /// or the group runs its `last_good`,
    Running { since: ClockMs },
    /// until a new release starts to roll out, milestone by milestone,
    Forward {
        /// The release, its pinned policy, and the failures so far.
        rollout: Box<Rollout>,
        /// The last milestone reached.
        at: Milestone,
    },
    /// or is rolled back because something failed,
    RollingBack {
        /// The rollout being undone.
        rollout: Box<Rollout>,
        reason: Reason,
        /// An operator ordered it, so it continues under the kill switch.
        by_person: bool,
        since: ClockMs,
    },
    /// and then waits for an operator or a newer release;
    Held {
        rejected: Release,
        reason: Reason,
        since: ClockMs,
        /// The stopped rollout, if the group stayed in place instead of rolling back.
        in_place: Option<Box<Rollout>>,
    },
    /// or its servers stop the app, and the group then forgets it.
    Removing {
        since: ClockMs,
        /// No server runs it any more: the registry forgets the group's records of it.
        stopped: bool,
    },
}

/// A rollout's progress, up to its current wave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "milestone", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Milestone {
    /// The rollout is decided, and the registry learns that the group's release is old;
    MarkedOld {
        /// The registry has acknowledged it.
        recorded: bool,
    },
    /// the leader's server has all the bytes,
    LeaderHolds,
    /// and has verified them and their signature;
    Verified,
    /// wave number `rollout.waves` is in progress.
    Wave {
        /// The servers of the wave. A server that leaves the group also leaves the wave.
        servers: BTreeSet<ServerId>,
        step: WaveStep,
        since: ClockMs,
    },
}

/// A wave's progress. Lost servers do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaveStep {
    /// Its servers are chosen and are downloading;
    Assigned,
    /// all have the bytes, except servers that the wave took in since because it waits for them,
    Downloaded,
    /// all run the release,
    Applied,
    /// all have passed their pre-flight checks,
    Checked,
    /// all take traffic and are watched for `bake_time`;
    Baking,
    /// the wave is done.
    Baked,
}

impl WaveStep {
    /// The step that follows once all servers of the wave have completed this one.
    pub(crate) fn next(self) -> Option<WaveStep> {
        match self {
            WaveStep::Assigned => Some(WaveStep::Downloaded),
            WaveStep::Downloaded => Some(WaveStep::Applied),
            WaveStep::Applied => Some(WaveStep::Checked),
            WaveStep::Checked => Some(WaveStep::Baking),
            WaveStep::Baking => Some(WaveStep::Baked),
            WaveStep::Baked => None,
        }
    }

    /// Whether a server of the wave has completed this step. One that serves the release has
    /// completed all.
    pub(crate) fn is_done_on(self, here: &ServerApp, release: &Release) -> bool {
        // A change that pays a debt passes the same stages on its way to another release.
        let own = here.activation.as_ref().filter(|it| it.release.as_ref() == Some(release));
        let stage = own.map(|activation| &activation.stage);
        let checked = matches!(stage, Some(ActivationStage::Checked { .. }));
        let applied = checked || matches!(stage, Some(ActivationStage::Applied { .. }));
        let done = match self {
            WaveStep::Assigned => here.has(&release.artifact),
            WaveStep::Downloaded => applied,
            WaveStep::Applied => checked,
            WaveStep::Checked => false,
            WaveStep::Baking | WaveStep::Baked => true,
        };
        done || here.serves(release)
    }
}

/// A phase without its data: the name used in logs, records, metrics and commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum PhaseName {
    Empty,
    Running,
    Forward(MilestoneName),
    RollingBack,
    Held,
    Removing,
}

/// A milestone without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MilestoneName {
    MarkedOld,
    LeaderHolds,
    Verified,
    Wave(WaveStep),
}

impl PhaseName {
    pub const MARKED_OLD: PhaseName = PhaseName::Forward(MilestoneName::MarkedOld);
    pub const LEADER_HOLDS: PhaseName = PhaseName::Forward(MilestoneName::LeaderHolds);
    pub const VERIFIED: PhaseName = PhaseName::Forward(MilestoneName::Verified);
    pub const WAVE_ASSIGNED: PhaseName = PhaseName::wave(WaveStep::Assigned);
    pub const WAVE_DOWNLOADED: PhaseName = PhaseName::wave(WaveStep::Downloaded);
    pub const WAVE_APPLIED: PhaseName = PhaseName::wave(WaveStep::Applied);
    pub const WAVE_CHECKED: PhaseName = PhaseName::wave(WaveStep::Checked);
    pub const WAVE_BAKING: PhaseName = PhaseName::wave(WaveStep::Baking);
    pub const WAVE_BAKED: PhaseName = PhaseName::wave(WaveStep::Baked);

    /// Every phase, in the order of the diagram.
    pub const ALL: [PhaseName; 14] = [
        PhaseName::Empty,
        PhaseName::Running,
        PhaseName::MARKED_OLD,
        PhaseName::LEADER_HOLDS,
        PhaseName::VERIFIED,
        PhaseName::WAVE_ASSIGNED,
        PhaseName::WAVE_DOWNLOADED,
        PhaseName::WAVE_APPLIED,
        PhaseName::WAVE_CHECKED,
        PhaseName::WAVE_BAKING,
        PhaseName::WAVE_BAKED,
        PhaseName::RollingBack,
        PhaseName::Held,
        PhaseName::Removing,
    ];

    const fn wave(step: WaveStep) -> PhaseName {
        PhaseName::Forward(MilestoneName::Wave(step))
    }

    /// The name as text, such as `wave-applied`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            PhaseName::Empty => "empty",
            PhaseName::Running => "running",
            PhaseName::Forward(at) => match at {
                MilestoneName::MarkedOld => "marked-old",
                MilestoneName::LeaderHolds => "leader-holds",
                MilestoneName::Verified => "verified",
                MilestoneName::Wave(step) => match step {
                    WaveStep::Assigned => "wave-assigned",
                    WaveStep::Downloaded => "wave-downloaded",
                    WaveStep::Applied => "wave-applied",
                    WaveStep::Checked => "wave-checked",
                    WaveStep::Baking => "wave-baking",
                    WaveStep::Baked => "wave-baked",
                },
            },
            PhaseName::RollingBack => "rolling-back",
            PhaseName::Held => "held",
            PhaseName::Removing => "removing",
        }
    }
}

impl From<PhaseName> for &'static str {
    fn from(name: PhaseName) -> &'static str {
        name.as_str()
    }
}

impl TryFrom<String> for PhaseName {
    type Error = String;

    fn try_from(text: String) -> Result<PhaseName, String> {
        let known = PhaseName::ALL.into_iter().find(|name| name.as_str() == text);
        known.ok_or_else(|| format!("unknown state `{text}`"))
    }
}

impl std::fmt::Display for PhaseName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl Phase {
    /// The phase without its data.
    #[must_use]
    pub fn name(&self) -> PhaseName {
        match self {
            Phase::Empty => PhaseName::Empty,
            Phase::Running { .. } => PhaseName::Running,
            Phase::Forward { at, .. } => PhaseName::Forward(match at {
                Milestone::MarkedOld { .. } => MilestoneName::MarkedOld,
                Milestone::LeaderHolds => MilestoneName::LeaderHolds,
                Milestone::Verified => MilestoneName::Verified,
                Milestone::Wave { step, .. } => MilestoneName::Wave(*step),
            }),
            Phase::RollingBack { .. } => PhaseName::RollingBack,
            Phase::Held { .. } => PhaseName::Held,
            Phase::Removing { .. } => PhaseName::Removing,
        }
    }

    /// The rollout in progress, forward or rolling back.
    #[must_use]
    pub fn rollout(&self) -> Option<&Rollout> {
        match self {
            Phase::Forward { rollout, .. } | Phase::RollingBack { rollout, .. } => Some(rollout),
            Phase::Empty | Phase::Running { .. } | Phase::Held { .. } | Phase::Removing { .. } => {
                None
            }
        }
    }

    pub(crate) fn rollout_mut(&mut self) -> Option<&mut Rollout> {
        match self {
            Phase::Forward { rollout, .. } | Phase::RollingBack { rollout, .. } => Some(rollout),
            Phase::Empty | Phase::Running { .. } | Phase::Held { .. } | Phase::Removing { .. } => {
                None
            }
        }
    }

    /// Drops a server that has left the group.
    pub(crate) fn forget(&mut self, server: &ServerId) {
        if let Phase::Forward { at: Milestone::Wave { servers, .. }, .. } = self {
            servers.remove(server);
        }
        if let Some(rollout) = self.rollout_mut() {
            rollout.lost.remove(server);
            rollout.unfetched.remove(server);
            rollout.failed.remove(server);
        }
    }

    /// The rollout in progress, unless it is being rolled back.
    #[must_use]
    pub fn forward(&self) -> Option<&Rollout> {
        if let Phase::Forward { rollout, .. } = self { Some(rollout) } else { None }
    }

    /// The rollout that is being rolled back.
    pub(crate) fn rolling_back(&self) -> Option<&Rollout> {
        if let Phase::RollingBack { rollout, .. } = self { Some(rollout) } else { None }
    }

    /// The rollout, if its next wave may start or, with no servers left, the rollout is done.
    pub(crate) fn between_waves(&self) -> Option<&Rollout> {
        match self {
            Phase::Forward {
                rollout,
                at: Milestone::Verified | Milestone::Wave { step: WaveStep::Baked, .. },
            } => Some(rollout),
            Phase::Empty
            | Phase::Running { .. }
            | Phase::Forward { .. }
            | Phase::RollingBack { .. }
            | Phase::Held { .. }
            | Phase::Removing { .. } => None,
        }
    }

    /// The servers of the wave in progress or just baked, and its step.
    #[must_use]
    pub fn wave(&self) -> Option<(&BTreeSet<ServerId>, WaveStep)> {
        if let Phase::Forward { at: Milestone::Wave { servers, step, .. }, .. } = self {
            Some((servers, *step))
        } else {
            None
        }
    }
}

/// One end of an arrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    At(PhaseName),
    /// All phases between the start of a rollout and its end: an arrow from here leaves any of
    /// them; an arrow to here enters the first, `marked-old`.
    Forward,
}

/// One arrow of the diagram: from, to, and the function that takes it.
pub type Arrow = (End, End, &'static str);

/// Every arrow of the diagram. A transition not listed here stops the replica; a test compares the
/// diagram with this table.
pub const ARROWS: &[Arrow] = {
    use PhaseName as P;
    const fn at(name: P) -> End {
        End::At(name)
    }
    &[
        (at(P::Empty), at(P::Running), "adopt"),
        (at(P::Empty), End::Forward, "start_rollout"),
        (at(P::Running), End::Forward, "start_rollout"),
        (at(P::Held), End::Forward, "start_rollout"),
        (at(P::RollingBack), End::Forward, "start_rollout"),
        (at(P::MARKED_OLD), at(P::LEADER_HOLDS), "leader_holds"),
        (at(P::LEADER_HOLDS), at(P::VERIFIED), "verify"),
        (at(P::VERIFIED), at(P::WAVE_ASSIGNED), "start_wave"),
        (at(P::WAVE_ASSIGNED), at(P::WAVE_DOWNLOADED), "next_step"),
        (at(P::WAVE_DOWNLOADED), at(P::WAVE_APPLIED), "next_step"),
        (at(P::WAVE_APPLIED), at(P::WAVE_CHECKED), "next_step"),
        (at(P::WAVE_CHECKED), at(P::WAVE_BAKING), "next_step"),
        (at(P::WAVE_BAKING), at(P::WAVE_BAKED), "next_step"),
        (at(P::WAVE_BAKED), at(P::WAVE_ASSIGNED), "start_wave"),
        (at(P::VERIFIED), at(P::Running), "finish"),
        (at(P::WAVE_BAKED), at(P::Running), "finish"),
        (End::Forward, End::Forward, "start_rollout"),
        (End::Forward, at(P::RollingBack), "roll_back"),
        (End::Forward, at(P::Held), "hold_in_place"),
        (at(P::Held), at(P::RollingBack), "roll_back"),
        (at(P::RollingBack), at(P::Held), "hold"),
        (at(P::Empty), at(P::Removing), "remove"),
        (at(P::Running), at(P::Removing), "remove"),
        (End::Forward, at(P::Removing), "remove"),
        (at(P::RollingBack), at(P::Removing), "remove"),
        (at(P::Held), at(P::Removing), "remove"),
    ]
};

/// The arrow from one phase to another, if there is one.
#[must_use]
pub fn arrow(from: PhaseName, to: PhaseName) -> Option<&'static Arrow> {
    ARROWS.iter().find(|(start, end, _)| {
        let leaves = match start {
            End::At(name) => *name == from,
            End::Forward => matches!(from, PhaseName::Forward(_)),
        };
        let enters = match end {
            End::At(name) => *name == to,
            End::Forward => to == PhaseName::MARKED_OLD,
        };
        leaves && enters
    })
}
