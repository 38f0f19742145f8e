use cohort_core::doing::{Doing, Download};
use cohort_core::ids::{AppId, GroupId};
use cohort_core::machine::DiskSpace;
use cohort_core::phase::PhaseName;
use cohort_core::reason::{DebtReason, PausedBy, Unfit};
use cohort_core::refused::WhyRefused;
use cohort_core::state::ActivationStage;
use cohort_core::waiting::{Placing, WaitingOn};
use cohort_wire::agent::{CopyStatus, GroupStatus, PlacingStatus};

use crate::command::Command;
use crate::hint::Hint;
use crate::report::report_test::{lose, report};
use crate::sample::{app, held, moving, rolling, server, settled, waiting};
use crate::waiting::{hints, sentence};
use crate::why::{Wait, server_waits, text, waits};

/// The one golden output of this view.
#[test]
fn every_wait_has_a_reason_and_what_unblocks_it() {
    assert_eq!(
        text(&waits(&report([held()]))),
        "\
intel.zone-a
  web: 1.1.0 is held: check failed on web-1: http: status 500 (for 1m 15s)
    -> publish a fix
    -> or: cohort rollout retry intel.zone-a --app web
  web: web-3 is to start the last good release again: unreachable (for 1m 15s)
    -> once the cause is mended: cohort rollout retry intel.zone-a --app web
"
    );
}

#[test]
fn a_group_that_is_up_to_date_says_only_that() {
    let waits = waits(&report([settled()]));
    assert_eq!(waits.len(), 1);
    assert_eq!(waits[0].on, Some(WaitingOn::NewRelease));
}

#[test]
fn a_server_that_does_not_serve_is_named_in_every_phase() {
    for mut status in [settled(), held(), rolling()] {
        let app = status.apps.get_mut(&app()).unwrap();
        let state = app.state;
        // In the rollout, its turn comes later.
        let name = if state == PhaseName::Running { "web-2" } else { "web-1" };
        let here = app.servers.get_mut(&server(name)).unwrap();
        here.in_service = false;
        here.unfit = Some(Unfit::Unhealthy { text: "http: status 503".to_owned() });
        let seen = waits(&report([status]));
        let named: Vec<_> = seen.iter().filter(|wait| wait.server.is_some()).collect();
        let [wait] = &named[..] else { panic!("{state}: {seen:?}") };
        assert_eq!(wait.server, Some(server(name)));
        assert!(wait.sentence.contains("http: status 503"), "{}", wait.sentence);
        assert!(wait.hints.as_ref().is_some_and(|hints| !hints.is_empty()));
    }
}

#[test]
fn a_rollout_that_waits_for_a_broken_server_says_what_is_wrong_with_it() {
    let mut status = rolling();
    let app = status.apps.get_mut(&app()).unwrap();
    let here = app.servers.get_mut(&server("web-3")).unwrap();
    (here.in_service, here.activation) = (false, Some(ActivationStage::Granted));
    here.unfit = Some(Unfit::Unhealthy { text: "http: status 503".to_owned() });
    let full = WaitingOn::Capacity { out: [server("web-3")].into(), max: 1 };
    app.waiting.push(waiting(full, 5_000));
    let seen = waits(&report([status.clone()]));
    let told = |seen: &[Wait]| seen.iter().filter(|it| it.sentence.contains("503")).count();
    assert_eq!(told(&seen), 1, "{seen:?}");
    // Its debt says that already.
    let reason = DebtReason::Failed { text: "http: status 503".to_owned() };
    let debt = WaitingOn::Debt { server: server("web-3"), reason, again_ms: None };
    status.apps.values_mut().for_each(|app| app.waiting = vec![waiting(debt.clone(), 5_000)]);
    assert_eq!(told(&waits(&report([status]))), 1);
}

#[test]
fn a_server_that_is_changed_is_named_by_what_it_waits_for_only() {
    let seen = waits(&report([rolling()]));
    assert_eq!(seen.iter().filter(|wait| wait.server.is_some()).count(), 0, "{seen:?}");
}

#[test]
fn what_keeps_newer_releases_away_is_told_whatever_else_waits() {
    let stale = WaitingOn::NotRefreshed(WhyRefused::Unreachable { file: "x".into() }.into());
    let mut status = settled();
    let debt = held().apps[&app()].waiting[1].clone();
    status.apps.get_mut(&app()).unwrap().waiting =
        vec![debt.clone(), waiting(stale.clone(), 60_000), waiting(WaitingOn::NewRelease, 1)];
    let seen: Vec<_> = waits(&report([status.clone()])).into_iter().map(|wait| wait.on).collect();
    assert_eq!(seen, [Some(debt.on), Some(stale.clone())]);
    let own = server_waits(&status, &server("web-1"));
    assert!(own.iter().any(|wait| wait.on == Some(stale.clone())), "{own:?}");
}

#[test]
fn what_is_silent_is_named_once_and_its_last_step_is_old() {
    let mut status = rolling();
    lose(&mut status, "web-2", 50_000);
    let own = server_waits(&status, &server("web-2"));
    assert!(own[0].sentence.contains("unknown whether it serves, step check (last seen)"));
    assert!(own[1].sentence.contains("one more loss stops the group"), "{own:?}");
    let mut status = settled();
    lose(&mut status, "web-2", 50_000);
    let named = |wait: &&Wait| wait.sentence.contains("web-2") || wait.server.is_some();
    assert_eq!(waits(&report([status])).iter().filter(named).count(), 1);
}

#[test]
fn a_download_that_keeps_failing_needs_somebody() {
    let hints = |tries| {
        let mut status = moving();
        let here = status.apps.get_mut(&app()).unwrap().servers.get_mut(&server("web-2")).unwrap();
        let error = "not enough free space".to_owned();
        here.doing = Some(Doing::Download(Download::Failed { tries, error }));
        let waits = waits(&report([status]));
        let wait = waits.iter().find(|wait| matches!(wait.on, Some(WaitingOn::Download { .. })));
        wait.unwrap().hints.as_ref().unwrap().len()
    };
    assert_eq!((hints(1), hints(2)), (0, 1));
}

#[test]
fn a_check_that_does_not_pass_yet_says_what_it_sees_and_where_to_read_on() {
    let mut status = rolling();
    let here = status.apps.get_mut(&app()).unwrap().servers.get_mut(&server("web-2")).unwrap();
    here.doing = Some(Doing::Checking { saw: "status 503".to_owned(), left_ms: 60_000 });
    let waits = waits(&report([status]));
    let wait = waits.iter().find(|wait| matches!(wait.on, Some(WaitingOn::Steps { .. }))).unwrap();
    assert!(wait.sentence.contains("status 503"), "{wait:?}");
    let logs = Command::Logs { server: server("web-2"), app: app() };
    let is_logs = |hint: &Hint| matches!(hint, Hint::Run(_, command) if *command == logs);
    assert!(wait.hints.as_ref().unwrap().iter().any(is_logs), "{wait:?}");
}

#[test]
fn a_rollback_that_waits_says_that_it_is_one() {
    let mut status = held();
    let app = status.apps.get_mut(&app()).unwrap();
    app.state = PhaseName::RollingBack;
    let out = [server("web-3")].into();
    app.waiting = vec![waiting(WaitingOn::Capacity { out, max: 1 }, 5_000)];
    let seen = waits(&report([status]));
    assert!(seen[0].sentence.starts_with("rolling back from 1.1.0 to 1.0.0: "), "{seen:?}");
}

#[test]
fn a_change_of_the_voters_that_waits_is_named() {
    let silent = [server("web-3")].into();
    for on in [
        Placing::Joint,
        Placing::CatchingUp { servers: [server("web-3")].into() },
        Placing::Majority { heard: 1, voters: 3 },
        Placing::Replacement { silent },
    ] {
        let mut status = settled();
        status.placing = Some(PlacingStatus { on: on.clone(), for_ms: 7_000 });
        let waits = waits(&report([status]));
        assert_eq!((waits.len(), waits[0].for_ms), (2, Some(7_000)), "{on:?}");
        assert!(waits[0].hints.as_ref().is_some_and(|hints| !hints.is_empty()), "{on:?}");
    }
}

#[test]
fn a_group_without_a_quorum_names_the_voters_to_start() {
    let mut status = settled();
    status.linearizable = false;
    let hints = waits(&report([status]))[0].hints.clone().unwrap();
    assert!(hints[0].to_string().contains("web-1, web-2, web-3"), "{hints:?}");
}

#[test]
fn a_server_shows_its_own_state_and_then_what_names_it() {
    let of = |name: &str| server_waits(&rolling(), &server(name));
    let changing = of("web-2");
    assert_eq!((changing.len(), &changing[0].hints), (2, &None), "its state is no wait");
    assert!(changing[0].sentence.contains("step check"), "{}", changing[0].sentence);
    assert!(matches!(changing[1].on, Some(WaitingOn::Steps { .. })));
    let next = of("web-3");
    assert!(next[0].sentence.contains("1.0.0 (target 1.1.0)"), "{}", next[0].sentence);
    assert_eq!(next[1].on, changing[1].on, "its turn comes after web-2");
    let mut both = rolling();
    both.apps.get_mut(&app()).unwrap().waiting.extend(held().apps[&app()].waiting.clone());
    assert_eq!(server_waits(&both, &server("web-3")).len(), 2, "its debt alone is its own");
    let stranger = of("web-9");
    assert!(stranger[0].hints.as_ref().is_some_and(|hints| !hints.is_empty()));
}

fn blames(waits: &[Wait]) -> usize {
    waits.iter().filter(|wait| wait.on.is_none() && wait.hints.is_some()).count()
}

#[test]
fn a_download_shows_its_progress_and_offenders_are_named() {
    let all = waits(&report([moving()]));
    assert!(all[0].sentence.contains("20.0 MiB of 64.0 MiB"), "{}", all[0].sentence);
    assert_eq!(all[0].hints, Some(Vec::new()), "nothing to do");
    assert!(all[1].sentence.starts_with("web-3 ") && all[1].sentence.contains("web-2"));
    let of = |status: &GroupStatus, name: &str| blames(&server_waits(status, &server(name)));
    let names = ["web-1", "web-2", "web-3"];
    assert_eq!(names.map(|name| of(&moving(), name)), [0, 1, 1], "who is blamed, and who saw it");
    let mut later = moving();
    let transfer = &mut later.transfers[0];
    (transfer.under_way, transfer.took_ms, transfer.for_ms) = (false, Some(5_000), 500_000);
    assert_eq!(of(&later, "web-3"), 1, "shown for a while after it ended");
    later.transfers[0].for_ms = 700_000;
    assert_eq!(of(&later, "web-3"), 0);
}

#[test]
fn a_held_release_can_be_retried_and_a_pause_resumed() {
    let (group, app) = (GroupId::new("a.b").unwrap(), AppId::new("web").unwrap());
    let by = PausedBy::Person { name: "ann".to_owned(), text: String::new() };
    let paused = WaitingOn::Paused { by, left_ms: None, holds: None };
    let resume = Command::RolloutResume { group: group.clone(), app: app.clone() };
    assert_eq!(hints(&paused, &group, &app, PhaseName::WAVE_ASSIGNED), [Hint::run(resume)]);
    assert_eq!(sentence(&paused), "paused by ann");
}

#[test]
fn a_wrong_clock_and_a_full_disk_are_their_servers_own_faults() {
    let mut status = settled();
    let said = |status: &GroupStatus| -> Vec<String> {
        let waits = waits(&report([status.clone()])).into_iter();
        waits.filter(|wait| wait.server.is_some()).map(|wait| wait.sentence).collect()
    };
    assert_eq!(said(&status), Vec::<String>::new());
    let machine = |status: &mut GroupStatus, clock_ahead_ms, disk| {
        let server = status.servers.get_mut(&server("web-2")).unwrap();
        (server.clock_ahead_ms, server.disk) = (clock_ahead_ms, disk);
    };
    machine(&mut status, -90_000, DiskSpace::Enough);
    assert_eq!(said(&status), ["the clock of web-2 is 1m 30s behind the other servers'"]);
    assert!(report([status.clone()]).healthy, "the apps serve");
    for (disk, fact) in [
        (DiskSpace::Low, "little space is left"),
        (DiskSpace::Exhausted, "no space is left"),
        (DiskSpace::ReadOnly, "is read-only"),
    ] {
        machine(&mut status, 0, disk);
        let report = report([status.clone()]);
        assert!(!report.healthy, "{disk:?}");
        let names = |waits: &[Wait]| {
            let named =
                |wait: &&Wait| wait.sentence.contains(fact) && wait.sentence.contains("web-2");
            let hints = waits.iter().find(named).and_then(|wait| wait.hints.clone()).unwrap();
            hints[0].to_string().contains("free space") == (disk != DiskSpace::ReadOnly)
        };
        assert!(names(&waits(&report)) && names(&server_waits(&status, &server("web-2"))));
    }
    machine(&mut status, 0, DiskSpace::Enough);
    status.servers.get_mut(&server("web-2")).unwrap().stopped = true;
    assert!(!report([status.clone()]).healthy);
    let said_of = server_waits(&status, &server("web-2"));
    let stopped = said_of.iter().filter(|wait| wait.sentence.contains("kill file of web-2"));
    assert_eq!(stopped.count(), 1);
    status.servers.get_mut(&server("web-2")).unwrap().stopped = false;
    let copy = CopyStatus { host: "10.0.0.9".into(), for_ms: 60_000, age_ms: 2_000 };
    status.servers.get_mut(&server("web-2")).unwrap().copy = Some(copy);
    let copied = "a machine on 10.0.0.9 runs as web-2, too, and is refused (last 2s ago)";
    assert_eq!(said(&status), [copied]);
    assert!(report([status.clone()]).healthy, "the apps serve");
    let own = server_waits(&status, &server("web-2"));
    assert!(own.iter().any(|wait| wait.sentence == copied), "{own:?}");
    assert!(server_waits(&status, &server("web-1")).iter().all(|wait| wait.sentence != copied));
    // What the copy itself answers is no reason to recover the group.
    status.linearizable = false;
    status.elsewhere = Some("10.0.0.2".into());
    let seen = waits(&report([status]));
    let recovers = |hint: &Hint| matches!(hint, Hint::Run(_, Command::GroupRecover { .. }));
    assert!(seen[0].sentence.contains("10.0.0.2"), "{seen:?}");
    assert!(seen.iter().flat_map(|wait| wait.hints.iter().flatten()).all(|hint| !recovers(hint)));
}

#[test]
fn a_release_that_was_stopped_although_a_hook_failed_is_named_until_the_next_change() {
    let mut status = settled();
    let here = status.apps.get_mut(&app()).unwrap().servers.get_mut(&server("web-2")).unwrap();
    here.ignored_hook = Some("hook application-stop failed: exit status 3".to_owned());
    for waits in [waits(&report([status.clone()])), server_waits(&status, &server("web-2"))] {
        let named = |wait: &&Wait| wait.sentence.contains("exit status 3");
        let wait = waits.iter().find(named).unwrap();
        assert_eq!(wait.server, Some(server("web-2")));
        assert!(wait.hints.as_ref().is_some_and(|hints| !hints.is_empty()));
    }
    assert!(report([status]).healthy, "it serves");
}
