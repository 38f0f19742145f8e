//! One line each for the facts of this crate, for logs, records and command-line answers.

use std::fmt::{Display, Formatter, Result};

use crate::ids::ServerId;
use crate::reason::{DebtReason, PausedBy, Reason, Unfit};
use crate::rejection::{Limited, Rejection, WhyNot};

impl Display for Reason {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Reason::ServerFailed { server, step, text } => {
                write!(f, "{} failed on {server}: {text}", step.name())
            }
            Reason::ServersLost => f.write_str("too many servers are unreachable"),
            Reason::NoServerLeft => f.write_str("no server is left that runs it"),
            Reason::NoProgress { wave, within, servers } => {
                let servers: Vec<&str> = servers.iter().map(ServerId::as_str).collect();
                write!(f, "no progress within {within} in wave {wave} ({})", servers.join(", "))
            }
            Reason::Aborted { by, text } if text.is_empty() => write!(f, "aborted by {by}"),
            Reason::Aborted { by, text } => write!(f, "aborted by {by}: {text}"),
            Reason::Undone { by } => write!(f, "undone by {by}"),
            Reason::Superseded { version } => write!(f, "superseded by {version}"),
        }
    }
}

impl Display for DebtReason {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            DebtReason::Joined => f.write_str("joined"),
            DebtReason::Found { running: Some(version) } => write!(f, "was running {version}"),
            DebtReason::Found { running: None } => f.write_str("was running nothing"),
            DebtReason::LeftBehind => f.write_str("left behind by the rollout"),
            DebtReason::NotRolledBack => f.write_str("not reached by the roll-back"),
            DebtReason::Silent { for_ms } => write!(f, "unreachable for {} s", for_ms / 1000),
            DebtReason::Failed { text } => f.write_str(text),
        }
    }
}

impl Display for Unfit {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Unfit::Changing => f.write_str("being changed"),
            Unfit::Failed { step } => write!(f, "{} failed", step.name()),
            Unfit::Unhealthy { text } => f.write_str(text),
        }
    }
}

impl Display for PausedBy {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            PausedBy::Person { name } => f.write_str(name),
            PausedBy::Verdict { group } => write!(f, "verdict of {group}"),
        }
    }
}

impl Display for Rejection {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Rejection::OtherIncarnation { expected } => {
                write!(f, "for another incarnation of the group (this is {expected})")
            }
            Rejection::Clock { clock } => write!(f, "the group clock is at {clock} ms"),
            Rejection::OldPlan { generation } => {
                write!(f, "planned against an old generation (this is {generation})")
            }
            Rejection::NoApp { app } => write!(f, "this group has no app `{app}`"),
            Rejection::NoServer { server } => write!(f, "this group has no server `{server}`"),
            Rejection::NotNow { state, why } => write!(f, "not while `{state}`: {why}"),
            Rejection::Capacity { out, max } => {
                write!(f, "{out} servers are out of service; the limit is {max}")
            }
            Rejection::Busy { server } => write!(f, "`{server}` is busy"),
            Rejection::Limit { what, max } => write!(f, "more than {max} {what}"),
        }
    }
}

impl Display for WhyNot {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            WhyNot::NotEmpty => "only an empty group adopts what is installed",
            WhyNot::NotOnAllServers => "not every server runs that release",
            WhyNot::OtherPlatform => "the release is for another platform",
            WhyNot::PolicyChanged => "the policy has changed",
            WhyNot::ReleaseRejected => "this group rejected the release",
            WhyNot::ServerChanging => "a server is in the middle of a change",
            WhyNot::RollingBack => "the group is rolling back",
            WhyNot::AlreadyRunning => "every server already runs it",
            WhyNot::AlreadyRollingOut => "it is already being rolled out",
            WhyNot::NoRollout => "no rollout is in progress",
            WhyNot::NotRecorded => "the registry has not acknowledged the group's record",
            WhyNot::BytesMissing => "the server has not reported the bytes",
            WhyNot::NothingToVerify => "there is nothing to verify",
            WhyNot::WaveInProgress => "the wave before is not done",
            WhyNot::Paused => "the rollout is paused",
            WhyNot::AwaitsApproval => "the rollout waits for approval",
            WhyNot::NotNextWave => "that is not the next wave",
            WhyNot::WrongServers => "the wave has servers that have nothing to do",
            WhyNot::ForwardOnly => "the release is declared forward-only",
            WhyNot::NotPaused => "nothing is paused",
            WhyNot::NoApprovalNeeded => "nothing waits for approval",
            WhyNot::NothingToRetry => "nothing is held and no server owes",
            WhyNot::NotRunning => "only a running group can undo a release; use `abort`",
            WhyNot::NoEarlierRelease => "no earlier release is known to be good",
            WhyNot::NotItsTurn => "the server is not in this wave, or the wave is downloading",
            WhyNot::NothingToGrant => "no wave or roll-back is in progress",
            WhyNot::AlreadyLost => "the server is already lost",
        })
    }
}

impl Display for Limited {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Limited::Servers => "servers",
            Limited::Apps => "apps",
            Limited::ReportBytes => "bytes of text in a report",
        })
    }
}
