//! Explained examples: a few members on a perfect network, driven step by step.
//!
//! A script is text. A block has some commands, a line `----`, and their output:
//!
//! ```text
//! group 1 2 3          found a group with these voters, and start them
//! join 4               start a member with an empty disk
//! campaign 1           tick member 1 alone until it asks for votes
//! tick 1 5             tick member 1 five times
//! ticks 5 tick every member five times, delivering in between
//! deliver              deliver until nothing is in flight
//! deliver 2            deliver only messages for member 2, once
//! lose                 lose everything in flight
//! cut 1 2 | 3 4 5      cut the network between the two sides
//! heal                 reconnect it
//! propose 1 hello      propose a command on member 1
//! read 2               start a read on member 2
//! transfer 1 2         transfer leadership from member 1 to member 2
//! handover 1           transfer leadership to the member that member 1 chooses
//! change 1 2 3 / 4     on member 1, change to voters 2 3 and standbys 4
//! compact 1            take a snapshot on member 1
//! crash 1              kill member 1; what was not durable is lost
//! start 1              start it again
//! status               a line for every member
//! log 1                the stored log of member 1
//! quiet                print only status and log for the rest of the block
//! ```
//!
//! Everything else is printed as it happens: delivered messages, role changes, applied commands,
//! answered reads.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use cohort_consensus::{
    AppendReply, Config, Envelope, Index, Message, Node, RaftId, ReadContext, VoteReply,
    VoteRequest,
};
use cohort_store::{Disk, EntryKind, FaultyStore, LogStore as _};

/// A group driven by a script.
#[derive(Default)]
pub struct Script {
    members: BTreeMap<RaftId, Scripted>,
    mail: Vec<Envelope>,
    cut: BTreeSet<(RaftId, RaftId)>,
    out: String,
    quiet: bool,
}

struct Scripted {
    disk: Disk,
    boot_epoch: u64,
    node: Option<Node<FaultyStore>>,
    state: Vec<String>,
}

/// Maximum rounds of messages in one `deliver`; more must be a loop.
const DELIVERIES_MAX: usize = 10_000;
/// The error for an unknown verb, or one with the wrong arguments.
const UNKNOWN: &str = "unknown command, or wrong arguments";

fn id(word: &str) -> Result<RaftId, String> {
    word.parse().map(RaftId).map_err(|_| format!("{word:?} is not a member number"))
}

fn number(word: &str) -> Result<u32, String> {
    word.parse().map_err(|_| format!("{word:?} is not a number"))
}

fn ids<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<BTreeSet<RaftId>, String> {
    words.into_iter().map(id).collect()
}

impl Script {
    /// Runs a whole file and returns it with its actual output.
    ///
    /// # Errors
    /// If a line cannot be executed.
    pub fn play(text: &str) -> Result<String, String> {
        let mut script = Script::default();
        let mut played = String::new();
        for block in text.split("\n\n") {
            let block = block.trim_matches('\n');
            let (commands, expected) = match block.split_once("\n----") {
                Some((commands, _)) => (commands, true),
                None => (block, false),
            };
            if !played.is_empty() {
                played.push('\n');
            }
            played.push_str(commands);
            played.push('\n');
            if !expected {
                continue;
            }
            script.quiet = false;
            for line in commands.lines().filter(|line| !line.starts_with('#')) {
                script.run(line).map_err(|error| format!("{line}: {error}"))?;
            }
            let out = std::mem::take(&mut script.out);
            played.push_str("----\n");
            played.push_str(if out.is_empty() { "ok\n" } else { &out });
        }
        Ok(played)
    }

    fn say(&mut self, line: &str) {
        if !self.quiet {
            self.out.push_str(line);
            self.out.push('\n');
        }
    }

    fn run(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some((verb, rest)) = words.split_first() else { return Ok(()) };
        match (*verb, rest) {
            ("group", voters) => self.found(&ids(voters.iter().copied())?)?,
            ("join", [member]) => {
                self.add(id(member)?, Disk::new());
                self.start(id(member)?)?;
            }
            ("campaign", [member]) => self.campaign(id(member)?)?,
            ("tick", [member, count]) => {
                for _ in 0..number(count)? {
                    self.tick(id(member)?)?;
                }
            }
            ("ticks", [count]) => {
                for _ in 0..number(count)? {
                    for member in self.running() {
                        self.tick(member)?;
                    }
                    self.deliver_all()?;
                }
            }
            ("deliver" | "lose" | "cut" | "heal", rest) => self.network(verb, rest)?,
            ("propose" | "read" | "transfer" | "handover" | "change", [member, rest @ ..]) => {
                self.request(verb, id(member)?, rest)?;
                self.settle(id(member)?)?;
            }
            ("compact", [member]) => self.compact(id(member)?)?,
            ("crash", [member]) => {
                let member = self.members.get_mut(&id(member)?).ok_or("no such member")?;
                member.node = None;
                member.disk.crash();
            }
            ("start", [member]) => self.start(id(member)?)?,
            ("status", []) => self.status(),
            ("log", [member]) => self.log(id(member)?)?,
            ("quiet", []) => self.quiet = true,
            _ => return Err(UNKNOWN.to_owned()),
        }
        Ok(())
    }

    fn found(&mut self, voters: &BTreeSet<RaftId>) -> Result<(), String> {
        for member in voters {
            let disk = Disk::new();
            let mut store = FaultyStore::open(&disk).map_err(|e| e.to_string())?;
            let config = config(*member, 1);
            Node::bootstrap(&mut store, &config, voters.iter().copied(), Vec::new())
                .map_err(|e| e.to_string())?;
            self.add(*member, disk);
            self.start(*member)?;
        }
        Ok(())
    }

    fn network(&mut self, verb: &str, rest: &[&str]) -> Result<(), String> {
        match (verb, rest) {
            ("deliver", []) => self.deliver_all()?,
            ("deliver", [member]) => {
                let to = id(member)?;
                let now = self.mail.extract_if(.., |envelope| envelope.to == to).collect();
                self.deliver(now)?;
            }
            ("lose", []) => self.mail.clear(),
            ("cut", sides) => {
                let mut sides = sides.split(|word| *word == "|");
                let (one, other) = (sides.next().unwrap_or(&[]), sides.next().unwrap_or(&[]));
                for a in ids(one.iter().copied())? {
                    for b in ids(other.iter().copied())? {
                        self.cut.extend([(a, b), (b, a)]);
                    }
                }
            }
            ("heal", []) => self.cut.clear(),
            _ => return Err(UNKNOWN.to_owned()),
        }
        Ok(())
    }

    /// Sends a request to a member, which may refuse it.
    fn request(&mut self, verb: &str, member: RaftId, rest: &[&str]) -> Result<(), String> {
        let node = self.node(member)?;
        let refused = |error: &dyn std::error::Error| Some(format!("refused: {error}"));
        let said = match (verb, rest) {
            ("propose", [text]) => match node.propose(text.as_bytes().to_vec()) {
                Ok((index, term)) => Some(format!("proposed at {index} in term {term}")),
                Err(error) => refused(&error),
            },
            ("read", []) => match node.read() {
                Ok(read) => Some(format!("read {} begins on {member}", read.0)),
                Err(error) => refused(&error),
            },
            ("transfer", [to]) => {
                node.transfer_leadership(id(to)?).err().and_then(|error| refused(&error))
            }
            ("handover", []) => match node.hand_over() {
                Ok(to) => Some(format!("{member} hands over to {to}")),
                Err(error) => refused(&error),
            },
            ("change", members) => {
                let mut halves = members.split(|word| *word == "/");
                let voters = ids(halves.next().unwrap_or(&[]).iter().copied())?;
                let standbys = ids(halves.next().unwrap_or(&[]).iter().copied())?;
                let changed = node.change_membership(&voters, &standbys);
                changed.err().and_then(|error| refused(&error))
            }
            _ => return Err(UNKNOWN.to_owned()),
        };
        if let Some(line) = said {
            self.say(&line);
        }
        Ok(())
    }

    fn compact(&mut self, member: RaftId) -> Result<(), String> {
        let state = self.members.get(&member).map(|m| m.state.join(" "));
        let state = state.unwrap_or_default().into_bytes();
        let applied = self.node(member)?.applied();
        match self.node(member)?.compact(applied, state) {
            Ok(()) => self.say(&format!("{member} has a snapshot at {applied}")),
            Err(error) => self.say(&format!("refused: {error}")),
        }
        Ok(())
    }

    fn tick(&mut self, member: RaftId) -> Result<(), String> {
        self.node(member)?.tick();
        self.settle(member)
    }

    fn running(&self) -> Vec<RaftId> {
        let runs = |(id, member): (&RaftId, &Scripted)| member.node.is_some().then_some(*id);
        self.members.iter().filter_map(runs).collect()
    }

    fn node(&mut self, member: RaftId) -> Result<&mut Node<FaultyStore>, String> {
        let member = self.members.get_mut(&member).ok_or("no such member")?;
        member.node.as_mut().ok_or_else(|| "it is not running".to_owned())
    }

    fn add(&mut self, member: RaftId, disk: Disk) {
        let scripted = Scripted { disk, boot_epoch: 0, node: None, state: Vec::new() };
        self.members.insert(member, scripted);
    }

    fn start(&mut self, member: RaftId) -> Result<(), String> {
        let scripted = self.members.get_mut(&member).ok_or("no such member")?;
        scripted.boot_epoch += 1;
        let store = FaultyStore::open(&scripted.disk).map_err(|e| e.to_string())?;
        let node = Node::open(store, config(member, scripted.boot_epoch));
        scripted.node = Some(node.map_err(|e| e.to_string())?);
        scripted.state.clear();
        // Do not print the founding snapshot.
        let quiet = std::mem::replace(&mut self.quiet, true);
        let result = self.settle(member);
        self.quiet = quiet;
        result
    }

    fn campaign(&mut self, member: RaftId) -> Result<(), String> {
        for _ in 0..100 {
            let before = self.mail.len();
            self.tick(member)?;
            let asks = |e: &Envelope| matches!(e.message, Message::PreVote(_));
            if self.mail[before..].iter().any(asks) || self.node(member)?.status().is_leader() {
                return Ok(());
            }
        }
        Err("it never asked for votes".to_owned())
    }

    fn deliver_all(&mut self) -> Result<(), String> {
        for _ in 0..DELIVERIES_MAX {
            if self.mail.is_empty() {
                return Ok(());
            }
            let now = std::mem::take(&mut self.mail);
            self.deliver(now)?;
        }
        Err("the messages loop forever".to_owned())
    }

    fn deliver(&mut self, envelopes: Vec<Envelope>) -> Result<(), String> {
        for envelope in envelopes {
            let Envelope { from, to, .. } = envelope;
            let what = describe(&envelope.message);
            if self.cut.contains(&(from, to)) {
                self.say(&format!("{from} x {to}  {what}"));
                continue;
            }
            let Some(node) = self.members.get_mut(&to).and_then(|m| m.node.as_mut()) else {
                self.say(&format!("{from} x {to}  {what}"));
                continue;
            };
            node.receive(&envelope);
            self.say(&format!("{from} > {to}  {what}"));
            self.settle(to)?;
        }
        Ok(())
    }

    fn settle(&mut self, member: RaftId) -> Result<(), String> {
        let effects = self.node(member)?.drain().map_err(|e| e.to_string())?;
        if let Some((role, term, leader)) = effects.role_changed {
            let leader = leader.map_or("nobody".to_owned(), |id| id.to_string());
            let role = format!("{role:?}").to_lowercase();
            self.say(&format!("{member}: {role} in term {term}, led by {leader}"));
        }
        let state = &mut self.members.get_mut(&member).ok_or("no such member")?.state;
        let mut lines = Vec::new();
        if let Some(snapshot) = effects.installed_snapshot {
            let text = String::from_utf8_lossy(&snapshot.data).into_owned();
            lines.push(format!("{member}: restores {} [{text}]", snapshot.index));
            *state = text.split_whitespace().map(str::to_owned).collect();
        }
        for command in effects.committed {
            let text = String::from_utf8_lossy(&command.data).into_owned();
            lines.push(format!("{member}: applies {} {text}", command.index));
            state.push(text);
        }
        if let Some(configuration) = effects.configuration {
            lines.push(format!("{member}: {configuration}"));
        }
        for (read, index) in effects.reads_ready {
            lines.push(format!("{member}: read {} sees {index} [{}]", read.0, state.join(" ")));
        }
        lines.iter().for_each(|line| self.say(line));
        self.mail.extend(effects.messages.into_iter().map(|envelope| *envelope));
        Ok(())
    }

    fn status(&mut self) {
        for (member, scripted) in &self.members {
            let state = scripted.state.join(" ");
            let _ = match &scripted.node {
                None => writeln!(self.out, "{member}: down"),
                Some(node) => {
                    let status = node.status();
                    writeln!(
                        self.out,
                        "{member}: {} term={} commit={} applied={} {} [{state}]",
                        format!("{:?}", status.role).to_lowercase(),
                        status.term,
                        status.commit,
                        status.applied,
                        status.configuration,
                    )
                }
            };
        }
    }

    fn log(&mut self, member: RaftId) -> Result<(), String> {
        let image = self.node(member)?.store().image().clone();
        let (index, term) = image.base();
        let mut line = format!("{member}: base {index}/{term}");
        for entry in image.entries(Index(0), image.last_index().next()) {
            let what = match entry.kind {
                EntryKind::Membership => "membership".into(),
                EntryKind::Data => String::from_utf8_lossy(&entry.data),
            };
            let _ = write!(line, " | {}/{} {what}", entry.index, entry.term);
        }
        self.out.push_str(line.trim_end());
        self.out.push('\n');
        Ok(())
    }
}

fn config(member: RaftId, boot_epoch: u64) -> Config {
    let mut config = Config::new("scripted", 1, member);
    config.boot_epoch = boot_epoch;
    config.limits.retained_entries = 0;
    // The scripts explain the rest.
    config.weaken.no_proof = true;
    config
}

/// A short description of a message; `index/term` names an entry.
fn describe(message: &Message) -> String {
    let vote = |name: &str, request: &VoteRequest| {
        let VoteRequest { term, last, last_term, handed_over, .. } = request;
        let why = if *handed_over { ", handed over" } else { "" };
        format!("{name} for term {term}, my log ends at {last}/{last_term}{why}")
    };
    let voted = |name: &str, reply: &VoteReply| {
        let VoteReply { term, refused, .. } = reply;
        format!("{name} in term {term}: {}", if *refused { "no" } else { "yes" })
    };
    let with = |read: &Option<ReadContext>| {
        read.map_or(String::new(), |r| format!(", confirms read {} of {}", r.counter, r.member))
    };
    match message {
        Message::Append { term, previous, previous_term, commit, entries } => {
            let list: Vec<String> =
                entries.iter().map(|e| format!("{}/{}", e.index, e.term)).collect();
            let list = if list.is_empty() { "nothing".to_owned() } else { list.join(" ") };
            format!("append {list} after {previous}/{previous_term}, commit {commit}, term {term}")
        }
        Message::AppendReply(AppendReply { index, rejected, .. }) => match rejected {
            None => format!("have {index}"),
            Some((hint, term)) => format!("no match at {index}, perhaps at {hint}/{term}"),
        },
        Message::PreVote(request) => vote("would you vote", request),
        Message::PreVoteReply(reply) => voted("would vote", reply),
        Message::Vote(request) => vote("vote", request),
        Message::VoteReply(reply) => voted("vote", reply),
        Message::Snapshot { snapshot, .. } => {
            format!("snapshot at {}/{}, {}", snapshot.index, snapshot.term, snapshot.configuration)
        }
        Message::Heartbeat { term, commit, read } => {
            format!("heartbeat in term {term}, commit {commit}{}", with(read))
        }
        Message::HeartbeatReply { read, .. } => format!("alive{}", with(read)),
        Message::TakeOver { term } => format!("take over from term {term}"),
        Message::ReadRequest { read } => format!("where may I read? read {}", read.counter),
        Message::ReadReply { index, read, .. } => format!("read {} at {index}", read.counter),
        Message::Present { found } => format!("I have started, my log was written {found} times"),
        Message::Vouch { verdict, .. } => format!("you are {verdict:?}").to_lowercase(),
        Message::Marks { marks } => format!("marks of {} members", marks.len()),
    }
}
