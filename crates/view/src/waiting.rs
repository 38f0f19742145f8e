//! What something is waiting for: the sentence, the hints, and the servers concerned.

use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_core::machine::DiskSpace;
use cohort_core::phase::PhaseName;
use cohort_core::policy::Prestage;
use cohort_core::reason::Reason;
use cohort_core::refused::WhyRefused;
use cohort_core::report::Step;
use cohort_core::waiting::{Placing, WaitingOn};
use cohort_wire::agent::WaitingStatus;

use crate::command::Command;
use crate::figures::{brief, names};
use crate::hint::Hint;
use crate::words;

/// Servers or groups that one sentence names.
const NAMED_MAX: usize = 5;

/// What it is waiting for, in one sentence.
#[must_use]
#[expect(clippy::too_many_lines, reason = "an arm for each thing that is waited for")]
pub fn sentence(on: &WaitingOn) -> String {
    match on {
        WaitingOn::NewRelease => "up to date with its channel".into(),
        WaitingOn::KillSwitch { reason } => words::with_text("kill switch is on".into(), reason),
        WaitingOn::RegistryAway => "hub unreachable: no new rollout starts".into(),
        WaitingOn::RegistryRecord => "the hub has not acknowledged this group's record yet".into(),
        WaitingOn::PolicyLost { hub: None, .. } => {
            "the hub has lost its policy: the group keeps the one that it has".into()
        }
        WaitingOn::PolicyLost { hub: Some(hub), group } => format!(
            "the hub has an older policy (revision {hub}) than the group (revision {group})"
        ),
        WaitingOn::NoRelease(refused) => {
            format!("no usable release: {}", words::refused(refused))
        }
        WaitingOn::ReleaseRefused(refused) => {
            format!("release refused: {}", words::refused(refused))
        }
        WaitingOn::NotRefreshed(refused) => {
            format!("cannot look for newer releases: {}", words::refused(refused))
        }
        WaitingOn::NoServers => "no server has joined".into(),
        WaitingOn::FirstReports { servers } => {
            format!("waiting for the first report of {}", list(servers))
        }
        WaitingOn::NoSpace { leader, disk: DiskSpace::ReadOnly } => {
            format!("the disk of {leader}, the leader, is read-only")
        }
        WaitingOn::NoSpace { leader, .. } => {
            format!("no space left on the disk of {leader}, the leader")
        }
        WaitingOn::LeaderLeft { leader } => {
            format!("{leader} has left the group, but leads until a reachable member takes over")
        }
        WaitingOn::StageBefore { version, groups } => {
            format!("{version} waits for the verdict of {}", list(groups))
        }
        WaitingOn::NoStage { version } => {
            format!("{version} will not start: no [[stage]] of the policy matches this group")
        }
        WaitingOn::VerdictElsewhere { version, group, reason } => {
            let reason = words::reason(reason);
            format!("{version} will not start: {group} found it bad: {reason}")
        }
        WaitingOn::Person { version, reason } => {
            format!("{version} is held: {}", words::reason(reason))
        }
        WaitingOn::Paused { by, left_ms, .. } => {
            let left = left_ms.map(|ms| format!(" (for another {})", left(ms)));
            format!("{}{}", words::paused(by), left.unwrap_or_default())
        }
        WaitingOn::Approval { wave } => format!("wave {wave} is done and needs approval"),
        WaitingOn::NewerRelease { version, servers } => {
            format!("{version} takes over once the current step ends on {}", list(servers))
        }
        WaitingOn::RollbackFirst { version, left_ms } => {
            let left = left(*left_ms);
            format!("{version} starts after the rollback, or in {left} if that makes no progress")
        }
        WaitingOn::RollbackStuck { servers } => {
            format!("the rollback makes no progress on {}", list(servers))
        }
        WaitingOn::Download { servers } => format!("downloading to {}", list(servers)),
        WaitingOn::NotDownloaded { version, servers } => {
            format!("continues without {}: {version} is not downloaded there", list(servers))
        }
        WaitingOn::Prestage { version, prestage, servers } => {
            let when = match prestage {
                Prestage::NextWave => "the wave before theirs",
                Prestage::All | Prestage::Wave => "their wave",
            };
            let (servers, policy) = (list(servers), prestage.as_str());
            format!(
                "{servers} will download {version} once {when} starts (prestage = \"{policy}\")"
            )
        }
        WaitingOn::Steps { servers } => {
            list(servers.iter().map(|(server, step)| format!("{server}: {}", step.name())))
        }
        WaitingOn::Capacity { out, max } => {
            format!("at the limit of {max} out of service: {}", list(out))
        }
        WaitingOn::QuorumMargin { voters, max } => {
            format!("at most {max} of the group's voters change at once: {}", list(voters))
        }
        WaitingOn::OtherApp { server } => format!("another app is being changed on {server}"),
        WaitingOn::BakeTime { left_ms } => {
            format!("baking, {} left", left(*left_ms))
        }
        WaitingOn::ServerUnreachable { server, for_ms } => {
            format!("{server} has been unreachable for {}", brief(*for_ms))
        }
        WaitingOn::ChecksFail { servers, text } => {
            let text = words::line(text);
            format!("changed checks do not pass and are not used on {}: {text}", list(servers))
        }
        WaitingOn::ChecksFlap { servers } => {
            format!("changed checks pass and then fail on {}: not used", list(servers))
        }
        WaitingOn::ChecksTried { servers } => {
            format!("changed checks are not used yet on {}", list(servers))
        }
        WaitingOn::NotStopped { server, reason } => {
            format!("{server} has not stopped it: {}", words::debt(reason))
        }
        WaitingOn::Debt { server, reason, again_ms } => {
            let again = again_ms.map(|ms| format!(" (again in {})", left(ms)));
            let reason = words::debt(reason);
            format!(
                "{server} is to start the last good release again: {reason}{}",
                again.unwrap_or_default()
            )
        }
    }
}

/// What the next change of the voters is waiting for, in one sentence.
#[must_use]
pub fn placing_sentence(on: &Placing) -> String {
    match on {
        Placing::Joint => {
            "voters are changing: waiting for a majority of the old and of the new ones".into()
        }
        Placing::CatchingUp { servers } => {
            format!("voters are changing: waiting for {} to catch up with the log", list(servers))
        }
        Placing::Majority { heard, voters } => {
            format!("voters cannot change: only {heard} of the {voters} next ones respond")
        }
        Placing::Replacement { silent } => {
            format!("silent, and no other server can vote instead: {}", list(silent))
        }
    }
}

/// What an operator can do about it; empty if it resolves automatically.
#[must_use]
pub fn placing_hints(on: &Placing, group: &GroupId) -> Vec<Hint> {
    match on {
        Placing::Joint | Placing::Majority { .. } => {
            vec!["check that the agents of the silent voters run, and their network".into()]
        }
        Placing::CatchingUp { servers } => check_log(servers.first()),
        Placing::Replacement { silent } => {
            let start = silent.first().map(|one| Hint::Do(format!("start the agent on {one}")));
            let join = Hint::Do(format!("or let another server join {group}"));
            start.into_iter().chain([join]).collect()
        }
    }
}

/// What an operator can do about it while the app is in this phase; empty if it resolves
/// automatically. A command that would be refused is not offered.
#[must_use]
pub fn hints(on: &WaitingOn, group: &GroupId, app: &AppId, phase: PhaseName) -> Vec<Hint> {
    let mut hints = all_hints(on, group, app);
    hints.retain(|hint| match hint {
        Hint::Run(_, command) => is_taken(command, phase),
        Hint::Add(..) | Hint::Meant(_) | Hint::Do(_) => true,
    });
    hints
}

/// Whether an app in this phase takes a command, as far as that depends on the phase.
fn is_taken(command: &Command, phase: PhaseName) -> bool {
    match command {
        // An app is added again once it is gone.
        Command::AppApply | Command::ChannelSet { .. } | Command::Publish { .. } => {
            phase != PhaseName::Removing
        }
        Command::RolloutApprove { .. } => matches!(phase, PhaseName::Forward(_)),
        Command::RolloutResume { .. } => phase != PhaseName::Removing,
        _ => true,
    }
}

fn all_hints(on: &WaitingOn, group: &GroupId, app: &AppId) -> Vec<Hint> {
    let retry = || Command::RolloutRetry { group: group.clone(), app: app.clone() };
    let mend = || Hint::run_to("mend the checks of the policy", Command::AppApply);
    let remove = |when: &str, server: &ServerId| {
        let (group, server) = (group.clone(), server.clone());
        Hint::run_to(when, Command::GroupRemoveServer { group, server })
    };
    match on {
        WaitingOn::RegistryRecord
        | WaitingOn::NewerRelease { .. }
        | WaitingOn::RollbackFirst { .. }
        | WaitingOn::Download { .. }
        | WaitingOn::Steps { .. }
        | WaitingOn::OtherApp { .. }
        | WaitingOn::QuorumMargin { .. }
        | WaitingOn::ChecksTried { .. }
        | WaitingOn::BakeTime { .. } => Vec::new(),
        WaitingOn::NewRelease => {
            vec![Command::Publish { app: Some(app.clone()), channel: None }.into()]
        }
        WaitingOn::KillSwitch { .. } => vec![Command::KillStatus.into()],
        WaitingOn::RegistryAway => vec!["start the hub; the group then continues".into()],
        WaitingOn::PolicyLost { .. } => {
            let show = Command::AppShow { app: app.clone(), group: group.clone() };
            vec![
                "sign it again: cohort app apply --again -f FILE".into(),
                Hint::run_to("if the file is lost, the group has it", show),
            ]
        }
        WaitingOn::NoRelease(refused)
        | WaitingOn::ReleaseRefused(refused)
        | WaitingOn::NotRefreshed(refused) => {
            vec![refused_hint(&refused.why, app)]
        }
        WaitingOn::NoServers => {
            let command = Command::Agent { hub: None };
            vec![Hint::run_to("on a server of the group", command)]
        }
        // Those that are silent are not waited for.
        WaitingOn::FirstReports { servers } => check_log(servers.first()),
        WaitingOn::LeaderLeft { .. } => {
            let show = Command::GroupShow { group: group.clone() };
            vec![
                Hint::run_to("check that the agents of its voters run and reach each other", show),
                format!("or let another server join {group}").into(),
            ]
        }
        WaitingOn::NoSpace { leader, disk } => {
            let mend = mend_disk(leader, *disk);
            vec![format!("{mend}, or: cohort group transfer-leader {group}").into()]
        }
        WaitingOn::StageBefore { groups, .. } => {
            let of = |group: &GroupId| Command::Why { group: Some(group.clone()) }.into();
            groups.first().map(of).into_iter().collect()
        }
        WaitingOn::NoStage { .. } => {
            vec![Hint::run_to("add a [[stage]] to the policy", Command::AppApply)]
        }
        WaitingOn::VerdictElsewhere { .. } => {
            let publish = Command::Publish { app: Some(app.clone()), channel: None };
            vec![Hint::run_to("publish a fix", publish)]
        }
        WaitingOn::Person { reason, .. } => held_hints(reason, group, app),
        WaitingOn::Paused { .. } => {
            vec![Command::RolloutResume { group: group.clone(), app: app.clone() }.into()]
        }
        WaitingOn::Approval { .. } => {
            vec![Command::RolloutApprove { group: group.clone(), app: app.clone() }.into()]
        }
        WaitingOn::Capacity { .. } => {
            let raise = Hint::run_to("or raise max_unavailable", Command::AppApply);
            vec!["wait until one is back in service".into(), raise]
        }
        WaitingOn::ServerUnreachable { server, .. } => {
            let start = format!("start the agent on {server}");
            vec![start.into(), remove("if it is lost permanently", server)]
        }
        WaitingOn::RollbackStuck { servers } => {
            let publish = Command::Publish { app: Some(app.clone()), channel: None };
            let lost = "or, if that server is lost permanently";
            let fix = Hint::run_to("publish a fix: it takes over", publish);
            [fix].into_iter().chain(servers.first().map(|server| remove(lost, server))).collect()
        }
        WaitingOn::NotStopped { server, .. } => {
            let look = format!("check {app} and the agent's log on {server}");
            vec![look.into(), Hint::run_to("then", retry())]
        }
        WaitingOn::Debt { again_ms: Some(_), .. } => vec!["mend the cause; or wait".into()],
        WaitingOn::Debt { again_ms: None, .. } => {
            vec![Hint::run_to("once the cause is mended", retry())]
        }
        WaitingOn::ChecksFail { .. } => vec![mend()],
        WaitingOn::ChecksFlap { .. } => vec![Hint::run_to("try again", retry()), mend()],
        WaitingOn::NotDownloaded { servers, .. } => {
            let server = &servers[0];
            vec![inspect_download(server), remove("if it is lost permanently", server)]
        }
        WaitingOn::Prestage { .. } => {
            vec!["wait, or set update.prestage to \"all\"".into()]
        }
    }
}

/// What an operator can do about a release that was rejected.
fn held_hints(reason: &Reason, group: &GroupId, app: &AppId) -> Vec<Hint> {
    let retry = Command::RolloutRetry { group: group.clone(), app: app.clone() };
    match reason {
        Reason::Undone { .. } => {
            let (app, channel, version) = (Some(app.clone()), None, None);
            let stay = Command::ChannelSet { app, channel, version, create: false };
            vec![
                Hint::run_to("to stay on the release that runs", stay),
                "or publish a fix".into(),
                Hint::run_to("or take the undo back", retry),
            ]
        }
        // It stopped before the release ran.
        Reason::ServerFailed { step, .. } if (Step::Drain..=Step::Stop).contains(step) => {
            let despite = "if a hook of the running release fails, set update.stop_despite_hooks";
            vec![Hint::run_to(despite, Command::AppApply), Hint::run_to("then", retry)]
        }
        _ => vec!["publish a fix".into(), Hint::run_to("or", retry)],
    }
}

/// What an operator can do about a disk that cannot be written.
pub(crate) fn mend_disk(server: &ServerId, disk: DiskSpace) -> String {
    match disk {
        DiskSpace::ReadOnly => format!("check the disk of {server}, and remount it writable"),
        DiskSpace::Enough | DiskSpace::Low | DiskSpace::Exhausted => {
            format!("free space on {server}")
        }
    }
}

/// Where an operator finds why a server does not do what takes only seconds.
fn check_log(server: Option<&ServerId>) -> Vec<Hint> {
    let check = |server| Hint::Do(format!("if it takes long, check the agent's log on {server}"));
    server.map(check).into_iter().collect()
}

/// What an operator can look at if a download fails on this server.
pub(crate) fn inspect_download(server: &ServerId) -> Hint {
    format!("check the network, the disk and the agent's log on {server}").into()
}

/// What an operator can do about a refusal.
fn refused_hint(why: &WhyRefused, app: &AppId) -> Hint {
    match why {
        WhyRefused::NoChannel { app, .. } => {
            let app = Some(app.clone());
            Command::ChannelSet { app, channel: None, version: None, create: true }.into()
        }
        WhyRefused::NotRead => {
            "it is read within poll_interval; if this lasts, check the mirrors".into()
        }
        WhyRefused::NotPublished { .. } | WhyRefused::NoFile { .. } => {
            Command::Publish { app: Some(app.clone()), channel: None }.into()
        }
        WhyRefused::Expired { .. } => {
            "the hub renews signatures daily: start it, update the mirror, or set this server's \
             clock"
                .into()
        }
        WhyRefused::Frozen { .. } => {
            "the hub signs daily: check that it runs, and that the mirrors copy it".into()
        }
        WhyRefused::ClockWentBack { .. } => "set the clock of the group's leader".into(),
        WhyRefused::Unreachable { .. } => "start the mirrors, or check their addresses".into(),
        WhyRefused::NoMirror => "set mirrors in the agent's configuration".into(),
        WhyRefused::Store { .. } => "see the log of the leader".into(),
        WhyRefused::StoreDamaged { .. } => {
            "remove it: the server then forgets which metadata it saw".into()
        }
        WhyRefused::StoreOfVersion { .. } => {
            "run the version of Cohort that wrote it; without that file, the server would forget \
             which metadata it saw"
                .into()
        }
        WhyRefused::BadRoot => "give the server the fleet's root again".into(),
        WhyRefused::Older { .. } => {
            "check the mirrors; a hub restored from a backup has an older repository: publish \
             again what is newer"
                .into()
        }
        WhyRefused::WrongSignature { .. }
        | WhyRefused::Mixed { .. }
        | WhyRefused::TooLarge { .. }
        | WhyRefused::Malformed { .. }
        | WhyRefused::WrongBytes { .. }
        | WhyRefused::WrongContent { .. } => {
            "check the mirrors, and that it was signed with this fleet's keys".into()
        }
    }
}

/// Whether a wait is about this server.
#[must_use]
pub fn concerns(on: &WaitingOn, server: &ServerId) -> bool {
    match on {
        WaitingOn::FirstReports { servers }
        | WaitingOn::ChecksFail { servers, .. }
        | WaitingOn::ChecksFlap { servers }
        | WaitingOn::NewerRelease { servers, .. }
        | WaitingOn::RollbackStuck { servers }
        | WaitingOn::NotDownloaded { servers, .. }
        | WaitingOn::Prestage { servers, .. } => servers.contains(server),
        WaitingOn::Download { servers }
        | WaitingOn::ChecksTried { servers }
        | WaitingOn::QuorumMargin { voters: servers, .. }
        | WaitingOn::Capacity { out: servers, .. } => servers.contains(server),
        WaitingOn::Steps { servers } => servers.iter().any(|(one, _)| one == server),
        WaitingOn::OtherApp { server: one }
        | WaitingOn::LeaderLeft { leader: one }
        | WaitingOn::NoSpace { leader: one, .. }
        | WaitingOn::ServerUnreachable { server: one, .. }
        | WaitingOn::NotStopped { server: one, .. }
        | WaitingOn::Debt { server: one, .. } => one == server,
        WaitingOn::NewRelease
        | WaitingOn::KillSwitch { .. }
        | WaitingOn::RegistryAway
        | WaitingOn::RegistryRecord
        | WaitingOn::PolicyLost { .. }
        | WaitingOn::NoRelease(_)
        | WaitingOn::ReleaseRefused(_)
        | WaitingOn::NotRefreshed(_)
        | WaitingOn::NoServers
        | WaitingOn::RollbackFirst { .. }
        | WaitingOn::StageBefore { .. }
        | WaitingOn::NoStage { .. }
        | WaitingOn::VerdictElsewhere { .. }
        | WaitingOn::Person { .. }
        | WaitingOn::Paused { .. }
        | WaitingOn::Approval { .. }
        | WaitingOn::BakeTime { .. } => false,
    }
}

/// How long the mirrors or the hub may be unreachable before a group that is otherwise healthy is
/// not, in milliseconds. 5 min: a restart of either passes, and an outage that keeps releases and
/// policies away is found while somebody may still be waiting for one.
pub(crate) const AWAY_TOLERATED_MS: u64 = 5 * 60 * 1_000;

/// Whether nothing keeps the group from the release that its channel names, as far as known while
/// the mirrors have been unreachable for a short time.
pub(crate) fn is_healthy(waiting: &WaitingStatus) -> bool {
    match &waiting.on {
        WaitingOn::NewRelease | WaitingOn::Paused { holds: None, .. } => true,
        WaitingOn::NotRefreshed(refused) => {
            refused.why.is_unreachable() && waiting.for_ms < AWAY_TOLERATED_MS
        }
        _ => false,
    }
}

/// A time that is left, never told as less; whatever a server says of it.
fn left(ms: u64) -> String {
    brief(ms.saturating_add(999) / 1000 * 1000)
}

/// The first few names, and the number of others.
fn list<N: ToString>(all: impl IntoIterator<Item = N>) -> String {
    let all: Vec<N> = all.into_iter().collect();
    names(all.iter().take(NAMED_MAX).map(ToString::to_string), all.len() as u64)
}

#[cfg(test)]
#[path = "waiting_test.rs"]
mod waiting_test;
