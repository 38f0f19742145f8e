//! Everything on the disk of a server, and every kind of log entry: there is an example of each in
//! `golden/`.

mod common;

use std::path::Path;

use cohort_base::golden::hold;
use cohort_core::command::{Body, Command, Planned};
use cohort_core::ids::{BootEpoch, ClockMs, Generation, GroupId, Incarnation, MemberId, Revision};
use cohort_core::orders::{ActivationOrder, Fence, Purpose};
use cohort_core::policy::Duration;
use cohort_core::reason::Reason;
use cohort_core::report::{Blame, Outcome, Report, Step};
use cohort_core::state::Process;
use cohort_core::steps::{AppRecord, BootTime, Failure};
use common::{app, command, platform, policy, release, server};

fn record(step: Step) -> AppRecord {
    let now = BootTime { boot: "b1", ms: 1_000 };
    let order = ActivationOrder {
        fence: Fence { incarnation: Incarnation(1), generation: Generation(2) },
        release: Some(release(2)),
        undo_to: Some(release(1)),
        purpose: Purpose::Wave,
        avoid: Vec::new(),
        drain_ms: 1,
        min_healthy_ms: 2,
        healthy_deadline_ms: 3,
        confirm_within_ms: 4,
        warm_up_ms: 5,
        stop_despite_hooks: true,
        checks: Vec::new(),
        hold: None,
    };
    let mut record = AppRecord::default();
    record.local.current = Some(release(1));
    record.accept(order, Step::Prepare, |_| true, now);
    record.begin(step, 2, now);
    record
}

#[test]
fn records_of_apps_are_read_by_every_later_version() {
    let begun = record(Step::Drain);
    let mut done = record(Step::Switch);
    done.done(Step::Switch, 2);
    let mut failed = record(Step::Check);
    let (reason, output) = ("status 500".to_owned(), "panic".to_owned());
    failed.fail(Step::Check, 2, Failure { blame: Blame::Release, reason, output });
    let mut undone = record(Step::Undo);
    undone.undone("not reached".to_owned());
    let mut complete = record(Step::WarmUp);
    complete.complete();
    let mut given_back = record(Step::Prepare);
    let order = given_back.local.activation.clone().expect("accepted").order;
    given_back.give_back(order, |_| true);
    let records = [AppRecord::default(), begun, done, failed, undone, given_back, complete];
    hold(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/app-record.jsonl"), &records);
}

fn bodies() -> Vec<Body> {
    let labels = [("zone".to_owned(), "zone-a".to_owned())].into();
    let (address, rack) = ("10.0.0.1:7417".to_owned(), Some("rack-1".to_owned()));
    let process = Process { life: 7, host: "10.0.0.1".to_owned() };
    let moved = (address.clone(), process.clone());
    let reason = || "a bad night".to_owned();
    let plain = [
        Body::SetUp { labels, platform: platform() },
        Body::AdvanceClock { to: ClockMs(2_000) },
        Body::AddServer { server: server(1), address, rack, process },
        Body::MoveServer { server: server(1), address: moved.0, process: moved.1 },
        Body::RemoveServer { server: server(1) },
        Body::AllocateMember { server: server(1) },
        Body::RetireMember { server: server(1), member: MemberId(2) },
        Body::PlaceMember { server: server(1), carries: true },
        Body::RaiseFeatureLevel { level: 2 },
        Body::SetPolicy { policy: policy(1, 0), revision: Revision(3), proof: Default::default() },
        Body::RemoveApp { app: app(), revision: Revision(4), proof: Default::default() },
        Body::Adopt { app: app(), release: release(1) },
        Body::StartRollout {
            app: app(),
            release: release(1),
            revision: Revision(3),
            lead: server(1),
        },
        Body::RecordWritten { app: app(), record: 4 },
        Body::VerdictWritten { app: app(), version: release(1).version, good: true },
        Body::Pause { app: app(), reason: reason(), for_ms: None },
        Body::Resume { app: app() },
        Body::Approve { app: app() },
        Body::Abort { app: app(), reason: reason() },
        Body::Retry { app: app() },
        Body::Undo { app: app(), lead: server(1) },
        Body::Restart { app: app(), servers: [server(1)].into() },
        Body::Pause { app: app(), reason: String::new(), for_ms: Some(60_000) },
    ];
    let planned = planned().into_iter();
    let planned = planned.map(|step| Body::Plan { app: app(), generation: Generation(5), step });
    let reports = (1..).zip(outcomes()).map(|(sequence, outcome)| {
        let fence = Fence { incarnation: Incarnation(1), generation: Generation(5) };
        let (server, boot_epoch) = (server(1), BootEpoch(2));
        let report =
            Report { server, boot_epoch, sequence, app: app(), fence, attempt: 1, outcome };
        Body::Report { report }
    });
    plain.into_iter().chain(planned).chain(reports).collect()
}

fn planned() -> Vec<Planned> {
    let mut steps = vec![
        Planned::TakeLead { lead: server(1) },
        Planned::LeaderHolds { server: server(1) },
        Planned::Verify { server: server(1) },
        Planned::StartWave { number: 2, servers: [server(1), server(2)].into() },
        Planned::WidenWave { server: server(3) },
        Planned::Withdraw { server: server(1) },
        Planned::LoseServer { server: server(1), silent_ms: 60_000 },
        Planned::LeaveOut { server: server(1) },
        Planned::FindServer { server: server(1) },
        Planned::TakeChecks { revision: Revision(4), servers: [server(1)].into() },
        Planned::EndPause {},
        Planned::PauseForVerdict {
            group: GroupId::new("amd.zone-a").expect("a name"),
            reason: Reason::ServersLost { servers: vec![server(2)] },
        },
    ];
    let purposes = [Purpose::Wave, Purpose::RollBack, Purpose::Debt];
    steps.extend(purposes.map(|purpose| {
        let voters = [server(1), server(2)].into();
        Planned::Grant { server: server(1), purpose, voters }
    }));
    steps.extend(reasons().map(|reason| Planned::Fail { reason }));
    steps
}

fn reasons() -> [Reason; 8] {
    let (by, text) = ("ann".to_owned(), "http: status 500".to_owned());
    [
        Reason::ServerFailed { server: server(1), step: Step::Check, text: text.clone() },
        Reason::ServersLost { servers: vec![server(2)] },
        Reason::NotDownloaded {
            within: Duration::from_secs(60),
            servers: vec![server(1)],
            lost: vec![server(2)],
        },
        Reason::NoServerLeft,
        Reason::NoProgress { wave: 2, within: Duration::from_secs(60), servers: vec![server(1)] },
        Reason::Aborted { by: by.clone(), text },
        Reason::Undone { by },
        Reason::Superseded { version: release(2).version },
    ]
}

fn outcomes() -> [Outcome; 12] {
    let (reason, output) = (|| "http: status 500".to_owned(), "panic".to_owned());
    [
        Outcome::Found { release: Some(release(1)), in_service: true },
        Outcome::Holds { artifact: release(1).artifact },
        Outcome::Lacks { artifact: release(1).artifact },
        Outcome::Applied,
        Outcome::Checked,
        Outcome::InService,
        Outcome::Failed {
            blame: Blame::Surroundings,
            step: Step::Prepare,
            reason: reason(),
            output,
        },
        Outcome::GivenBack,
        Outcome::HookIgnored { reason: reason() },
        Outcome::Undone { release: None, reason: reason() },
        Outcome::Health { in_service: false, reason: reason() },
        Outcome::Tried { revision: Revision(4), failed: Some(reason()) },
    ]
}

/// Whether there is an example of its kind above. Without wildcards: a new kind of entry, step,
/// purpose, reason or outcome does not compile until it is handled here.
fn has_an_example(body: &Body) -> bool {
    match body {
        Body::SetUp { .. }
        | Body::AdvanceClock { .. }
        | Body::AddServer { .. }
        | Body::MoveServer { .. }
        | Body::RemoveServer { .. }
        | Body::AllocateMember { .. }
        | Body::RetireMember { .. }
        | Body::PlaceMember { .. }
        | Body::RaiseFeatureLevel { .. }
        | Body::SetPolicy { .. }
        | Body::RemoveApp { .. }
        | Body::Adopt { .. }
        | Body::StartRollout { .. }
        | Body::RecordWritten { .. }
        | Body::VerdictWritten { .. }
        | Body::Pause { .. }
        | Body::Resume { .. }
        | Body::Approve { .. }
        | Body::Abort { .. }
        | Body::Retry { .. }
        | Body::Undo { .. }
        | Body::Restart { .. } => true,
        Body::Plan { step, .. } => match step {
            Planned::TakeLead { .. }
            | Planned::LeaderHolds { .. }
            | Planned::Verify { .. }
            | Planned::StartWave { .. }
            | Planned::WidenWave { .. }
            | Planned::Withdraw { .. }
            | Planned::LoseServer { .. }
            | Planned::LeaveOut { .. }
            | Planned::FindServer { .. }
            | Planned::TakeChecks { .. }
            | Planned::PauseForVerdict { .. }
            | Planned::EndPause {} => true,
            Planned::Grant { purpose, .. } => match purpose {
                Purpose::Wave | Purpose::RollBack | Purpose::Debt => true,
            },
            Planned::Fail { reason } => match reason {
                Reason::ServerFailed { .. }
                | Reason::ServersLost { .. }
                | Reason::NotDownloaded { .. }
                | Reason::NoServerLeft
                | Reason::NoProgress { .. }
                | Reason::Aborted { .. }
                | Reason::Undone { .. }
                | Reason::Superseded { .. } => true,
            },
        },
        Body::Report { report } => match report.outcome {
            Outcome::Found { .. }
            | Outcome::Holds { .. }
            | Outcome::Lacks { .. }
            | Outcome::Applied
            | Outcome::Checked
            | Outcome::InService
            | Outcome::Failed { .. }
            | Outcome::GivenBack
            | Outcome::HookIgnored { .. }
            | Outcome::Undone { .. }
            | Outcome::Health { .. }
            | Outcome::Tried { .. } => true,
        },
    }
}

#[test]
fn every_kind_of_entry_is_read_by_every_later_version() {
    let bodies = bodies();
    assert!(bodies.iter().all(has_an_example));
    let entries: Vec<Command> =
        (0..).zip(bodies).map(|(n, body)| command((n > 0).then_some(n), body)).collect();
    hold(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/entries.jsonl"), &entries);
}
