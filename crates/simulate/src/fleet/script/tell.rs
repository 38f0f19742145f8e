//! What a script prints: what happened, how things are, and why something waits.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use cohort_core::ids::ServerId;
use cohort_core::phase::Phase;
use cohort_view::events::{app_of, sentence};
use cohort_view::words;

use super::{Line, Script, servers_of};
use crate::fleet::build;
use crate::fleet::log::Happened;

impl Script {
    /// What happened since it was last told.
    pub(super) fn tell(&mut self, steps: bool, out: &mut String) {
        let many = self.fleet.groups.len() > 1;
        for (id, group) in &self.fleet.groups {
            let apps = group.log.state.apps.len() > 1;
            let told = self.told.entry(id.clone()).or_default();
            for Happened { at_ms, event, wave } in &group.log.events[*told..] {
                let wave =
                    wave.as_ref().map(|(n, servers)| format!("wave {n}: {}", ranges(servers)));
                let Some(mut text) = wave.or_else(|| sentence(event, steps)) else { continue };
                if apps && let Some(app) = app_of(event) {
                    text = format!("{app}: {text}");
                }
                if many {
                    text = format!("{id}: {text}");
                }
                if self.times {
                    #[allow(clippy::cast_precision_loss, reason = "small numbers, for people")]
                    let seconds = *at_ms as f64 / 1000.0;
                    text = format!("{seconds:.1}s {text}");
                }
                let _ = writeln!(out, "{text}");
            }
            *told = group.log.events.len();
        }
    }

    pub(super) fn state(&mut self, out: &mut String) {
        for (id, group) in &self.fleet.groups {
            for (app_id, app) in &group.log.state.apps {
                let mut line = String::new();
                if self.fleet.groups.len() > 1 {
                    let _ = write!(line, "{id}: ");
                }
                if group.log.state.apps.len() > 1 {
                    let _ = write!(line, "{app_id}: ");
                }
                let _ = write!(line, "{}", app.phase.name());
                if let Phase::RollingBack { reason, .. } | Phase::Held { reason, .. } = &app.phase {
                    let _ = write!(line, " ({})", words::reason(reason));
                }
                if let (Some(rollout), Some((servers, _))) = (app.phase.rollout(), app.phase.wave())
                {
                    let _ = write!(line, " {} ({})", rollout.waves, ranges(servers));
                }
                if let Some(rollout) = app.phase.rollout() {
                    let _ = write!(line, ", rollout of {}", rollout.release.version);
                    if !rollout.lost.is_empty() {
                        let _ = write!(line, ", without {}", ranges(&rollout.lost));
                    }
                }
                let good =
                    app.last_good.as_ref().map_or("none".into(), |good| good.version.to_string());
                let _ = writeln!(out, "{line}, last good {good}");
            }
        }
    }

    pub(super) fn servers(&mut self, line: &Line<'_>, out: &mut String) {
        let only = line.words.first().map(|word| servers_of(word));
        let many = self.fleet.groups.len() > 1;
        for (id, group) in &self.fleet.groups {
            for (app_id, app) in &group.log.state.apps {
                let mut alike: BTreeMap<String, BTreeSet<ServerId>> = BTreeMap::new();
                for (server, here) in &app.servers {
                    if only.as_ref().is_some_and(|only| !only.contains(server)) {
                        continue;
                    }
                    let running =
                        here.running.as_ref().map_or("nothing".into(), |r| r.version.to_string());
                    let mut text = running;
                    text.push_str(match (here.unsure, here.in_service) {
                        (true, _) => ", unknown",
                        (false, true) => ", in service",
                        (false, false) => ", out",
                    });
                    if let Some(activation) = &here.activation {
                        let to = activation.release.as_ref();
                        let to = to.map_or("nothing".into(), |r| r.version.to_string());
                        let stage = serde_json::to_value(&activation.stage).expect("plain data");
                        let stage = stage["stage"].as_str().unwrap_or_default();
                        let _ = write!(text, ", {stage} {to}");
                    }
                    if let Some(debt) = &here.debt {
                        let _ = write!(text, ", owes ({})", words::debt(&debt.reason));
                    }
                    let service = group.servers.get(server).and_then(|s| s.services.get(app_id));
                    let really = service.and_then(|s| s.release.as_ref().filter(|_| s.serves()));
                    if here.in_service != really.is_some()
                        || (here.in_service && really != here.running.as_ref())
                    {
                        let really = really.map_or("nothing".into(), |r| r.version.to_string());
                        let _ = write!(text, ", really serves {really}");
                    }
                    alike.entry(text).or_default().insert(server.clone());
                }
                let mut lines: Vec<(BTreeSet<ServerId>, String)> =
                    alike.into_iter().map(|(text, servers)| (servers, text)).collect();
                lines.sort();
                for (servers, text) in lines {
                    let group = if many { format!("{id}: ") } else { String::new() };
                    let app = if self.fleet.groups[id].log.state.apps.len() > 1 {
                        format!("{app_id} on ")
                    } else {
                        String::new()
                    };
                    let _ = writeln!(out, "{group}{app}{}: {text}", ranges(&servers));
                }
            }
        }
    }

    pub(super) fn why(&mut self, out: &mut String) {
        self.fleet.settle(false);
        let many = self.fleet.groups.len() > 1;
        for (id, group) in &self.fleet.groups {
            let view = group.leader_view().map(|(_, view)| Arc::clone(view));
            let placing = view.as_ref().and_then(|view| view.placing.as_ref());
            if let Some((on, _)) = placing {
                let group = if many { format!("{id}: ") } else { String::new() };
                let _ = writeln!(out, "{group}{}", cohort_view::waiting::placing_sentence(on));
            }
            if let Some(view) = view.as_ref().filter(|view| !view.mute.is_empty()) {
                let group = if many { format!("{id}: ") } else { String::new() };
                let mute = ranges(&view.mute);
                let _ = writeln!(out, "{group}the leader does not hear the members on {mute}");
            }
            for waiting in view.iter().flat_map(|view| &view.waiting) {
                let mut text = cohort_view::waiting::sentence(&waiting.on);
                if group.log.state.apps.len() > 1 {
                    text = format!("{}: {text}", waiting.app);
                }
                if many {
                    text = format!("{id}: {text}");
                }
                let _ = writeln!(out, "{text}");
            }
        }
    }

    /// Which machine the group takes for each of these servers, and which one it refused lately.
    pub(super) fn hosts(&mut self, line: &Line<'_>, out: &mut String) {
        let group = self.group();
        let now_ms = group.log.now_ms;
        for server in line.words.iter().flat_map(|word| servers_of(word)) {
            let Some(known) = group.log.state.servers.get(&server) else { continue };
            let _ = write!(out, "{server} is {}, at {}", known.process.host, known.address);
            let refused = group.leader_view().and_then(|(_, view)| view.copies.of(&server, now_ms));
            match refused {
                Some(refused) => writeln!(out, "; {} is refused", refused.host),
                None => writeln!(out),
            }
            .expect("a string");
        }
    }

    /// Who votes, and who only holds the log, as the leader has applied.
    pub(super) fn voters(&mut self, out: &mut String) {
        self.fleet.settle(false);
        let group = self.group();
        let Some((_, view)) = group.leader_view() else {
            out.push_str("nobody leads\n");
            return;
        };
        let configuration = &view.raft.configuration;
        for (members, does) in [
            (&configuration.voters, "vote"),
            (&configuration.outgoing, "vote until the change ends"),
            (&configuration.standbys, "stand by"),
        ] {
            let servers: BTreeSet<ServerId> = members
                .iter()
                .filter_map(|member| group.log.carriers.get(member).cloned())
                .collect();
            if !servers.is_empty() {
                let _ = writeln!(out, "{} {does}", ranges(&servers));
            }
        }
    }

    /// What each server is ordered to fetch, and what it has, per release.
    pub(super) fn fetching(&mut self, out: &mut String) {
        let group = self.group();
        let killed = group.servers.values().any(|server| server.kill.stopping().is_some());
        let mut ordered: BTreeMap<String, BTreeSet<ServerId>> = BTreeMap::new();
        for server in group.log.state.servers.keys() {
            let orders = group.log.state.orders(server, killed).expect("a known server");
            for fetch in orders.apps.iter().flat_map(|app| &app.fetch) {
                let version = fetch.release.version.to_string();
                ordered.entry(version).or_default().insert(server.clone());
            }
        }
        if ordered.is_empty() {
            out.push_str("nobody fetches\n");
        }
        for (version, servers) in ordered {
            let _ = writeln!(out, "{version} is to be fetched by {}", ranges(&servers));
        }
    }

    pub(super) fn history(&mut self, line: &Line<'_>, out: &mut String) {
        let app = line.app();
        for entry in &self.group().log.state.apps[&app].history {
            let ending = serde_json::to_value(entry.ending).expect("plain data");
            let ending = ending.as_str().unwrap_or_default().to_owned();
            let _ =
                write!(out, "{} {ending} in {} waves, by {}", entry.version, entry.waves, entry.by);
            match &entry.reason {
                Some(reason) => writeln!(out, " ({})", words::reason(reason)).expect("a string"),
                None => out.push('\n'),
            }
        }
    }

    pub(super) fn verdicts(&mut self, out: &mut String) {
        for verdict in &self.fleet.registry.view.verdicts {
            let _ = write!(out, "{}: {} is ", verdict.group, verdict.version);
            let _ = match &verdict.bad {
                None => writeln!(out, "good"),
                Some(reason) => writeln!(out, "bad: {}", words::reason(reason)),
            };
        }
    }
}

/// Neighbours in one word: `s01-s03 s07`.
fn ranges(servers: &BTreeSet<ServerId>) -> String {
    let numbers: Vec<usize> = servers
        .iter()
        .map(|server| server.as_str().trim_start_matches('s').parse().expect("a number"))
        .collect();
    let mut words: Vec<String> = Vec::new();
    let mut i = 0;
    while i < numbers.len() {
        let mut j = i;
        while j + 1 < numbers.len() && numbers[j + 1] == numbers[j] + 1 {
            j += 1;
        }
        let name = build::server(numbers[i]);
        words.push(if j > i {
            format!("{name}-{}", build::server(numbers[j]))
        } else {
            name.to_string()
        });
        i = j + 1;
    }
    if words.is_empty() { "none".into() } else { words.join(" ") }
}
