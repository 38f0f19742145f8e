//! An operator steers a rollout: pause, resume, abort, retry, undo, and a newer release midway.

use crate::prober::{Prober, most_down};
use anyhow::{Context as _, Result, ensure};
use cohort_core::phase::PhaseName;
use cohort_core::reason::{PausedBy, Reason};
use cohort_core::waiting::WaitingOn;
use cohort_trial::release::WebRelease;
use cohort_trial::watch::{app, holds, reason, runs, waits};

use crate::trial::{GROUP, PATIENCE, PLATFORM, Trial, one_by_one_slowly, policy};

#[test]
fn by_a_person() -> Result<()> {
    let trial = Trial::of("steering", 3)?;
    trial.first_release(&policy(&one_by_one_slowly(), ""), &WebRelease::new("1.0.0"))?;
    let prober = Prober::start(&trial.services());
    let in_wave = |wave: u32| {
        trial.until(GROUP, PATIENCE, |status| app(status).is_some_and(|app| app.wave >= wave))
    };

    // A pause: servers in progress finish, nothing else starts.
    trial.publish(&WebRelease::new("1.1.0"), &[PLATFORM])?;
    in_wave(1)?;
    trial.run(&["rollout", "pause", GROUP, "--reason", "lunch"])?;
    trial.until(GROUP, PATIENCE, |status| {
        let paused = |by: &PausedBy| matches!(by, PausedBy::Person { text, .. } if text == "lunch");
        waits(status, |on| matches!(on, WaitingOn::Paused { by, .. } if paused(by)))
            && app(status).is_some_and(|app| {
                app.paused && app.servers.values().all(|here| here.activation.is_none())
            })
    })?;
    trial.nothing_begins()?;
    trial.run(&["rollout", "resume", GROUP])?;

    // An abort in the second wave: every server is back on the last good release.
    in_wave(2)?;
    trial.run(&["rollout", "abort", GROUP, "--reason", "not today"])?;
    trial.until(GROUP, PATIENCE, |status| holds(status, "1.1.0", "1.0.0"))?;
    let status = trial.status(GROUP)?;
    let aborted =
        matches!(reason(&status), Some(Reason::Aborted { text, .. }) if text == "not today");
    ensure!(aborted, "{:?}", reason(&status));

    // Retry, then undo it although it was good.
    trial.run(&["rollout", "retry", GROUP])?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0"))?;
    trial.run(&["rollout", "undo", GROUP])?;
    trial.until(GROUP, PATIENCE, |status| {
        app(status).is_some_and(|app| {
            matches!(app.state, PhaseName::Held | PhaseName::Running)
                && app.servers.values().all(|here| {
                    here.in_service
                        && here.running.as_ref().is_some_and(|now| now.as_str() == "1.0.0")
                })
        })
    })?;

    // A newer release takes over mid-rollout.
    trial.publish(&WebRelease::new("1.2.0"), &[PLATFORM])?;
    in_wave(1)?;
    trial.publish(&WebRelease::new("1.3.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.3.0"))?;
    let mut took_1_2 = 0;
    for server in trial.servers() {
        let said = trial.said(&server)?;
        took_1_2 += said.iter().filter(|s| s.event == "start" && s.version == "1.2.0").count();
        let took_1_3 = said.iter().filter(|s| s.event == "start" && s.version == "1.3.0").count();
        ensure!(took_1_3 == 1, "{server} started 1.3.0 {took_1_3} times");
    }
    ensure!(took_1_2 < 3, "every server took 1.2.0 although 1.3.0 was available");

    // What runs is started again, on every server.
    trial.run(&["service", "restart", GROUP])?;
    let starts = |server: &str| {
        let said = trial.said(server).unwrap_or_default();
        said.iter().filter(|s| s.event == "start" && s.version == "1.3.0").count()
    };
    trial.until(GROUP, PATIENCE, |status| {
        runs(status, "1.3.0") && trial.servers().iter().all(|server| starts(server) == 2)
    })?;
    let status = trial.status(GROUP)?;
    let history = &app(&status).context("the group has the app")?.history;
    for version in ["1.0.0", "1.1.0", "1.2.0", "1.3.0"] {
        let known = history.iter().any(|entry| entry.version.as_str() == version);
        ensure!(known, "{version} is not in {history:?}");
    }
    let seen = prober.stop();
    ensure!(most_down(&seen) <= 1, "more than one server was out of service: {seen:?}");
    trial.pass()
}
