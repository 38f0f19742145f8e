//! The verbs of `scenarios/*.txt`.
//!
//! A script is blocks of lines; a block is verbs, a line `----` and the output of all of them.
//! Lines that begin with `#` are prose. A block without verbs before its `----` does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use cohort_core::ability::Ability;
use cohort_core::command::{Body, Event, Rejection};
use cohort_core::gate::ForeignVerdict;
use cohort_core::ids::{AppId, GroupId, ServerId, Version};
use cohort_core::kill::KillScope;
use cohort_core::orders::Orders;
use cohort_core::phase::{Phase, PhaseName};
use cohort_core::policy::Policy;
use cohort_core::reason::Reason;
use cohort_core::release::{Release, Rollback};
use cohort_core::report::{Outcome, Report};
use cohort_view::command::Command;
use cohort_view::hint::Hint;
use cohort_view::words;

use super::behaviour::{Behaviour, Fault};
use super::build;
use super::log::Happened;
use super::net::Weather;
use super::world::{Break, Fleet};

mod line;
mod tell;

use line::{Line, ms_of, servers_of, step_of, value_of};

/// How long `run until=…` waits unless told, in milliseconds of the fleet's clock.
const UNTIL_MS: u64 = 600_000;

/// A script that is being played.
pub struct Script {
    fleet: Fleet,
    group: Option<GroupId>,
    told: BTreeMap<GroupId, usize>,
    policies: BTreeMap<String, Policy>,
    kept_orders: BTreeMap<ServerId, Orders>,
    times: bool,
}

impl Default for Script {
    fn default() -> Self {
        let mut fleet = Fleet::new(0);
        // One proposal at a time, so that a script can stop in the middle of a plan.
        (fleet.limits.uncommitted_bytes_max, fleet.limits.append_bytes_max) = (1, 1);
        fleet.first_leads = true;
        Script {
            fleet,
            group: None,
            told: BTreeMap::new(),
            policies: BTreeMap::new(),
            kept_orders: BTreeMap::new(),
            times: false,
        }
    }
}

impl Script {
    /// Plays a whole script and gives it back with the outputs that came.
    pub fn play(text: &str) -> (String, Script) {
        let mut script = Script::default();
        let (mut played, mut output) = (String::new(), String::new());
        let mut in_output = false;
        for line in text.lines() {
            if line == "----" {
                played.push_str("----\n");
                played.push_str(&output);
                output.clear();
                in_output = true;
            } else if in_output {
                if line.is_empty() {
                    played.push('\n');
                    in_output = false;
                }
            } else {
                played.push_str(line);
                played.push('\n');
                if !line.is_empty() && !line.starts_with('#') {
                    script.line(&Line::parse(line), &mut output);
                }
            }
        }
        (played, script)
    }

    /// The transitions taken, from and to.
    pub fn arrows(&self) -> impl Iterator<Item = (PhaseName, PhaseName)> {
        self.fleet.groups.values().flat_map(|group| group.log.arrows.iter().copied())
    }

    fn group(&mut self) -> &mut super::group::Group {
        let id = self.group.as_ref().expect("begin with `fleet`");
        self.fleet.groups.get_mut(id).expect("a known group")
    }
    /// Nothing passes between two servers any more.
    fn part(&mut self, line: &Line<'_>) {
        let [one, other] = [0, 1].map(|at| ServerId::new(line.words[at]).expect("an id"));
        let ways = [(one.clone(), other.clone()), (other, one)];
        self.group().net.cut.extend(ways);
    }

    fn line(&mut self, line: &Line<'_>, out: &mut String) {
        match line.verb {
            "fleet" => self.new_group(line),
            "use" => self.group = Some(GroupId::new(line.words[0]).expect("a group")),
            "policy" => self.policy(line),
            "remove-app" => self.fleet.remove_app(&line.app()),
            "publish" => self.publish(line),
            "installed" => self.installed(line),
            "channel" => self.fleet.channel(&line.app(), line.words[0]),
            "run" => self.run(line, out),
            "times" => self.times = line.words[0] == "on",
            "state" => self.state(out),
            "servers" => self.servers(line, out),
            "why" => self.why(out),
            "holders" => self.holders(line, out),
            "voters" => self.voters(out),
            "fetching" => self.fetching(out),
            "history" => self.history(line, out),
            "churn" => self.churn(line),
            "history-length" => {
                let app = line.app();
                let entries = self.group().log.state.apps[&app].history.len();
                let _ = writeln!(out, "{entries} entries");
            }
            "verdicts" => {
                self.fleet.settle(true);
                self.verdicts(out);
            }
            "entries" => self.entries(line, out),
            "clock" => {
                let _ = writeln!(out, "{} s", self.group().log.state.clock.0 / 1000);
            }
            "prober" => {
                let most = std::mem::take(&mut self.fleet.prober.most_out);
                let _ = writeln!(out, "at most {most} out of service");
            }
            "crash" | "start" | "power-off" | "cut" | "heal" | "lose" | "fill" | "free"
            | "wipe" | "wall-clock" => self.machines(line),
            "copy" | "move" => {
                let servers = line.words.iter().flat_map(|word| servers_of(word));
                for server in servers {
                    match line.verb {
                        "copy" => self.group().copy(&server),
                        _ => self.group().move_server(&server, true),
                    }
                }
            }
            "part" => self.part(line),
            "hosts" => self.hosts(line, out),
            "join" | "leave" => {
                let group = self.group.clone().expect("begin with `fleet`");
                for server in line.words.iter().flat_map(|word| servers_of(word)) {
                    if line.verb == "join" {
                        self.group().join(&server);
                    } else {
                        let number = self.fleet.leave(&group, &server);
                        self.outcome(number);
                    }
                }
            }
            "add-voter" | "remove-voter" => {
                for server in line.words.iter().flat_map(|word| servers_of(word)) {
                    let carries = line.verb == "add-voter";
                    let refused = self.say("ana", Body::PlaceMember { server, carries });
                    assert_eq!(refused, None, "{}", line.verb);
                }
            }
            "leader" => {
                if let Some(word) = line.words.first() {
                    let next = servers_of(word).remove(0);
                    self.fleet.transfer(self.group.as_ref().expect("a group"), Some(&next));
                    self.fleet.settle(false);
                }
                let leader = self.group().leader();
                let name = leader.map_or("nobody".to_owned(), |leader| leader.to_string());
                let _ = writeln!(out, "{name} leads");
            }
            "leap" => {
                let leader = self.group().leader().expect("somebody leads");
                let server = self.group().servers.get_mut(&leader).expect("a server");
                server.ahead_ms += ms_of(line.words[0]);
            }
            "kill" => self.kill(line),
            "registry" => self.fleet.registry.away = line.words[0] == "away",
            "reaches" => self.reaches(line),
            "mirrors" => self.fleet.mirrors = line.words[0] != "away",
            "fetch" => self.fleet.fetch_ms = ms_of(line.words[0]),
            "weather" => self.weather(line),
            "verdict" => self.verdict(line),
            "pause" | "resume" | "approve" | "abort" | "retry" | "undo" | "restart" => {
                self.person(line, out);
            }
            "heed" => self.heed(out),
            "keep-orders" | "replay-orders" => self.orders(line),
            "reports" => self.reports(line, out),
            "repeat-report" => self.repeat_report(line, out),
            other => panic!("there is no verb `{other}`"),
        }
    }

    /// What happens to machines.
    fn machines(&mut self, line: &Line<'_>) {
        for word in &line.words {
            for server in servers_of(word) {
                let server = self.group().servers.get_mut(&server).expect("a server");
                match line.verb {
                    "crash" => server.crash(),
                    "start" => server.start(),
                    "power-off" => server.power_off(),
                    "cut" => server.cut = true,
                    "fill" => server.full = true,
                    "free" => server.full = false,
                    "wipe" => server.wipe(line.part()),
                    "wall-clock" => server.clock_ahead_ms = line.ahead_ms(),
                    "lose" => {
                        server.crash();
                        server.disk.held.clear();
                        server.start();
                    }
                    _ => server.cut = false,
                }
            }
        }
    }

    fn kill(&mut self, line: &Line<'_>) {
        let reason = (line.words[0] == "on").then(|| line.words[1..].join(" "));
        self.fleet.throw(KillScope::Fleet, reason.as_deref(), |_| true);
    }

    fn entries(&mut self, line: &Line<'_>, out: &mut String) {
        let before = self.group().log.applied;
        self.fleet.run_ms(ms_of(line.words[0]));
        let count = self.group().log.applied - before;
        let _ = writeln!(out, "{count} entries in {}", line.words[0]);
    }

    fn holders(&mut self, line: &Line<'_>, out: &mut String) {
        let app = line.app();
        let state = &self.group().log.state;
        let app = &state.apps[&app];
        let good = app.last_good.as_ref().expect("a good release");
        let holders = app.servers.iter().filter(|(_, here)| here.has(&good.artifact));
        let holders: Vec<&str> = holders.map(|(server, _)| server.as_str()).collect();
        let holders = if holders.is_empty() { "nobody".into() } else { holders.join(" ") };
        let _ = writeln!(out, "held by {holders}");
    }

    fn reaches(&mut self, line: &Line<'_>) {
        let ability = match line.words[1] {
            "everything" => Ability::FULL,
            "hub" => Ability { repository: false, ..Ability::FULL },
            "mirrors" => Ability { registry: false, ..Ability::FULL },
            "no-space" => Ability { disk: false, ..Ability::FULL },
            _ => Ability { disk: true, ..Ability::default() },
        };
        for server in servers_of(line.words[0]) {
            self.group().servers.get_mut(&server).expect("a server").ability = ability;
        }
    }

    fn new_group(&mut self, line: &Line<'_>) {
        let get = |key, usual| line.pairs.get(key).copied().unwrap_or(usual);
        let (platform, zone) = (get("platform", "intel"), get("zone", "zone-a"));
        let name = format!("{platform}.{zone}");
        self.fleet.racks = get("racks", "0").parse().expect("a number");
        self.fleet.placer.replace_after_ms = ms_of(get("replace_after", "5m"));
        let servers: usize = get("servers", "10").parse().expect("a number");
        let servers: Vec<ServerId> = (1..=servers).map(build::server).collect();
        self.group = Some(self.fleet.add_group(&name, platform, &[("zone", zone)], &servers));
    }

    fn policy(&mut self, line: &Line<'_>) {
        let app = line.app();
        let base =
            self.policies.remove(app.as_str()).unwrap_or_else(|| build::policy(app.as_str()));
        let mut json = serde_json::to_value(&base).expect("a policy is plain data");
        for (key, value) in &line.pairs {
            match *key {
                "app" => {}
                "stage" => {
                    let stages = value.split(',').map(|zone| serde_json::json!({ "zone": zone }));
                    json["stage"] = stages.collect();
                }
                // What a service passes: `up`, `never`, or a version that it has to run.
                "check" => {
                    let check =
                        |it| serde_json::json!({ "type": "http", "path": format!("/{it}") });
                    json["check"] = value.split(',').filter(|a| *a != "none").map(check).collect();
                }
                key => json["update"][key] = value_of(value),
            }
        }
        let policy: Policy = serde_json::from_value(json).expect("a policy");
        self.policies.insert(app.to_string(), policy.clone());
        self.fleet.set_policy(policy);
    }

    fn publish(&mut self, line: &Line<'_>) {
        let app = line.app();
        let on = line.pairs.get("on").map(|on| on.split(',').flat_map(servers_of).collect());
        let on: Option<BTreeSet<ServerId>> = on;
        let mut faults = Vec::new();
        for (key, value) in &line.pairs {
            let fault = match *key {
                "fails" => Fault::Fails(step_of(value)),
                "surroundings" => Fault::Surroundings(step_of(value)),
                "hangs" => Fault::Hangs(step_of(value)),
                "later" => {
                    let (step, times) = value.split_once(':').unwrap_or((value, "3"));
                    Fault::Later(step_of(step), times.parse().expect("a number"))
                }
                "dies" => Fault::DiesAfter(ms_of(value)),
                "cuts" => Fault::CutsNetwork,
                _ => continue,
            };
            faults.push((fault, on.clone()));
        }
        let bad = line.pairs.get("bad").copied();
        let platforms: BTreeSet<String> = self
            .fleet
            .groups
            .values()
            .filter_map(|group| Some(group.log.state.platform.as_ref()?.to_string()))
            .collect();
        for platform in platforms {
            let mut release = build::release(app.as_str(), line.words[0], &platform);
            release.rollback = match line.pairs.get("rollback").copied() {
                Some("freeze") => Rollback::Freeze,
                Some("forward-only") => Rollback::ForwardOnly,
                _ => Rollback::Revert,
            };
            let faults =
                if bad.is_none_or(|bad| bad == platform) { faults.clone() } else { Vec::new() };
            self.fleet.publish(&app, release, Behaviour { faults });
        }
    }

    fn installed(&mut self, line: &Line<'_>) {
        self.publish(line);
        let app = line.app();
        let releases = self.fleet.releases.clone();
        let group = self.group();
        let platform = group.log.state.platform.clone().expect("set up").to_string();
        let release: &Release = &releases[&(app.clone(), line.words[0].to_owned(), platform)];
        let on: Option<BTreeSet<ServerId>> =
            line.pairs.get("only").map(|on| on.split(',').flat_map(servers_of).collect());
        for server in group.servers.values_mut() {
            if on.as_ref().is_none_or(|on| on.contains(&server.id)) {
                server.install(&app, release);
            }
        }
    }

    fn run(&mut self, line: &Line<'_>, out: &mut String) {
        if let Some(name) = line.pairs.get("until") {
            let target = PhaseName::ALL.into_iter().find(|phase| phase.as_str() == *name);
            let target = target.expect("a state");
            let within_ms = line.pairs.get("within").map_or(UNTIL_MS, |text| ms_of(text));
            let end_ms = self.fleet.now_ms + within_ms;
            let wave: Option<u32> = line.pairs.get("wave").map(|n| n.parse().expect("a number"));
            let app = line.app();
            // What earlier verbs caused counts, if it has not been told.
            let from = self.told.get(self.group.as_ref().expect("a group")).copied().unwrap_or(0);
            self.fleet.break_at = Some(Break::Entered(target, wave));
            while !self.entered(&app, target, wave, from) {
                if self.fleet.now_ms >= end_ms {
                    let _ = writeln!(out, "(not {name} within {} s)", within_ms / 1000);
                    break;
                }
                self.fleet.tick();
            }
            self.fleet.break_at = None;
        } else {
            self.fleet.run_ms(ms_of(line.words[0]));
        }
        self.tell(line.words.contains(&"steps"), out);
    }

    /// Whether an app has entered a state since event `from` and is still there.
    fn entered(&mut self, app: &AppId, target: PhaseName, wave: Option<u32>, from: usize) -> bool {
        let group = self.group();
        let entered = group.log.events[from..].iter().any(|happened| {
            matches!(&happened.event,
                Event::PhaseChanged { app: of, to, .. } if of == app && *to == target)
        });
        let number = |phase: &Phase| phase.wave().and(phase.rollout()).map(|rollout| rollout.waves);
        entered
            && group.log.state.apps.get(app).is_some_and(|app| {
                app.phase.name() == target && (wave.is_none() || wave == number(&app.phase))
            })
    }

    /// So many releases, each on the channel before the one before is through.
    fn churn(&mut self, line: &Line<'_>) {
        let releases: u32 = line.words[0].parse().expect("a number");
        for n in 1..=releases {
            let version = format!("2.{n}.0");
            self.publish(&Line::parse(&format!("publish {version}")));
            self.fleet.channel(&line.app(), &version);
            self.fleet.run_ms(500);
        }
        let group = self.group.clone().expect("begin with `fleet`");
        self.told.insert(group.clone(), self.fleet.groups[&group].log.events.len());
    }

    fn verdict(&mut self, line: &Line<'_>) {
        let [group, version, word] = line.words[..3] else { panic!("verdict GROUP VERSION WORD") };
        let platform = self.group().log.state.platform.clone().expect("set up");
        Arc::make_mut(&mut self.fleet.registry.view).verdicts.push(ForeignVerdict {
            group: GroupId::new(group).expect("a group"),
            app: line.app(),
            version: Version::new(version).expect("a version"),
            platform,
            bad: (word != "good")
                .then(|| Reason::Aborted { by: "ana".to_owned(), text: line.words[3..].join(" ") }),
        });
    }

    fn weather(&mut self, line: &Line<'_>) {
        let part = |key| line.pairs.get(key).map_or(0, |n| n.parse().expect("a number"));
        let (lost, twice, late) = (part("lost"), part("twice"), part("late"));
        self.fleet.weather = Weather { lost, twice, late, delay_ms_max: 0 };
    }

    fn person(&mut self, line: &Line<'_>, out: &mut String) {
        let (app, reason) = (line.app(), line.rest());
        let body = match line.verb {
            "pause" => {
                let for_ms = line.pairs.get("for").map(|text| ms_of(text));
                Body::Pause { app, reason, for_ms }
            }
            "restart" => Body::Restart {
                app,
                servers: line.words.iter().copied().flat_map(servers_of).collect(),
            },
            "resume" => Body::Resume { app },
            "approve" => Body::Approve { app },
            "abort" => Body::Abort { app, reason },
            "retry" => Body::Retry { app },
            _ => Body::Undo { app, lead: self.group().leader().expect("somebody leads") },
        };
        match self.say("ana", body) {
            None => out.push_str("ok\n"),
            Some(rejection) => {
                let _ = writeln!(out, "refused: {}", words::rejection(&rejection));
            }
        }
    }

    /// Types the first command that `why` names for each wait. One that is refused is a fault.
    fn heed(&mut self, out: &mut String) {
        self.fleet.settle(false);
        let id = self.group.clone().expect("begin with `fleet`");
        let view = self.group().leader_view().map(|(_, view)| Arc::clone(view));
        for waiting in view.iter().flat_map(|view| &view.waiting) {
            let phase = self.group().log.state.apps[&waiting.app].phase.name();
            let hints = cohort_view::waiting::hints(&waiting.on, &id, &waiting.app, phase);
            let commands = hints.into_iter().filter_map(|hint| match hint {
                Hint::Run(_, command) => Some(command),
                Hint::Add(..) | Hint::Meant(_) | Hint::Do(_) => None,
            });
            for command in
                commands.filter(|command| !matches!(command, Command::Publish { .. })).take(1)
            {
                let app = waiting.app.clone();
                let body = match &command {
                    Command::RolloutApprove { .. } => Body::Approve { app },
                    Command::RolloutResume { .. } => Body::Resume { app },
                    Command::RolloutRetry { .. } => Body::Retry { app },
                    Command::ChannelSet { .. } => {
                        let good = self.group().log.state.apps[&app].last_good.clone();
                        let version = good.expect("a good release").version.to_string();
                        self.fleet.channel(&app, &version);
                        let _ = writeln!(out, "{command} ({version})");
                        continue;
                    }
                    Command::GroupRemoveServer { server, .. } => {
                        let number = self.fleet.leave(&id, server);
                        let refused = self.outcome(number);
                        assert_eq!(refused, Some(None), "`why` says `{command}`");
                        let _ = writeln!(out, "{command}");
                        continue;
                    }
                    _ => {
                        let _ = writeln!(out, "{command} (not typed)");
                        continue;
                    }
                };
                let refused = self.say("ana", body);
                assert_eq!(refused, None, "`why` says `{command}`");
                let _ = writeln!(out, "{command}");
            }
        }
    }

    /// A command, and why it was refused, if it was.
    fn say(&mut self, actor: &str, body: Body) -> Option<Rejection> {
        let group = self.group.clone().expect("begin with `fleet`");
        let number = self.fleet.say(&group, actor, body);
        self.outcome(number).expect("a leader, and a network without faults")
    }

    /// Why the command of that number was refused, if it was; none if nobody knows.
    fn outcome(&mut self, number: u64) -> Option<Option<Rejection>> {
        let group = self.group.as_ref().expect("begin with `fleet`");
        self.fleet.wait_for(group, number);
        self.group().log.outcomes.remove(&number).flatten()
    }

    fn orders(&mut self, line: &Line<'_>) {
        let now_ms = self.fleet.now_ms;
        for server in line.words.iter().flat_map(|word| servers_of(word)) {
            if line.verb == "keep-orders" {
                let orders = self.group().log.state.orders(&server, false).expect("a known server");
                self.kept_orders.insert(server, orders);
            } else if let Some(orders) = self.kept_orders.get(&server).cloned() {
                // As if they were the answer to a question asked just now: worse cannot happen.
                self.group().servers.get_mut(&server).expect("a server").obey(orders, now_ms);
            }
        }
    }

    fn reports_of(&mut self, server: &ServerId) -> Vec<Report> {
        let commands = self.group().commands().into_iter();
        let reports = commands.filter_map(|(_, command)| match command.body {
            Body::Report { report } if report.server == *server => Some(report),
            _ => None,
        });
        reports.collect()
    }

    fn reports(&mut self, line: &Line<'_>, out: &mut String) {
        for server in line.words.iter().flat_map(|word| servers_of(word)) {
            for (n, report) in self.reports_of(&server).iter().enumerate() {
                let _ = writeln!(
                    out,
                    "{n}: {} under generation {}",
                    outcome_name(&report.outcome),
                    report.fence.generation
                );
            }
        }
    }

    /// The `n`th report of a server again: as it was, or (`new`) as a new report.
    fn repeat_report(&mut self, line: &Line<'_>, out: &mut String) {
        let server = servers_of(line.words[0]).remove(0);
        let all = self.reports_of(&server);
        let n: usize = line.words[1].parse().expect("a number");
        let mut report = all[n].clone();
        if line.words.contains(&"new") {
            // As if its agent had restarted and reported it again.
            let real = self.group().servers.get_mut(&server).expect("a server");
            real.crash();
            real.disk.boot_epoch += 1;
            report.boot_epoch = cohort_core::ids::BootEpoch(real.disk.boot_epoch);
            real.start();
        }
        let (before, told) = (self.group().log.state.apps.clone(), self.group().log.events.len());
        let rejection = self.say(&format!("agent {server}"), Body::Report { report });
        let log = &self.group().log;
        let ignored = |happened: &Happened| matches!(happened.event, Event::ReportIgnored { .. });
        match rejection {
            Some(rejection) => {
                let _ = writeln!(out, "refused: {}", words::rejection(&rejection));
            }
            None if log.events[told..].iter().any(ignored) => out.push_str("ignored\n"),
            None if log.state.apps == before => out.push_str("taken, nothing changed\n"),
            None => out.push_str("taken\n"),
        }
    }
}

fn outcome_name(outcome: &Outcome) -> String {
    let value = serde_json::to_value(outcome).expect("plain data");
    value["outcome"].as_str().unwrap_or_default().to_owned()
}
