use std::collections::BTreeMap;

use cohort_core::command::{Body, COMMAND_VERSION, Command as Entry};
use cohort_core::ids::{ClockMs, GroupId, Incarnation, Revision};
use cohort_core::machine::DiskSpace;
use cohort_core::phase::{Milestone, Phase, PhaseName};
use cohort_core::policy::Prestage;
use cohort_core::reason::{DebtReason, PausedBy, Reason};
use cohort_core::refused::{Refused, WhyRefused};
use cohort_core::release::Release;
use cohort_core::report::Step;
use cohort_core::state::{Debt, Pause, Process, State};
use cohort_core::waiting::WaitingOn;

use super::{hints, sentence};
use crate::command::Command;
use crate::hint::Hint;
use crate::sample::{app, server, version};

fn group() -> GroupId {
    GroupId::new("intel.zone-a").unwrap()
}

/// The wait after this one. A new kind does not compile until it is in this chain.
fn next(on: Option<&WaitingOn>) -> Option<WaitingOn> {
    let (version, server) = (|| version("1.1.0"), || server("web-1"));
    let refused = || Refused {
        why: WhyRefused::NoChannel { app: app(), channel: "stable".parse().unwrap() },
        mirror: None,
        causes: String::new(),
    };
    let failed = |step| Reason::ServerFailed { server: server(), step, text: "exit 3".into() };
    let reason = || DebtReason::Failed { text: "exit 3".into() };
    let by = || PausedBy::Person { name: "ann".into(), text: String::new() };
    let no_space = |disk| WaitingOn::NoSpace { leader: server(), disk };
    Some(match on {
        None => WaitingOn::NewRelease,
        Some(WaitingOn::NewRelease) => WaitingOn::KillSwitch { reason: "fire".into() },
        Some(WaitingOn::KillSwitch { .. }) => WaitingOn::RegistryAway,
        Some(WaitingOn::RegistryAway) => WaitingOn::RegistryRecord,
        Some(WaitingOn::RegistryRecord) => WaitingOn::PolicyLost { hub: None, group: Revision(3) },
        Some(WaitingOn::PolicyLost { .. }) => WaitingOn::NoRelease(refused()),
        Some(WaitingOn::NoRelease(_)) => WaitingOn::ReleaseRefused(refused()),
        Some(WaitingOn::ReleaseRefused(_)) => WaitingOn::NotRefreshed(refused()),
        Some(WaitingOn::NotRefreshed(_)) => WaitingOn::NoServers,
        Some(WaitingOn::NoServers) => WaitingOn::FirstReports { servers: vec![server()] },
        Some(WaitingOn::FirstReports { .. }) => WaitingOn::LeaderLeft { leader: server() },
        Some(WaitingOn::LeaderLeft { .. }) => no_space(DiskSpace::Exhausted),
        Some(WaitingOn::NoSpace { disk: DiskSpace::Exhausted, .. }) => {
            no_space(DiskSpace::ReadOnly)
        }
        Some(WaitingOn::NoSpace { .. }) => {
            WaitingOn::StageBefore { version: version(), groups: vec![group()] }
        }
        Some(WaitingOn::StageBefore { .. }) => WaitingOn::NoStage { version: version() },
        Some(WaitingOn::NoStage { .. }) => WaitingOn::VerdictElsewhere {
            version: version(),
            group: group(),
            reason: failed(Step::Check),
        },
        Some(WaitingOn::VerdictElsewhere { .. }) => {
            WaitingOn::Person { version: version(), reason: failed(Step::Check) }
        }
        Some(WaitingOn::Person {
            reason: Reason::ServerFailed { step: Step::Check, .. }, ..
        }) => WaitingOn::Person { version: version(), reason: failed(Step::Stop) },
        Some(WaitingOn::Person { reason: Reason::ServerFailed { .. }, .. }) => {
            WaitingOn::Person { version: version(), reason: Reason::Undone { by: "ann".into() } }
        }
        Some(WaitingOn::Person { .. }) => {
            WaitingOn::Paused { by: by(), left_ms: None, holds: None }
        }
        Some(WaitingOn::Paused { .. }) => WaitingOn::Approval { wave: 1 },
        Some(WaitingOn::Approval { .. }) => {
            WaitingOn::NewerRelease { version: version(), servers: vec![server()] }
        }
        Some(WaitingOn::NewerRelease { .. }) => {
            WaitingOn::RollbackFirst { version: version(), left_ms: 1 }
        }
        Some(WaitingOn::RollbackFirst { .. }) => {
            WaitingOn::RollbackStuck { servers: vec![server()] }
        }
        Some(WaitingOn::RollbackStuck { .. }) => WaitingOn::Download { servers: [server()].into() },
        Some(WaitingOn::Download { .. }) => {
            WaitingOn::NotDownloaded { version: version(), servers: vec![server()] }
        }
        Some(WaitingOn::NotDownloaded { .. }) => WaitingOn::Prestage {
            version: version(),
            prestage: Prestage::Wave,
            servers: vec![server()],
        },
        Some(WaitingOn::Prestage { .. }) => {
            WaitingOn::Steps { servers: vec![(server(), Step::Check)] }
        }
        Some(WaitingOn::Steps { .. }) => WaitingOn::Capacity { out: [server()].into(), max: 1 },
        Some(WaitingOn::Capacity { .. }) => {
            WaitingOn::QuorumMargin { voters: [server()].into(), max: 1 }
        }
        Some(WaitingOn::QuorumMargin { .. }) => WaitingOn::OtherApp { server: server() },
        Some(WaitingOn::OtherApp { .. }) => WaitingOn::BakeTime { left_ms: 1 },
        Some(WaitingOn::BakeTime { .. }) => {
            WaitingOn::ServerUnreachable { server: server(), for_ms: 1 }
        }
        Some(WaitingOn::ServerUnreachable { .. }) => {
            WaitingOn::ChecksFail { servers: vec![server()], text: "status 500".into() }
        }
        Some(WaitingOn::ChecksFail { .. }) => WaitingOn::ChecksFlap { servers: vec![server()] },
        Some(WaitingOn::ChecksFlap { .. }) => WaitingOn::ChecksTried { servers: [server()].into() },
        Some(WaitingOn::ChecksTried { .. }) => {
            WaitingOn::NotStopped { server: server(), reason: reason() }
        }
        Some(WaitingOn::NotStopped { .. }) => {
            WaitingOn::Debt { server: server(), reason: reason(), again_ms: None }
        }
        Some(WaitingOn::Debt { .. }) => return None,
    })
}

fn apply(state: &mut State, body: Body) -> Result<(), String> {
    let (version, incarnation, actor) = (COMMAND_VERSION, Incarnation(1), "ann".to_owned());
    let entry = Entry { version, incarnation, actor, request: None, body };
    state.apply(&entry).map(|_| ()).map_err(|rejection| format!("{rejection:?}"))
}

fn policy(revision: u64) -> Body {
    let text = "app = \"web\"\nchannel = \"stable\"\n[update]\napprove_after_wave = 1\n";
    Body::SetPolicy {
        policy: toml::from_str(text).unwrap(),
        revision: Revision(revision),
        proof: Default::default(),
    }
}

/// A group in this phase, in which every wait could be.
fn state_in(phase: PhaseName) -> State {
    let mut state = State::new(group(), Incarnation(1));
    let platform: cohort_core::ids::Platform = "intel".parse().unwrap();
    let release = Release {
        version: version("1.1.0"),
        platform: platform.clone(),
        artifact: "1".repeat(64).parse().unwrap(),
        manifest: "0".repeat(64).parse().unwrap(),
        length: 1,
        unpacked_bytes: 64 << 30,
        entries: 250_000,
        rollback: cohort_core::release::Rollback::Revert,
    };
    let (address, lead) = ("10.0.0.1:7417".to_owned(), server("web-1"));
    let add = |server| {
        let (address, process) = (address.clone(), Process::default());
        Body::AddServer { server, address, rack: None, process }
    };
    for body in [
        Body::SetUp { labels: BTreeMap::new(), platform },
        add(server("web-1")),
        add(server("web-2")),
        policy(1),
        Body::StartRollout { app: app(), release: release.clone(), revision: Revision(1), lead },
    ] {
        apply(&mut state, body).unwrap();
    }
    let web = state.apps.get_mut(&app()).unwrap();
    let rollout = Box::new(web.phase.rollout().unwrap().clone());
    let by = PausedBy::Person { name: "ann".into(), text: String::new() };
    let since = ClockMs(0);
    web.pause = Some(Pause { by, since, until: None });
    for here in web.servers.values_mut() {
        let reason = DebtReason::Failed { text: "exit 3".into() };
        here.debt = Some(Debt { since, reason, tries: 1 });
    }
    let reason = Reason::NoServerLeft;
    web.phase = match phase {
        PhaseName::Empty => Phase::Empty,
        PhaseName::Running => Phase::Running { since },
        PhaseName::Forward(_) => {
            Phase::Forward { rollout, at: Milestone::MarkedOld { recorded: true } }
        }
        PhaseName::RollingBack => Phase::RollingBack { rollout, reason, by_person: false, since },
        PhaseName::Held => Phase::Held { rejected: release, reason, since, in_place: None },
        PhaseName::Removing => Phase::Removing { since, stopped: false },
    };
    state
}

#[test]
fn no_hint_is_refused_in_any_phase() {
    let (mut tried, mut kinds) = (0, 0);
    let mut on = next(None);
    while let Some(this) = on {
        kinds += 1;
        for phase in PhaseName::ALL {
            for hint in hints(&this, &group(), &app(), phase) {
                let Hint::Run(_, command) = &hint else { continue };
                let body = match command {
                    Command::AppApply => policy(2),
                    Command::RolloutApprove { app, .. } => Body::Approve { app: app.clone() },
                    Command::RolloutResume { app, .. } => Body::Resume { app: app.clone() },
                    Command::RolloutRetry { app, .. } => Body::Retry { app: app.clone() },
                    Command::GroupRemoveServer { server, .. } => {
                        Body::RemoveServer { server: server.clone() }
                    }
                    Command::ChannelSet { .. } | Command::Publish { .. } => {
                        assert_ne!(phase, PhaseName::Removing, "{this:?}: {hint}");
                        continue;
                    }
                    // These do not depend on the phase.
                    Command::Agent { .. }
                    | Command::AppShow { .. }
                    | Command::GroupShow { .. }
                    | Command::KillStatus
                    | Command::Why { .. } => continue,
                    other => panic!("is `{other}` refused in some phase?"),
                };
                let refused = apply(&mut state_in(phase), body).err();
                assert_eq!(refused, None, "{phase}, {this:?}: {hint}");
                tried += 1;
            }
        }
        on = next(Some(&this));
    }
    assert!(kinds > 35 && tried > 100, "{kinds} kinds, {tried} commands");
}

#[test]
fn a_leader_that_cannot_write_is_told_what_its_disk_needs() {
    let offered = |disk| {
        let on = WaitingOn::NoSpace { leader: server("web-1"), disk };
        let hints = hints(&on, &group(), &app(), PhaseName::Running);
        assert!(sentence(&on).contains("web-1"));
        hints[0].to_string()
    };
    assert!(offered(DiskSpace::Exhausted).contains("free space on web-1"));
    assert!(offered(DiskSpace::ReadOnly).contains("remount"));
}

#[test]
fn what_may_never_end_says_what_to_do() {
    for on in [
        WaitingOn::FirstReports { servers: vec![server("web-1")] },
        WaitingOn::LeaderLeft { leader: server("web-1") },
    ] {
        assert!(!hints(&on, &group(), &app(), PhaseName::Empty).is_empty(), "{on:?}");
    }
}

#[test]
fn what_waits_for_room_while_its_app_is_removed_still_says_what_to_do() {
    let on = WaitingOn::Capacity { out: [server("web-1")].into(), max: 1 };
    let offered = hints(&on, &group(), &app(), PhaseName::Removing);
    assert!(matches!(&offered[..], [Hint::Do(_)]), "{offered:?}");
}
