//! A small language for plans of transfers, and for a leader's guidance to its servers.
//!
//! Commands are in blocks; their output follows `----`. `#` starts a comment.
//!
//! ```text
//! servers 10 [units 1024]       s0 to s9 (of more: s00 and so on), which hold nothing
//! have s1 0..64,128..192        what it holds; also `all` and `nothing`
//! rack a s0 s1 s2               their rack
//! slow s3 / well s3             cannot keep up / can
//! gone s3 / back s3             is unreachable / reachable
//! leads s0                      its agent leads the group
//! mirrors fail s0               its mirrors failed it
//! mirrors give 50               Mbit/s, all heads together
//! links carry 250               Mbit/s, what a server's link does
//! fan-out 2 failed              children of one server fell behind together
//! refuses s2 s1                 s2 accepts nothing from s1
//! barred s1                     several others refuse it
//! plan                          prints the plan, which is then in force
//! spares s4                     prints its replacements for a silent parent
//! heir                          prints the server that continues without a leader
//!
//! leader                        another leader, with an empty memory
//! gains s1 s2 95                units that they get per second, of those that their parents have
//! silent s2 s1 / wrong s2 s1    s2 reports that s1 is silent / sends wrong bytes
//! claims s1 all                 it reports holding this, whatever it has
//! rounds 5                      this often, 200 ms pass and all report; prints what is new
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cohort_core::ids::{Digest, ServerId};
use cohort_transfer::tracker::{
    Layout, Member, Participant, Situation, TransferReport, TransferRequest, plan,
};
use cohort_transfer::{Guidance, Moment, Tracker, UNIT_BYTES, UnitSet};

use crate::text;

const ROUND_MS: u64 = 200;

/// One server of a script.
#[derive(Default)]
struct Server {
    gains: u64,
    silent: BTreeSet<ServerId>,
    wrong: BTreeSet<ServerId>,
    claims: Option<UnitSet>,
    guidance: Option<Guidance>,
    said: String,
    bytes: (u64, u64),
    /// Parts of units, in thousandths.
    rest: u64,
}

/// The state of a script.
pub(crate) struct Script {
    units: u32,
    members: BTreeMap<ServerId, Member>,
    gone: BTreeMap<ServerId, Member>,
    servers: BTreeMap<ServerId, Server>,
    layout: Layout,
    link_rate: u64,
    fan_out_failed: Option<usize>,
    tracker: Tracker,
    now: Moment,
    ms: u64,
}

impl Script {
    /// Plays a script, and returns it with its actual output.
    pub(crate) fn play(written: &str) -> Result<String, String> {
        let mut script = Self {
            units: 1_024,
            members: BTreeMap::new(),
            gone: BTreeMap::new(),
            servers: BTreeMap::new(),
            layout: Layout::default(),
            link_rate: 0,
            fan_out_failed: None,
            tracker: Tracker::default(),
            now: Moment::ZERO,
            ms: 0,
        };
        let mut blocks = Vec::new();
        for block in written.trim_end().split("\n\n") {
            let commands: Vec<&str> = block.lines().take_while(|line| *line != "----").collect();
            let mut printed = Vec::new();
            for command in commands.iter().filter(|line| !line.starts_with('#')) {
                let output = script.command(command);
                printed.extend(output.map_err(|error| format!("`{command}`: {error}"))?);
            }
            let mut text = commands.join("\n");
            if !printed.is_empty() {
                text = format!("{text}\n----\n{}", printed.join("\n"));
            }
            blocks.push(text);
        }
        Ok(format!("{}\n", blocks.join("\n\n")))
    }

    fn command(&mut self, line: &str) -> Result<Vec<String>, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut printed = Vec::new();
        match words[..] {
            ["servers", count] => self.begin(count)?,
            ["servers", count, "units", units] => {
                self.units = number(units)?;
                self.begin(count)?;
            }
            ["have", who, what] => self.member(who)?.have = text::units(what, self.units)?,
            ["rack", rack, ref all @ ..] => {
                for who in all {
                    self.member(who)?.rack = Some(rack.to_owned());
                }
            }
            ["slow", who] => self.member(who)?.slow = true,
            ["well", who] => self.member(who)?.slow = false,
            ["gone", who] => {
                let (id, member) = self.members.remove_entry(&id(who)?).ok_or("is not there")?;
                self.gone.insert(id, member);
            }
            ["back", who] => {
                let (id, member) = self.gone.remove_entry(&id(who)?).ok_or("is not gone")?;
                self.members.insert(id, member);
            }
            ["leads", who] => self.member(who)?.leads = true,
            ["mirrors", "fail", who] => self.member(who)?.may_lease = false,
            ["mirrors", "give", mbit] => {
                let rate = number::<u64>(mbit)? * 125_000;
                let heads = self.layout.heads.clone();
                for head in &heads {
                    if let Some(member) = self.members.get_mut(head) {
                        member.mirror_rate = rate / heads.len() as u64;
                    }
                }
            }
            ["links", "carry", mbit] => self.link_rate = number::<u64>(mbit)? * 125_000,
            ["fan-out", count, "failed"] => self.fan_out_failed = Some(number(count)?),
            ["refuses", who, whom] => {
                let whom = id(whom)?;
                self.member(who)?.refuses.insert(whom);
            }
            ["barred", who] => self.member(who)?.barred = true,
            ["plan"] => printed = self.plan(),
            ["spares", who] => {
                let spares = self.layout.spares(&id(who)?);
                let spares: Vec<_> = spares.iter().map(ToString::to_string).collect();
                printed.push(format!("spares of {who}: {}", spares.join(" ")));
            }
            ["heir"] => {
                let heir = self.layout.heir(&self.members);
                printed.push(heir.map_or("no heir".to_owned(), |heir| format!("heir: {heir}")));
            }
            ["leader"] => {
                self.tracker.clear();
                self.servers.values_mut().for_each(|server| server.said.clear());
            }
            ["gains", ref all @ .., rate] => {
                let rate = number(rate)?;
                for who in all {
                    self.server(who)?.gains = rate;
                }
            }
            ["silent", who, whom] => {
                let whom = id(whom)?;
                self.server(who)?.silent.insert(whom);
            }
            ["wrong", who, whom] => {
                let whom = id(whom)?;
                self.server(who)?.wrong.insert(whom);
            }
            ["claims", who, what] => {
                let claimed = text::units(what, self.units)?;
                self.server(who)?.claims = Some(claimed);
            }
            ["rounds", count] => {
                for _ in 0..number::<u32>(count)? {
                    self.round(&mut printed)?;
                }
            }
            _ => return Err("is no command".to_owned()),
        }
        Ok(printed)
    }

    fn begin(&mut self, count: &str) -> Result<(), String> {
        let count: usize = number(count)?;
        for n in 0..count {
            let member = Member {
                rack: None,
                have: UnitSet::empty(self.units),
                slow: false,
                leads: false,
                may_lease: true,
                mirror_rate: 0,
                refuses: BTreeSet::new(),
                fell_behind: BTreeSet::new(),
                barred: false,
            };
            let id = id(&if count > 10 { format!("s{n:02}") } else { format!("s{n}") })?;
            self.servers.insert(id.clone(), Server::default());
            self.members.insert(id, member);
        }
        Ok(())
    }

    fn member(&mut self, name: &str) -> Result<&mut Member, String> {
        self.members.get_mut(&id(name)?).ok_or_else(|| format!("there is no {name}"))
    }

    fn server(&mut self, name: &str) -> Result<&mut Server, String> {
        self.servers.get_mut(&id(name)?).ok_or_else(|| format!("there is no {name}"))
    }

    fn plan(&mut self) -> Vec<String> {
        self.layout = plan(&Situation {
            units: self.units,
            members: &self.members,
            link_rate: self.link_rate,
            fan_out_failed: self.fan_out_failed,
            previous: &self.layout,
        });
        text::layout(&self.layout, &self.members)
    }

    /// Every server gets its units, and reports.
    fn round(&mut self, printed: &mut Vec<String>) -> Result<(), String> {
        self.ms += ROUND_MS;
        self.now += Duration::from_millis(ROUND_MS);
        let ids: Vec<ServerId> = self.members.keys().cloned().collect();
        for id in &ids {
            self.gain(id);
        }
        for id in &ids {
            let answer = self.report(id)?;
            let Some(server) = self.servers.get_mut(id) else { continue };
            let Some(guidance) = answer else { continue };
            let said = text::guidance(&guidance);
            if said != server.said {
                printed.push(format!("{:>5} ms  {id}: {said}", self.ms));
            }
            (server.said, server.guidance) = (said, Some(guidance));
        }
        Ok(())
    }

    /// What a server gains in a round: from its lease, or of what its first parent has.
    fn gain(&mut self, id: &ServerId) {
        let (Some(server), Some(member)) = (self.servers.get_mut(id), self.members.get(id)) else {
            return;
        };
        let Some(guidance) = &server.guidance else { return };
        let mut wanted = UnitSet::from_runs(self.units, &guidance.lease);
        let leased = !wanted.is_empty();
        if let Some(parent) = guidance.feeds.first().filter(|_| !leased) {
            let above = self.members.get(&parent.server).map(|above| above.have.clone());
            wanted = above.unwrap_or(wanted);
        }
        wanted.subtract(&member.have);
        server.rest += server.gains * ROUND_MS;
        let (mut count, mut have) = (server.rest / 1_000, member.have.clone());
        server.rest %= 1_000;
        while count > 0
            && let Some(run) = wanted.run_from(0, 1)
        {
            wanted.remove_run(run);
            have.insert_run(run);
            count -= 1;
            let bytes = if leased { &mut server.bytes.0 } else { &mut server.bytes.1 };
            *bytes += UNIT_BYTES;
        }
        if let Some(member) = self.members.get_mut(id) {
            member.have = have;
        }
    }

    fn report(&mut self, id: &ServerId) -> Result<Option<Guidance>, String> {
        let (server, member) = (&self.servers[id], &self.members[id]);
        let artifact: Digest = "ab".repeat(32).parse().map_err(|_| "no digest")?;
        let mut report = TransferReport {
            have: server.claims.as_ref().unwrap_or(&member.have).runs(256),
            mirror_bytes: server.bytes.0,
            peer_bytes: server.bytes.1,
            mirror_failed: !member.may_lease,
            silent: server.silent.iter().cloned().collect(),
            wrong: server.wrong.iter().cloned().collect(),
            ..TransferReport::new(artifact, u64::from(self.units) * UNIT_BYTES)
        };
        report.told(server.guidance.as_ref());
        let from = Participant {
            server: id.clone(),
            address: "-".to_owned(),
            rack: member.rack.clone(),
            leads: member.leads,
        };
        let request = TransferRequest { transfers: vec![report] };
        let answer = self.tracker.report(&from, &request, self.now);
        let guidance = answer.map_err(|error| error.to_string())?.guidance.pop();
        Ok(guidance.map(|(_, guidance)| guidance))
    }
}

fn id(name: &str) -> Result<ServerId, String> {
    name.parse().map_err(|_| format!("`{name}` is no server"))
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}
