//! Where a group is with an app: the states of the drawing in `docs/state-machine.md`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::{ClockMs, ServerId};
use crate::release::Release;
use crate::state::Rollout;

/// Where a group is with an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Phase {
    /// Nothing was ever good here,
    Empty,
    /// or the group runs `last_good`,
    Running {
        /// Since when.
        since: ClockMs,
    },
    /// until a new release is found and the registry hears that the group runs an old one,
    MarkedOld {
        /// The rollout.
        rollout: Box<Rollout>,
        /// The registry has it.
        recorded: bool,
    },
    /// the leader's server has every byte of it,
    LeaderHolds {
        /// The rollout.
        rollout: Box<Rollout>,
        /// Which server has it.
        server: ServerId,
    },
    /// signature and bytes are right,
    Verified {
        /// The rollout.
        rollout: Box<Rollout>,
        /// Which server verified it.
        server: ServerId,
    },
    /// it goes through the group wave by wave,
    Wave {
        /// The rollout.
        rollout: Box<Rollout>,
        /// Which wave, from 1.
        number: u32,
        /// Its servers.
        servers: BTreeSet<ServerId>,
        /// How far the wave is.
        step: WaveStep,
        /// Since when.
        since: ClockMs,
    },
    /// or back, where anything fails,
    RollingBack {
        /// The rollout that is taken back.
        rollout: Box<Rollout>,
        /// Why, in words.
        reason: String,
        /// A person said so: goes on under the kill switch.
        by_person: bool,
        /// Since when.
        since: ClockMs,
    },
    /// and then waits for a person or a newer release.
    Held {
        /// What was rejected.
        rejected: Release,
        /// Why, in words.
        reason: String,
        /// Since when.
        since: ClockMs,
        /// The rollout, where the group stopped in place instead of going back.
        in_place: Option<Box<Rollout>>,
    },
}

/// How far a wave is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaveStep {
    /// Its servers are named and the bytes flow,
    Assigned,
    /// all of them have the bytes,
    Downloaded,
    /// all of them run the release,
    Applied,
    /// all have passed their pre-flight checks,
    Checked,
    /// all take traffic and are watched for a while,
    Baking,
    /// and the wave is done.
    Baked,
}

/// The name of a state, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "each is documented at `Phase` and `WaveStep`")]
pub enum PhaseName {
    Empty,
    Running,
    MarkedOld,
    LeaderHolds,
    Verified,
    WaveAssigned,
    WaveDownloaded,
    WaveApplied,
    WaveChecked,
    WaveBaking,
    WaveBaked,
    RollingBack,
    Held,
}

impl PhaseName {
    /// Every state, in the order of the drawing.
    pub const ALL: [PhaseName; 13] = [
        PhaseName::Empty,
        PhaseName::Running,
        PhaseName::MarkedOld,
        PhaseName::LeaderHolds,
        PhaseName::Verified,
        PhaseName::WaveAssigned,
        PhaseName::WaveDownloaded,
        PhaseName::WaveApplied,
        PhaseName::WaveChecked,
        PhaseName::WaveBaking,
        PhaseName::WaveBaked,
        PhaseName::RollingBack,
        PhaseName::Held,
    ];

    /// The name used in logs, records, metrics and commands.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            PhaseName::Empty => "empty",
            PhaseName::Running => "running",
            PhaseName::MarkedOld => "marked-old",
            PhaseName::LeaderHolds => "leader-holds",
            PhaseName::Verified => "verified",
            PhaseName::WaveAssigned => "wave-assigned",
            PhaseName::WaveDownloaded => "wave-downloaded",
            PhaseName::WaveApplied => "wave-applied",
            PhaseName::WaveChecked => "wave-checked",
            PhaseName::WaveBaking => "wave-baking",
            PhaseName::WaveBaked => "wave-baked",
            PhaseName::RollingBack => "rolling-back",
            PhaseName::Held => "held",
        }
    }
}

impl std::fmt::Display for PhaseName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl Phase {
    /// The name of this state.
    #[must_use]
    pub fn name(&self) -> PhaseName {
        match self {
            Phase::Empty => PhaseName::Empty,
            Phase::Running { .. } => PhaseName::Running,
            Phase::MarkedOld { .. } => PhaseName::MarkedOld,
            Phase::LeaderHolds { .. } => PhaseName::LeaderHolds,
            Phase::Verified { .. } => PhaseName::Verified,
            Phase::Wave { step, .. } => match step {
                WaveStep::Assigned => PhaseName::WaveAssigned,
                WaveStep::Downloaded => PhaseName::WaveDownloaded,
                WaveStep::Applied => PhaseName::WaveApplied,
                WaveStep::Checked => PhaseName::WaveChecked,
                WaveStep::Baking => PhaseName::WaveBaking,
                WaveStep::Baked => PhaseName::WaveBaked,
            },
            Phase::RollingBack { .. } => PhaseName::RollingBack,
            Phase::Held { .. } => PhaseName::Held,
        }
    }

    /// The rollout that is going on, forward or back.
    #[must_use]
    pub fn rollout(&self) -> Option<&Rollout> {
        match self {
            Phase::MarkedOld { rollout, .. }
            | Phase::LeaderHolds { rollout, .. }
            | Phase::Verified { rollout, .. }
            | Phase::Wave { rollout, .. }
            | Phase::RollingBack { rollout, .. } => Some(rollout),
            Phase::Empty | Phase::Running { .. } | Phase::Held { .. } => None,
        }
    }

    /// The same, to be changed.
    pub(crate) fn rollout_mut(&mut self) -> Option<&mut Rollout> {
        match self {
            Phase::MarkedOld { rollout, .. }
            | Phase::LeaderHolds { rollout, .. }
            | Phase::Verified { rollout, .. }
            | Phase::Wave { rollout, .. }
            | Phase::RollingBack { rollout, .. } => Some(rollout),
            Phase::Empty | Phase::Running { .. } | Phase::Held { .. } => None,
        }
    }

    /// The rollout that goes forward.
    #[must_use]
    pub fn forward(&self) -> Option<&Rollout> {
        match self {
            Phase::MarkedOld { rollout, .. }
            | Phase::LeaderHolds { rollout, .. }
            | Phase::Verified { rollout, .. }
            | Phase::Wave { rollout, .. } => Some(rollout),
            Phase::Empty
            | Phase::Running { .. }
            | Phase::RollingBack { .. }
            | Phase::Held { .. } => None,
        }
    }
}

/// Every arrow of the drawing: from, to, and the function that takes it. The state machine stops
/// at a step that is not here, and a test compares the drawing with it.
pub const ARROWS: &[(PhaseName, PhaseName, &str)] = {
    use PhaseName as P;
    &[
        (P::Empty, P::Running, "adopt"),
        (P::Empty, P::MarkedOld, "start_rollout"),
        (P::Running, P::MarkedOld, "start_rollout"),
        (P::Held, P::MarkedOld, "start_rollout"),
        (P::MarkedOld, P::MarkedOld, "start_rollout"),
        (P::LeaderHolds, P::MarkedOld, "start_rollout"),
        (P::Verified, P::MarkedOld, "start_rollout"),
        (P::WaveAssigned, P::MarkedOld, "start_rollout"),
        (P::WaveDownloaded, P::MarkedOld, "start_rollout"),
        (P::WaveApplied, P::MarkedOld, "start_rollout"),
        (P::WaveChecked, P::MarkedOld, "start_rollout"),
        (P::WaveBaking, P::MarkedOld, "start_rollout"),
        (P::WaveBaked, P::MarkedOld, "start_rollout"),
        (P::MarkedOld, P::LeaderHolds, "leader_holds"),
        (P::LeaderHolds, P::Verified, "verify"),
        (P::Verified, P::WaveAssigned, "start_wave"),
        (P::Verified, P::Running, "finish"),
        (P::WaveAssigned, P::WaveDownloaded, "wave_downloaded"),
        (P::WaveDownloaded, P::WaveApplied, "wave_applied"),
        (P::WaveApplied, P::WaveChecked, "wave_checked"),
        (P::WaveChecked, P::WaveBaking, "wave_in_service"),
        (P::WaveBaking, P::WaveBaked, "wave_baked"),
        (P::WaveBaked, P::WaveAssigned, "start_wave"),
        (P::WaveBaked, P::Running, "finish"),
        (P::MarkedOld, P::RollingBack, "roll_back"),
        (P::LeaderHolds, P::RollingBack, "roll_back"),
        (P::Verified, P::RollingBack, "roll_back"),
        (P::WaveAssigned, P::RollingBack, "roll_back"),
        (P::WaveDownloaded, P::RollingBack, "roll_back"),
        (P::WaveApplied, P::RollingBack, "roll_back"),
        (P::WaveChecked, P::RollingBack, "roll_back"),
        (P::WaveBaking, P::RollingBack, "roll_back"),
        (P::WaveBaked, P::RollingBack, "roll_back"),
        (P::Held, P::RollingBack, "roll_back"),
        (P::RollingBack, P::Held, "hold"),
        (P::MarkedOld, P::Held, "hold_in_place"),
        (P::LeaderHolds, P::Held, "hold_in_place"),
        (P::Verified, P::Held, "hold_in_place"),
        (P::WaveAssigned, P::Held, "hold_in_place"),
        (P::WaveDownloaded, P::Held, "hold_in_place"),
        (P::WaveApplied, P::Held, "hold_in_place"),
        (P::WaveChecked, P::Held, "hold_in_place"),
        (P::WaveBaking, P::Held, "hold_in_place"),
        (P::WaveBaked, P::Held, "hold_in_place"),
    ]
};
