//! Whole activations with real processes: what runs, what is recorded, what is reported.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use cohort_core::orders::{ActivationOrder, Purpose};
use cohort_core::policy::Check;
use cohort_core::report::{Blame, Outcome, Step};
use cohort_core::steps::{
    ATTEMPTS_MAX, Progress, Reached, StepAction, StepWait, Told, next_action,
};
use tokio_util::sync::CancellationToken;

use crate::app_host::Acted;
use crate::hooks::Hook;
use crate::service::ServiceControl as _;
use crate::testing::{SLEEP, TestServer, order, put, settle, tar_of, until};
use crate::traffic::Traffic;

#[path = "declared_test.rs"]
mod declared_test;

/// How the last activation failed.
/// The step that failed, who is to blame, and the output.
fn failure(host: &crate::AppHost) -> (Step, Blame, String) {
    match &host.local().activation.as_ref().unwrap().progress {
        Progress::Failed { step, blame, output, .. } => (*step, *blame, output.clone()),
        progress => panic!("it did not fail: {progress:?}"),
    }
}

#[tokio::test]
async fn from_nothing_to_a_release_to_the_next_to_nothing() {
    let server = TestServer::start().await;
    let note = server.folder.path().join("hooks-ran");
    let script = format!(
        "echo \"$(basename $0) $COHORT_VERSION $COHORT_PREVIOUS_VERSION $COHORT_FENCE \
         $COHORT_ATTEMPT $COHORT_STEP $(basename $COHORT_RELEASE_DIR | cut -d- -f1) \
         $COHORT_AVOID\" >> {}",
        note.display()
    );
    let hooks: Vec<(&str, &str)> =
        Hook::ALL.iter().map(|hook| (hook.name(), script.as_str())).collect();
    let mut host = server.host();
    let traffic = host.traffic();

    let first = server.release("1.0.0", SLEEP, &hooks);
    let begun = order(1, Some(&first));
    assert_eq!(settle(&mut host, &begun).await.unwrap(), StepAction::Settled);
    assert_eq!(host.local().current.as_ref(), Some(&first));
    assert_eq!(*traffic.borrow(), Traffic::Ready);
    assert!(server.guard.status("web").await.unwrap().is_running());
    fs::remove_file(&note).unwrap();

    let second = server.release("2.0.0", SLEEP, &hooks);
    settle(&mut host, &order(2, Some(&second))).await.unwrap();
    let ran = fs::read_to_string(&note).unwrap();
    let expected = "\
before-block-traffic 2.0.0 1.0.0 1.2 1 drain 1.0.0 
after-block-traffic 2.0.0 1.0.0 1.2 1 drain 1.0.0 
hand-over 2.0.0 1.0.0 1.2 1 hand-over 1.0.0 s2,s3
application-stop 2.0.0 1.0.0 1.2 1 stop 1.0.0 
before-install 2.0.0 1.0.0 1.2 1 switch 2.0.0 
after-install 2.0.0 1.0.0 1.2 1 switch 2.0.0 
application-start 2.0.0 1.0.0 1.2 1 start 2.0.0 
validate-service 2.0.0 1.0.0 1.2 1 check 2.0.0 
before-allow-traffic 2.0.0 1.0.0 1.2 1 warm-up 2.0.0 
after-allow-traffic 2.0.0 1.0.0 1.2 1 warm-up 2.0.0 
";
    assert_eq!(ran, expected);
    assert_eq!(server.events(), ["started 1.1", "stopped 1.1", "started 1.2"]);

    settle(&mut host, &order(3, None)).await.unwrap();
    assert_eq!(host.local().current, None);
    assert!(!server.guard.status("web").await.unwrap().is_running());
    assert!(matches!(*traffic.borrow(), Traffic::Out { .. }));
    assert!(!server.folder.path().join("web/current").exists());
    server.end().await;
}

#[tokio::test]
async fn a_failing_hook_of_what_is_stopped_holds_a_wave_and_no_way_back() {
    let server = TestServer::start().await;
    let hooks = ["before-block-traffic", "hand-over", "application-stop"];
    let hooks = hooks.map(|hook| (hook, "echo cannot flush; exit 3"));
    let old = server.release("1.0.0", SLEEP, &hooks);
    let mut host = server.host();
    settle(&mut host, &order(1, Some(&old))).await.unwrap();
    let next = server.release("2.0.0", SLEEP, &[]);
    let stop = [("application-stop", "exit 3")];
    let only_stop = server.release("1.1.0", SLEEP, &stop);
    settle(&mut host, &order(2, Some(&next))).await.unwrap();
    assert_eq!(failure(&host).0, Step::Drain, "a wave: the service goes on");
    assert!(server.guard.status("web").await.unwrap().is_running());

    let despite = |order| ActivationOrder { stop_despite_hooks: true, ..order };
    settle(&mut host, &despite(order(3, Some(&only_stop)))).await.unwrap();
    assert_eq!(host.local().current.as_ref(), Some(&only_stop));
    settle(&mut host, &order(4, Some(&next))).await.unwrap();
    assert_eq!(failure(&host).0, Step::Stop);
    assert!(server.guard.status("web").await.unwrap().is_running());

    // A way back, such as the removal of the app; told before its end is.
    let orders = crate::testing::orders(&despite(order(5, None)));
    let (mut told, cancel) = (Vec::new(), CancellationToken::new());
    loop {
        let moment = host.moment(Told { orders_fresh: true, confirmed: true, ..Told::default() });
        let action = next_action(Some(&orders), host.local(), &[], moment).step;
        if action == StepAction::Settled {
            break;
        }
        assert_eq!(host.act(action, &cancel).await.unwrap(), Acted::Done);
        let outcome = host.local().activation.as_ref().unwrap().outcome();
        told.extend(outcome.map(|(_, outcome)| outcome));
    }
    let reason = "hook application-stop failed: exit status 3".to_owned();
    let ignored = Outcome::HookIgnored { reason };
    assert_eq!(told, [ignored.clone(), ignored, Outcome::InService]);
    assert_eq!(host.local().current, None);
    assert!(!server.guard.status("web").await.unwrap().is_running());
    server.end().await;
}

#[tokio::test]
async fn what_only_a_hook_can_stop_still_runs_if_the_hook_fails() {
    let server = TestServer::start().await;
    let hook = "#!/bin/sh\nexit 3\n";
    let files = [("cohort.toml", 0o644, ""), ("hooks/application-stop", 0o755, hook)];
    let old = put(&server.state_dir(), "1.0.0", &tar_of(&files));
    let mut host = server.host();
    settle(&mut host, &order(1, Some(&old))).await.unwrap();
    let back = ActivationOrder { stop_despite_hooks: true, ..order(2, None) };
    settle(&mut host, &back).await.unwrap();
    assert_eq!(failure(&host).0, Step::Stop);
    assert_eq!(host.local().current.as_ref(), Some(&old));
    server.end().await;
}

#[tokio::test]
async fn a_unit_still_runs_if_systemd_cannot_be_asked_to_stop_it() {
    let server = TestServer::start().await;
    let old = server.release("1.0.0", SLEEP, &[]);
    let mut host = server.host();
    settle(&mut host, &order(1, Some(&old))).await.unwrap();
    // The server had a systemd when it installed this release.
    let marker = host.releases.path_of(&old).join(cohort_base::archive::MARKER);
    let (command, unit) = (r#"command = [\"./run\"]"#, r#"systemd_unit = \"web.service\""#);
    let text = fs::read_to_string(&marker).unwrap();
    assert!(text.contains(command), "{text}");
    fs::write(marker, text.replace(command, unit)).unwrap();
    let back = ActivationOrder { stop_despite_hooks: true, ..order(2, None) };
    settle(&mut host, &back).await.unwrap();
    let (step, blame, _) = failure(&host);
    assert_eq!((step, blame), (Step::Stop, Blame::Surroundings));
    assert_eq!(host.local().current.as_ref(), Some(&old));
    server.end().await;
}

/// An attack: a release names a unit of the server's own, such as its firewall.
#[tokio::test]
async fn a_unit_that_the_server_does_not_list_is_not_touched() {
    let server = TestServer::start().await;
    let toml = "[service]\nsystemd_unit = \"sshd.service\"\n";
    let hostile = put(&server.state_dir(), "1.0.0", &tar_of(&[("cohort.toml", 0o644, toml)]));
    let mut host = server.host();
    settle(&mut host, &order(1, Some(&hostile))).await.unwrap();
    let (step, blame, _) = failure(&host);
    assert_eq!((step, blame), (Step::Prepare, Blame::Surroundings));
    // With a systemd, it would be asked here.
    host.stop_service(Some(&hostile)).await.unwrap();
    server.end().await;
}

#[tokio::test]
async fn a_hook_that_asks_to_be_retried_for_ever_does_not_hold_a_way_back() {
    let server = TestServer::start().await;
    let old = server.release("1.0.0", SLEEP, &[("application-stop", "exit 21")]);
    let mut host = server.host();
    settle(&mut host, &order(1, Some(&old))).await.unwrap();
    let back = ActivationOrder { stop_despite_hooks: true, ..order(2, None) };
    let cancel = CancellationToken::new();
    host.act(StepAction::Accept { order: back, step: Step::Drain }, &cancel).await.unwrap();
    let run = |attempt| StepAction::Run { step: Step::Stop, attempt };
    assert_eq!(host.act(run(1), &cancel).await.unwrap(), Acted::Later);
    assert_eq!(host.act(run(ATTEMPTS_MAX), &cancel).await.unwrap(), Acted::Done);
    assert!(!server.guard.status("web").await.unwrap().is_running());
    server.end().await;
}

#[tokio::test]
async fn the_same_fence_and_lower_ones_are_refused() {
    let server = TestServer::start().await;
    let release = server.release("1.0.0", SLEEP, &[]);
    let mut host = server.host();
    settle(&mut host, &order(5, Some(&release))).await.unwrap();
    for generation in [4, 5] {
        let order = order(generation, Some(&release));
        let action = StepAction::Accept { order: order.clone(), step: Step::Prepare };
        let acted = host.act(action, &CancellationToken::new()).await.unwrap();
        assert!(matches!(acted, Acted::Refused), "{acted:?}");
    }
    drop(host);
    // Durable: also after a restart of the agent.
    let mut host = server.host();
    let action = StepAction::Accept { order: order(4, Some(&release)), step: Step::Prepare };
    let acted = host.act(action, &CancellationToken::new()).await.unwrap();
    assert!(matches!(acted, Acted::Refused), "{acted:?}");
    assert_eq!(server.events(), ["started 1.5"]);
    server.end().await;
}

#[tokio::test]
async fn failures_of_the_release_are_blamed_on_it_with_their_output() {
    let server = TestServer::start().await;
    let good = server.release("1.0.0", SLEEP, &[]);
    let mut host = server.host();
    settle(&mut host, &order(1, Some(&good))).await.unwrap();

    let hooks = [("after-install", "echo no database >&2; exit 1")];
    let bad = server.release("2.0.0", SLEEP, &hooks);
    let waits = settle(&mut host, &order(2, Some(&bad))).await.unwrap();
    assert_eq!(waits, StepAction::Wait(StepWait::Decision));
    let (step, blame, output) = failure(&host);
    assert_eq!((step, blame), (Step::Switch, Blame::Release));
    assert_eq!(output, "no database\n");

    let crashing = server.release("3.0.0", "echo cannot bind; exit 7", &[]);
    settle(&mut host, &order(3, Some(&crashing))).await.unwrap();
    let (step, blame, output) = failure(&host);
    assert_eq!((step, blame), (Step::Check, Blame::Release));
    assert!(output.contains("cannot bind"), "{output}");
    assert!(matches!(*host.traffic().borrow(), Traffic::Out { .. }));

    // Not an executable program.
    let toml = "[service]\ncommand = [\"./absent\"]\n";
    let missing = crate::testing::put(
        &server.state_dir(),
        "4.0.0",
        &crate::testing::tar_of(&[("cohort.toml", 0o644, toml)]),
    );
    settle(&mut host, &order(4, Some(&missing))).await.unwrap();
    let (step, blame, _) = failure(&host);
    assert_eq!((step, blame), (Step::Start, Blame::Release));

    // And back to the good release, from disk.
    fs::remove_file(server.state_dir().join("artifacts").join(good.artifact.as_str())).unwrap();
    settle(&mut host, &order(5, Some(&good))).await.unwrap();
    assert_eq!(host.local().current.as_ref(), Some(&good));
    assert_eq!(*host.traffic().borrow(), Traffic::Ready);
    server.end().await;
}

#[tokio::test]
async fn failures_of_the_surroundings_are_not_the_releases() {
    let mut server = TestServer::start().await;
    let release = server.release("1.0.0", SLEEP, &[]);
    let path = server.state_dir().join("artifacts").join(release.artifact.as_str());
    let mut bytes = fs::read(&path).unwrap();
    bytes[700] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut host = server.host();
    settle(&mut host, &order(1, Some(&release))).await.unwrap();
    let (step, blame, _) = failure(&host);
    assert_eq!((step, blame), (Step::Prepare, Blame::Surroundings));
    // Nothing was touched.
    assert_eq!(host.local().current, None);
    assert!(host.held().is_empty());

    fs::remove_file(&path).unwrap();
    settle(&mut host, &order(2, Some(&release))).await.unwrap();
    assert_eq!(failure(&host).1, Blame::Surroundings);

    // No guard.
    let release = server.release("1.0.0", SLEEP, &[]);
    server.end_guard().await;
    settle(&mut host, &order(3, Some(&release))).await.unwrap();
    let (step, blame, _) = failure(&host);
    assert_eq!((step, blame), (Step::Stop, Blame::Surroundings));
}

/// Secrets that no release has; an unusable file costs nothing that runs.
#[tokio::test]
async fn the_servers_own_variables_reach_service_and_hooks() {
    let server = TestServer::start().await;
    let path = server.folder.path().join("env.d/web.env");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "SECRET='of this server'\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let wants = "[ \"$SECRET\" = 'of this server' ] || exit 9";
    let script = format!("{wants}\n{SLEEP}");
    let release = server.release("1.0.0", &script, &[("after-install", wants)]);
    let mut host = server.host();
    settle(&mut host, &order(1, Some(&release))).await.unwrap();
    assert_eq!(host.local().current.as_ref(), Some(&release), "{:?}", host.local().activation);
    assert_eq!(*host.traffic().borrow(), Traffic::Ready);

    fs::write(&path, "not a variable\n").unwrap();
    let next = server.release("2.0.0", SLEEP, &[]);
    settle(&mut host, &order(2, Some(&next))).await.unwrap();
    let (step, blame, _) = failure(&host);
    assert_eq!((step, blame), (Step::Prepare, Blame::Surroundings));
    assert!(server.guard.status("web").await.unwrap().is_running(), "the old one runs on");
    server.end().await;
}

#[tokio::test]
async fn an_unhealthy_service_fails_at_the_deadline_with_the_kind_of_failure() {
    let server = TestServer::start().await;
    let release = server.release("1.0.0", SLEEP, &[]);
    let mut host = server.host();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let check = format!("{{\"type\":\"tcp\",\"port\":{port}}}");
    let check: Check = serde_json::from_str(&check).unwrap();
    let mut order = order(1, Some(&release));
    order.healthy_deadline_ms = 1_500;
    order.checks = vec![check];
    let mut not_yet = host.not_yet();
    let seen =
        tokio::spawn(
            async move { not_yet.wait_for(Option::is_some).await.unwrap().clone().unwrap() },
        );
    settle(&mut host, &order).await.unwrap();
    let (step, blame, output) = failure(&host);
    assert_eq!((step, blame), (Step::Check, Blame::Release));
    assert!(output.contains("running 1.0.0"), "{output}");
    // What it sees is told while it waits, and no longer.
    assert!(seen.await.unwrap().saw.contains(&port.to_string()));
    assert_eq!(*host.not_yet().borrow(), None);
    server.end().await;
}

#[tokio::test]
async fn later_is_tried_again_with_the_next_attempt() {
    let server = TestServer::start().await;
    let hooks = [("before-install", "[ \"$COHORT_ATTEMPT\" -ge 2 ] || exit 21")];
    let release = server.release("1.0.0", SLEEP, &hooks);
    let mut host = server.host();
    settle(&mut host, &order(1, Some(&release))).await.unwrap();
    assert_eq!(host.local().activation.as_ref().unwrap().progress, Progress::Complete);

    // Finally the step fails, which is the release's fault.
    let release = server.release("2.0.0", SLEEP, &[("before-install", "exit 21")]);
    let cancel = CancellationToken::new();
    let accept = StepAction::Accept { order: order(2, Some(&release)), step: Step::Prepare };
    host.act(accept, &cancel).await.unwrap();
    let acted = host.act(StepAction::Run { step: Step::Switch, attempt: 1 }, &cancel).await;
    assert_eq!(acted.unwrap(), Acted::Later);
    host.act(StepAction::GiveUp { step: Step::Switch, attempt: 20 }, &cancel).await.unwrap();
    let (step, blame, _) = failure(&host);
    assert_eq!((step, blame), (Step::Switch, Blame::Release));
    server.end().await;
}

#[tokio::test]
async fn waiting_ends_when_a_newer_fence_arrives() {
    let server = TestServer::start().await;
    let runs = server.folder.path().join("hook-runs");
    let hook = format!("touch {}; sleep 600", runs.display());
    let slow = server.release("1.0.0", SLEEP, &[("after-install", &hook)]);
    let mut host = server.host();
    let cancel = CancellationToken::new();
    let canceller = cancel.clone();
    tokio::spawn(async move {
        until("the hook runs", || async { runs.exists() }).await;
        canceller.cancel();
    });
    let first = order(1, Some(&slow));
    let orders = crate::testing::orders(&first);
    let held = [slow.artifact.clone()];
    loop {
        let moment = host.moment(Told { orders_fresh: true, confirmed: true, ..Told::default() });
        let action =
            cohort_core::steps::next_action(Some(&orders), host.local(), &held, moment).step;
        match host.act(action, &cancel).await.unwrap() {
            Acted::Done => {}
            Acted::Cancelled => break,
            acted => panic!("{acted:?}"),
        }
    }
    let next = server.release("2.0.0", SLEEP, &[]);
    settle(&mut host, &order(2, Some(&next))).await.unwrap();
    assert_eq!(host.local().current.as_ref(), Some(&next));
    assert_eq!(server.events(), ["started 1.2"]);
    server.end().await;
}

#[tokio::test]
async fn the_host_goes_back_by_itself() {
    let server = TestServer::start().await;
    let good = server.release("1.0.0", SLEEP, &[]);
    let next = server.release("2.0.0", SLEEP, &[]);
    let mut host = server.host();
    host.reached = Reached::new(crate::boot_time_ms() - 10_000);
    settle(&mut host, &order(1, Some(&good))).await.unwrap();
    let cancel = CancellationToken::new();

    // Drained, but no further: traffic comes back, and the service was never stopped.
    let mut second = order(2, Some(&next));
    second.confirm_within_ms = 0;
    let accept = StepAction::Accept { order: second.clone(), step: Step::Prepare };
    host.act(accept, &cancel).await.unwrap();
    assert!(!host.moment(Told::default()).confirm_expired, "nothing is drained yet");
    host.act(StepAction::Run { step: Step::Drain, attempt: 1 }, &cancel).await.unwrap();
    assert!(host.moment(Told::default()).confirm_expired);
    assert_eq!(*host.traffic().borrow(), Traffic::Draining);
    let moment = host.moment(Told::default());
    let action = cohort_core::steps::next_action(None, host.local(), &[], moment).step;
    assert!(matches!(action, StepAction::Undo { attempt: 1, .. }), "{action:?}");
    host.act(action, &cancel).await.unwrap();
    assert_eq!(*host.traffic().borrow(), Traffic::Ready);
    assert_eq!(server.events(), ["started 1.1"]);

    // Started: the previous release is restored, even if the agent restarted meanwhile.
    let mut third = order(3, Some(&next));
    third.confirm_within_ms = 0;
    host.act(StepAction::Accept { order: third, step: Step::Prepare }, &cancel).await.unwrap();
    for step in [Step::Drain, Step::HandOver, Step::Stop, Step::Switch, Step::Start] {
        let acted = host.act(StepAction::Run { step, attempt: 1 }, &cancel).await.unwrap();
        assert_eq!(acted, Acted::Done);
    }
    drop(host);
    let mut host = server.host();
    host.reached = Reached::new(crate::boot_time_ms() - 10_000);
    assert!(!host.boot().await.unwrap().in_service);
    assert_eq!(host.local().current, Some(next));
    let moment = host.moment(Told::default());
    let action = cohort_core::steps::next_action(None, host.local(), &[], moment).step;
    host.act(action, &cancel).await.unwrap();
    assert_eq!(host.local().current.as_ref(), Some(&good));
    assert_eq!(host.releases.current().as_ref(), Some(&good));
    let (_, outcome) = host.local().activation.as_ref().unwrap().outcome().unwrap();
    assert!(matches!(outcome, Outcome::Undone { release: Some(release), .. } if release == good));
    assert_eq!(*host.traffic().borrow(), Traffic::Ready);
    let status = server.guard.status("web").await.unwrap();
    assert_eq!(status.release.as_deref(), Some(good.artifact.as_str()));
    assert!(status.is_running());
    server.end().await;
}

#[tokio::test]
async fn only_answers_since_the_stop_count() {
    let server = TestServer::start().await;
    let release = server.release("1.0.0", SLEEP, &[]);
    let mut host = server.host();
    host.reached = Reached::new(crate::boot_time_ms() - 10_000);
    host.heard(0);
    assert!(!host.moment(Told::default()).reached_since_stop);
    settle(&mut host, &order(1, Some(&release))).await.unwrap();
    assert!(!host.moment(Told::default()).reached_since_stop);
    host.heard(crate::boot_time_ms() + 1);
    assert!(host.moment(Told::default()).reached_since_stop);
    server.end().await;
}

#[tokio::test]
async fn an_old_answer_of_the_group_does_not_count() {
    let server = TestServer::start().await;
    let good = server.release("1.0.0", SLEEP, &[]);
    let next = server.release("2.0.0", SLEEP, &[]);
    let mut host = server.host();
    settle(&mut host, &order(1, Some(&good))).await.unwrap();
    let cancel = CancellationToken::new();
    let mut second = order(2, Some(&next));
    second.confirm_within_ms = 0;
    host.act(StepAction::Accept { order: second, step: Step::Prepare }, &cancel).await.unwrap();
    for step in [Step::Drain, Step::HandOver, Step::Stop, Step::Switch, Step::Start] {
        host.act(StepAction::Run { step, attempt: 1 }, &cancel).await.unwrap();
    }
    // The stop was 10 s ago; the group responded 7 s ago, and then the release cut its server off.
    let now_ms = crate::boot_time_ms();
    host.reached = Reached::new(now_ms - 10_000);
    host.heard(now_ms - 7_000);
    let moment = host.moment(Told::default());
    assert!(!moment.reached_since_stop);
    assert_eq!(host.undo_left_ms(), Some(0));
    let action = cohort_core::steps::next_action(None, host.local(), &[], moment).step;
    assert!(matches!(action, StepAction::Undo { attempt: 1, .. }), "{action:?}");

    // Between two responses it stays, however short its time is.
    host.heard(crate::boot_time_ms() - 1_000);
    assert!(host.moment(Told::default()).reached_since_stop);
    let left_ms = host.undo_left_ms().unwrap();
    assert!((1..=5_000).contains(&left_ms), "{left_ms}");
    server.end().await;
}

#[tokio::test]
async fn boot_brings_the_service_up_from_disk_and_leaves_a_running_one_alone() {
    let server = TestServer::start().await;
    let release = server.release("1.0.0", SLEEP, &[]);
    let mut host = server.host();
    assert!(!host.boot().await.unwrap().in_service);
    settle(&mut host, &order(1, Some(&release))).await.unwrap();
    drop(host);

    let mut host = server.host();
    assert!(host.boot().await.unwrap().in_service);
    assert_eq!(*host.traffic().borrow(), Traffic::Starting);
    host.take_traffic();
    assert_eq!(*host.traffic().borrow(), Traffic::Ready);
    assert_eq!(server.events(), ["started 1.1"]);

    // The service is gone, as after a reboot without the guard's record.
    server.guard.stop("web", Duration::from_secs(5)).await.unwrap();
    assert!(host.boot().await.unwrap().in_service);
    assert_eq!(server.events(), ["started 1.1", "stopped 1.1", "started 1.1"]);

    // The same without a restart: the idle agent looks after it.
    server.guard.stop("web", Duration::from_secs(5)).await.unwrap();
    host.ensure_running().await;
    assert!(server.guard.status("web").await.unwrap().is_running());
    host.ensure_running().await;
    assert_eq!(server.events().len(), 5, "{:?}", server.events());

    // The record is lost: the installed release is found.
    drop(host);
    fs::remove_file(server.state_dir().join("apps/web/record")).unwrap();
    let mut host = server.host();
    assert!(host.boot().await.unwrap().in_service);
    assert_eq!(host.local().current, Some(release));
    server.end().await;
}

#[tokio::test]
async fn a_crash_while_it_is_checked_breaks_the_time_of_being_healthy() {
    let server = TestServer::start().await;
    let script = "[ -e once ] || { : > once; sleep 0.2; exit 1; }\nexec sleep 600";
    let release = server.release("1.0.0", script, &[]);
    let mut host = server.host();
    let mut order = order(1, Some(&release));
    order.min_healthy_ms = 500;
    let began = std::time::Instant::now();
    settle(&mut host, &order).await.unwrap();
    assert_eq!(host.local().current.as_ref(), Some(&release));
    assert_eq!(server.events(), ["started 1.1", "exited 1.1", "started 1.1"]);
    assert!(began.elapsed().as_millis() >= 200 + 50 + 500, "{:?}", began.elapsed());
    server.end().await;
}

#[tokio::test]
async fn a_disk_that_refuses_is_not_the_releases_fault() {
    let server = TestServer::start().await;
    let release = server.release("1.0.0", SLEEP, &[]);
    let mut host = server.host();
    let releases = server.folder.path().join("web/releases");
    fs::remove_dir(&releases).unwrap();
    fs::write(&releases, "in the way").unwrap();
    settle(&mut host, &order(1, Some(&release))).await.unwrap();
    let (step, blame, _) = failure(&host);
    assert_eq!((step, blame), (Step::Prepare, Blame::Surroundings));
    server.end().await;
}

#[tokio::test]
async fn traffic_comes_back_slowly() {
    let server = TestServer::start().await;
    let release = server.release("1.0.0", SLEEP, &[]);
    let mut host = server.host();
    let mut traffic = host.traffic();
    let seen = tokio::spawn(async move {
        let mut seen = Vec::new();
        loop {
            let now = traffic.borrow_and_update().clone();
            let ready = now == Traffic::Ready;
            seen.push(now.percent());
            if ready || traffic.changed().await.is_err() {
                return seen;
            }
        }
    });
    let mut order = order(1, Some(&release));
    order.warm_up_ms = 400;
    assert_eq!(settle(&mut host, &order).await.unwrap(), StepAction::Settled);
    let seen = seen.await.unwrap();
    assert!(seen.is_sorted() && seen.last() == Some(&100), "{seen:?}");
    assert!(seen.iter().any(|share| (1..=99).contains(share)), "{seen:?}");
    server.end().await;
}

#[tokio::test]
async fn collecting_keeps_what_is_needed() {
    let server = TestServer::start().await;
    let releases: Vec<_> =
        (1..=4).map(|n| server.release(&format!("{n}.0.0"), SLEEP, &[])).collect();
    let mut host = server.host();
    for (index, release) in releases.iter().enumerate() {
        settle(&mut host, &order(index as u64 + 1, Some(release))).await.unwrap();
    }
    let removed = host.collect(&[releases[0].artifact.clone()]).unwrap();
    assert_eq!(removed, [releases[1].clone()], "the kept, the previous and the current stay");
    server.end().await;
}
