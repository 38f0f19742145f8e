//! Logs that every later version must replay to the same state: `golden/NAME.jsonl` and
//! `golden/NAME.state.json`. `UPDATE=1` writes only missing ones: once a version is installed, an
//! existing one never changes, because groups have such logs on disk.

#![allow(clippy::disallowed_methods, reason = "a test reads and writes its golden files")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use cohort_core::State;
use cohort_core::command::{Body, Command};
use cohort_core::ids::{GroupId, Incarnation};
use cohort_core::plan::{Observations, Offer, plan};
use cohort_core::report::{Blame, Outcome, Report, Step};
use cohort_core::state::Process;
use common::{app, command, policy, release, server};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn new_state() -> State {
    State::new(GroupId::new("intel.zone-a").expect("a name"), Incarnation(1))
}

/// Plays a group: every plan is committed immediately, and every server follows its orders.
struct Play {
    state: State,
    log: Vec<Command>,
}

impl Play {
    fn new() -> Play {
        let mut play = Play { state: new_state(), log: Vec::new() };
        let labels = [("zone".to_owned(), "zone-a".to_owned())].into();
        play.take(Body::SetUp { labels, platform: common::platform() });
        for n in 0..3 {
            let address = format!("10.0.0.{n}:7417");
            let process = Process { life: u64::from(n) + 1, host: format!("10.0.0.{n}") };
            play.take(Body::AddServer { server: server(n), address, rack: None, process });
            play.take(Body::AllocateMember { server: server(n) });
        }
        play.take(Body::SetPolicy {
            policy: policy(1, 0),
            revision: cohort_core::ids::Revision(1),
            proof: Default::default(),
        });
        for n in 0..3 {
            play.say(n, Outcome::Found { release: None, in_service: false });
        }
        play
    }

    fn take(&mut self, body: Body) {
        let command = command(None, body);
        let _ = self.state.apply(&command);
        self.log.push(command);
    }

    fn say(&mut self, n: u8, outcome: Outcome) {
        let fence = self.state.apps[&app()].servers[&server(n)].activation.as_ref();
        let report = Report {
            server: server(n),
            boot_epoch: cohort_core::ids::BootEpoch(1),
            sequence: self.state.servers[&server(n)].sequence + 1,
            app: app(),
            fence: fence.map_or_else(Default::default, |activation| activation.fence),
            attempt: 1,
            outcome,
        };
        self.take(Body::Report { report });
    }

    /// Until nothing more is planned; `bad` is where the release fails its checks.
    fn settle(&mut self, offer: u8, bad: Option<u8>) {
        for _ in 0..200 {
            let seen = Observations {
                leader: Some(server(0)),
                elapsed_ms: 300,
                registry: Some(cohort_core::gate::RegistryView::default()),
                offers: [(app(), Offer::Release(release(offer)))].into(),
                contact_age_ms: (0..3).map(|n| (server(n), 0)).collect(),
                ..Observations::default()
            };
            let plan = plan(&self.state, &seen);
            let mut moved =
                plan.commands.iter().any(|body| !matches!(body, Body::AdvanceClock { .. }));
            for body in plan.commands {
                self.take(body);
            }
            let (record, written) = {
                let app = &self.state.apps[&app()];
                (app.record, app.record_written)
            };
            if record > written {
                self.take(Body::RecordWritten { app: app(), record });
                moved = true;
            }
            for due in self.state.apps[&app()].verdicts_due.clone() {
                let (version, good) = (due.version, due.bad.is_none());
                self.take(Body::VerdictWritten { app: app(), version, good });
            }
            for n in 0..3 {
                moved |= self.serve(n, bad);
            }
            if !moved {
                return;
            }
        }
        panic!("it does not settle: {:?}", self.state.apps[&app()].phase);
    }

    fn serve(&mut self, n: u8, bad: Option<u8>) -> bool {
        let Some(orders) = self.state.orders(&server(n), false) else { return false };
        let Some(orders) = orders.apps.into_iter().next() else { return false };
        let mut moved = false;
        for fetch in orders.fetch {
            self.say(n, Outcome::Holds { artifact: fetch.release.artifact });
            moved = true;
        }
        if let Some(order) = orders.activation {
            moved = true;
            self.say(n, Outcome::Applied);
            if bad == Some(n) && order.release == Some(release(4)) {
                self.say(
                    n,
                    Outcome::Failed {
                        blame: Blame::Release,
                        step: Step::Check,
                        reason: "wrong answer".into(),
                        output: String::new(),
                    },
                );
            } else {
                self.say(n, Outcome::Checked);
                self.say(n, Outcome::InService);
            }
        }
        moved
    }
}

fn logs() -> Vec<(&'static str, Vec<Command>)> {
    let mut plain = Play::new();
    plain.settle(1, None);
    plain.settle(2, None);
    let mut rolled_back = Play::new();
    rolled_back.settle(1, None);
    rolled_back.settle(4, Some(1));
    rolled_back.take(Body::Retry { app: app() });
    rolled_back.settle(4, None);
    rolled_back.take(Body::Undo { app: app(), lead: server(0) });
    rolled_back.settle(4, None);
    vec![("plain", plain.log), ("rolled-back", rolled_back.log)]
}

#[test]
fn golden_logs_lead_to_their_states() {
    if std::env::var_os("UPDATE").is_some() {
        for (name, log) in logs() {
            let path = folder().join(format!("{name}.jsonl"));
            if !path.exists() {
                let lines: Vec<String> = log
                    .iter()
                    .map(|command| serde_json::to_string(command).expect("plain data"))
                    .collect();
                fs::write(&path, lines.join("\n") + "\n").expect("a writable folder");
            }
        }
    }
    let mut replayed = 0;
    for entry in fs::read_dir(folder()).expect("golden logs") {
        let path = entry.expect("an entry").path();
        let is_log = path.extension().is_some_and(|extension| extension == "jsonl");
        let is_format = path.ends_with("app-record.jsonl") || path.ends_with("entries.jsonl");
        if !is_log || is_format {
            continue;
        }
        let mut state = new_state();
        for line in fs::read_to_string(&path).expect("a log").lines() {
            let command: Command = serde_json::from_str(line).expect("a command of before");
            let _ = state.apply(&command);
            state.check().expect("invariants hold after every entry");
        }
        let expected = path.with_extension("state.json");
        if !expected.exists() && std::env::var_os("UPDATE").is_some() {
            let text = serde_json::to_string_pretty(&state).expect("plain data");
            fs::write(&expected, text + "\n").expect("a writable folder");
        }
        let text = fs::read_to_string(&expected).expect("the state that it led to");
        let expected: State = serde_json::from_str(&text).expect("a state of before");
        assert_eq!(state, expected, "{} leads to another state", path.display());
        replayed += 1;
    }
    assert!(replayed >= 2, "the golden logs are gone");
}
