//! The words for the core's reasons and rejections.

use cohort_core::ids::ServerId;
use cohort_core::reason::{DebtReason, PausedBy, Reason, Unfit};
use cohort_core::refused::Refused;
use cohort_core::{Rejection, command::Limited, command::WhyNot};

/// Why a rollout ended, or a release is rejected.
#[must_use]
pub fn reason(reason: &Reason) -> String {
    line(&match reason {
        Reason::ServerFailed { server, step, text } => {
            format!("{} failed on {server}: {text}", step.name())
        }
        Reason::ServersLost { servers } => {
            let servers: Vec<&str> = servers.iter().map(ServerId::as_str).collect();
            format!("too many servers are unreachable: {}", servers.join(", "))
        }
        Reason::NotDownloaded { within, servers, lost } => {
            let names = |servers: &[ServerId]| {
                servers.iter().map(ServerId::as_str).collect::<Vec<_>>().join(", ")
            };
            let late = format!("not downloaded within {within}: {}", names(servers));
            match lost.is_empty() {
                true => late,
                false => format!("{late}; unreachable: {}", names(lost)),
            }
        }
        Reason::NoServerLeft => "no server is left that runs it".into(),
        Reason::NoProgress { wave, within, servers } => {
            let servers: Vec<&str> = servers.iter().map(ServerId::as_str).collect();
            format!("no progress within {within} in wave {wave} ({})", servers.join(", "))
        }
        Reason::Aborted { by, text } => with_text(format!("aborted by {by}"), text),
        Reason::Undone { by } => format!("undone by {by}"),
        Reason::Superseded { version } => format!("superseded by {version}"),
    })
}

/// Why a server has to return to the good release.
#[must_use]
pub fn debt(reason: &DebtReason) -> String {
    line(&match reason {
        DebtReason::Joined => "joined".into(),
        DebtReason::Found { running: Some(version) } => format!("was running {version}"),
        DebtReason::Found { running: None } => "was running nothing".into(),
        DebtReason::LeftBehind => "left behind by the rollout".into(),
        DebtReason::NotRolledBack => "not reached by the rollback".into(),
        DebtReason::Silent { for_ms } => {
            format!("lost after {} s without contact", for_ms / 1000)
        }
        DebtReason::Removed => "the app was removed".into(),
        DebtReason::Failed { text } => text.clone(),
    })
}

/// Why a server takes no traffic.
#[must_use]
pub fn unfit(unfit: &Unfit) -> String {
    line(&match unfit {
        Unfit::Changing => "being changed".into(),
        Unfit::Failed { step } => format!("{} failed", step.name()),
        Unfit::Unhealthy { text } => text.clone(),
    })
}

/// Who paused a rollout, and why.
#[must_use]
pub fn paused(by: &PausedBy) -> String {
    line(&match by {
        PausedBy::Person { name, text } => with_text(format!("paused by {name}"), text),
        PausedBy::Verdict { group, reason: why } => {
            format!("paused by verdict of {group}: {}", reason(why))
        }
    })
}

/// One line of text that may come from another server or from a service: characters that would end
/// the line, control a terminal or change the writing direction become spaces.
pub(crate) fn line(text: &str) -> String {
    let turns = |c| {
        let (marks, overrides) = ('\u{200e}'..='\u{200f}', '\u{202a}'..='\u{202e}');
        marks.contains(&c) || overrides.contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c)
    };
    text.replace(|c: char| c.is_control() || turns(c), " ")
}

/// A fact with an operator's text, which may be empty.
pub(crate) fn with_text(fact: String, text: &str) -> String {
    if text.is_empty() { fact } else { format!("{fact}: {text}") }
}

/// Why a mirror, or what it offers, was refused.
#[must_use]
pub fn refused(refused: &Refused) -> String {
    let mut text = refused.why.to_string();
    if let Some(mirror) = &refused.mirror {
        text.push_str(&format!(" (from {mirror})"));
    }
    line(&with_text(text, &refused.causes))
}

/// Why a command was refused.
#[must_use]
pub fn rejection(rejection: &Rejection) -> String {
    match rejection {
        Rejection::OtherIncarnation { expected } => {
            format!("for another incarnation of the group (this is {expected})")
        }
        Rejection::Clock { clock } => format!("the group clock is at {clock} ms"),
        Rejection::OldPlan { generation } => {
            format!("planned against an old generation (this is {generation})")
        }
        Rejection::NoApp { app } => format!("this group has no app `{app}`"),
        Rejection::NoServer { server } => format!("this group has no server `{server}`"),
        Rejection::NotNow { state, why } => format!("not while `{state}`: {}", why_not(*why)),
        Rejection::Capacity { out, max } => {
            format!("{out} servers are out of service; the limit is {max}")
        }
        Rejection::Busy { server } => format!("`{server}` is busy"),
        Rejection::RunsElsewhere { server, host } => {
            format!("another machine runs as `{server}`: {host}")
        }
        Rejection::Limit { what, max } => {
            let what = match what {
                Limited::Servers => "servers",
                Limited::Apps => "apps",
                Limited::ServerApps => "servers times apps",
                Limited::ReportBytes => "bytes of text in a report",
                Limited::CommandBytes => "bytes in a command",
            };
            format!("more than {max} {what}")
        }
    }
}

fn why_not(why: WhyNot) -> &'static str {
    match why {
        WhyNot::NotEmpty => "only an empty group adopts what is installed",
        WhyNot::NotOnAllServers => "not every server runs that release",
        WhyNot::OtherPlatform => "the release is for another platform",
        WhyNot::PolicyChanged => "the policy has changed",
        WhyNot::ReleaseRejected => "this group rejected the release",
        WhyNot::ServerChanging => "a server is mid-change",
        WhyNot::BeingRemoved => "the app is being removed",
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
        WhyNot::NothingToRestart => "no release runs there that could be restarted",
        WhyNot::NotRunning => "a rollout is in progress; use `abort`",
        WhyNot::HeldInPlace => "the rollout was stopped in place; use `abort`",
        WhyNot::NoEarlierRelease => "no earlier release is known to be good",
        WhyNot::NotItsTurn => "the server is not in this wave, or the wave is downloading",
        WhyNot::NothingToGrant => "no wave or rollback is in progress",
        WhyNot::TooManyVoters => "too many of the group's voters are changing",
        WhyNot::NothingToWithdraw => "the server has begun its change, or has none",
        WhyNot::AlreadyLost => "the server is already lost",
    }
}
