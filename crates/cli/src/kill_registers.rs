//! Reading and writing kill registers: at the hub and the agents of the groups that they cover, or
//! at a named agent.
//!
//! Registers spread from server to server, so no single place has the latest of all of them. They
//! are collected from every place that responds.

use std::collections::BTreeMap;
use std::time::Duration;

use cohort_base::chain;
use cohort_core::ids::GroupId;
use cohort_identity::{CertificateDer, UnixTime};
use cohort_wire::agent;
use cohort_wire::http::{Call, CallError, Client, Target};
use cohort_wire::hub::KILL;
use cohort_wire::kill::{
    DamagedKill, KillAnswer, KillRegister, KillScope, Position, Registers, SignedKill,
};
use futures_util::{StreamExt as _, stream};
use serde::de::DeserializeOwned;

use crate::args::Direct;
use crate::connect::{self, Hub, agent_target};
use crate::context::Context;
use crate::failure::Failure;
use crate::fleet::know;
use crate::output::note;

/// Deadline of a call to one place. 2 s: the switch is used in an emergency.
const DEADLINE: Duration = Duration::from_secs(2);
const CONCURRENCY_MAX: usize = 64;

/// A place that has kill registers.
#[derive(Debug, Clone)]
enum Place {
    Hub(Hub),
    /// The first of these agents that responds, and the group that they belong to, if known.
    Agent {
        client: Client,
        targets: Vec<Target>,
        group: Option<GroupId>,
    },
}

/// What a place answered.
pub(crate) struct Answered<A> {
    /// The place, for people.
    pub(crate) name: String,
    holds: Holds,
    pub(crate) answer: A,
}

/// The scopes whose registers a place holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holds {
    Every,
    /// The fleet's and this group's.
    Of(GroupId),
    /// Those of an agent whose group nobody named.
    Unknown,
}

impl Holds {
    fn holds(&self, scope: &KillScope) -> bool {
        match (self, scope) {
            (Holds::Every, _) | (_, KillScope::Fleet) => true,
            (Holds::Of(own), KillScope::Group(group)) => own == group,
            (Holds::Unknown, KillScope::Group(_)) => false,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Places {
    places: Vec<Place>,
}

#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// The latest register per scope.
    pub(crate) registers: Registers<Verified>,
    /// Damaged registers, which count as on; the reason starts with the place.
    pub(crate) damaged: Vec<DamagedKill>,
    pub(crate) answered: usize,
    /// What each place that answered has, and is to have.
    places: Vec<(String, Holds, BTreeMap<KillScope, Position>)>,
    /// The errors of places that did not respond.
    pub(crate) failures: Vec<Failure>,
}

#[derive(Debug, Clone)]
pub(crate) struct Verified {
    pub(crate) register: KillRegister,
    pub(crate) by: String,
}

impl Places {
    /// The places of a scope's register: the named agent; or the hub, and for the fleet one agent
    /// of each group that responds, for a group every agent that may answer for it. With `None`,
    /// which changes nothing: the hub, and every such agent of every group.
    pub(crate) async fn of(
        context: &Context,
        direct: &Direct,
        scope: Option<&KillScope>,
    ) -> Result<Self, Failure> {
        let client = context.client()?;
        let agent = |targets, group| Place::Agent { client: client.clone(), targets, group };
        if let Some((server, address)) = direct.agent() {
            return Ok(Places { places: vec![agent(vec![agent_target(server, address)?], None)] });
        }
        let mut places = vec![Place::Hub(Hub::of(context)?)];
        let Ok((known, _)) = know(context).await else { return Ok(Places { places }) };
        for (id, group) in &known.groups {
            let targets = group.candidates.iter().map(|(server, at)| agent_target(server, at));
            let targets = targets.collect::<Result<Vec<_>, _>>()?;
            let apart = match scope {
                Some(KillScope::Group(named)) if named != id => continue,
                Some(KillScope::Fleet) => vec![targets],
                Some(KillScope::Group(_)) | None => {
                    targets.into_iter().map(|at| vec![at]).collect()
                }
            };
            let asked = apart.into_iter().filter(|targets| !targets.is_empty());
            places.extend(asked.map(|targets| agent(targets, Some(id.clone()))));
        }
        Ok(Places { places })
    }

    pub(crate) async fn gather(&self, roots: &[CertificateDer<'_>]) -> Gathered {
        let answers = self.everywhere((KILL, agent::KILL), Call::get).await;
        let mut gathered = Gathered::default();
        for answer in answers {
            gathered.add(answer, roots);
        }
        gathered
    }

    /// Writes a register to every place. Returns how many accepted it, and the other errors.
    pub(crate) async fn give(&self, signed: &SignedKill) -> (usize, Vec<Failure>) {
        // Idempotent.
        let give = |path| Call::post(path, signed).idempotent();
        let answers: Vec<Result<Answered<KillAnswer>, _>> =
            self.everywhere((KILL, agent::KILL), give).await;
        let mut taken = 0;
        let mut failures = Vec::new();
        for answer in answers {
            match answer.map(|answered| answered.answer) {
                Ok(answer) if answer.registers.contains(signed) => taken += 1,
                Ok(_) => failures.push(Failure::new("conflict", "it has a newer register already")),
                Err(error) => failures.push(error.into()),
            }
        }
        (taken, failures)
    }

    /// Asks every place: the hub and agents at a path each.
    pub(crate) async fn everywhere<A: DeserializeOwned>(
        &self,
        (at_hub, at_agent): (&'static str, &'static str),
        call: impl Fn(&'static str) -> Call,
    ) -> Vec<Result<Answered<A>, CallError>> {
        let calls: Vec<(Place, Call)> = self
            .places
            .iter()
            .map(|place| match place {
                Place::Hub(_) => (place.clone(), call(at_hub).deadline(DEADLINE)),
                Place::Agent { .. } => (place.clone(), call(at_agent).deadline(DEADLINE)),
            })
            .collect();
        stream::iter(calls)
            .map(async |(place, call)| {
                let (name, holds, answer) = match place {
                    Place::Hub(hub) => ("the hub".to_owned(), Holds::Every, hub.call(call).await),
                    Place::Agent { client, targets, group } => {
                        let holds = group.map_or(Holds::Unknown, Holds::Of);
                        let (at, answer) = connect::ask(&client, &targets, call).await?;
                        (targets[at].peer.name.to_string(), holds, Ok(answer))
                    }
                };
                Ok(Answered { name, holds, answer: answer? })
            })
            .buffer_unordered(CONCURRENCY_MAX)
            .collect()
            .await
    }
}

impl Gathered {
    fn add(
        &mut self,
        answered: Result<Answered<KillAnswer>, CallError>,
        roots: &[CertificateDer<'_>],
    ) {
        let Answered { name, holds, answer } = match answered {
            Ok(answered) => answered,
            Err(error) => return self.failures.push(error.into()),
        };
        let KillAnswer { registers, mut damaged, .. } = answer;
        for DamagedKill { reason, .. } in &mut damaged {
            *reason = format!("{name}: {reason}");
        }
        self.answered += 1;
        let mut has: BTreeMap<KillScope, Position> = damaged
            .iter()
            .map(|damaged| (damaged.scope.clone(), Position::damaged(damaged.epoch)))
            .collect();
        self.damaged.extend(damaged);
        for signed in &registers {
            match verify(signed, roots) {
                Ok(verified) => {
                    let scope = verified.register.scope.clone();
                    has.insert(scope.clone(), verified.register.position());
                    self.registers.merge(scope, verified.register.position(), verified);
                }
                Err(reason) => note(&format!("warning: {reason}")),
            }
        }
        self.places.push((name, holds, has));
    }

    /// The places that answered and that a scope's register has not reached yet, and the number of
    /// those it is for.
    pub(crate) fn spread(&self, scope: &KillScope) -> (Vec<&str>, usize) {
        let latest = self.registers.position(scope);
        let asked = || {
            self.places
                .iter()
                .filter(|(_, holds, has)| holds.holds(scope) || has.contains_key(scope))
        };
        let behind = asked().filter(|(.., has)| has.get(scope).copied() < latest);
        (behind.map(|(name, ..)| name.as_str()).collect(), asked().count())
    }

    /// Whether a place that answered is stopped.
    pub(crate) fn is_on_anywhere(&self) -> bool {
        self.places.iter().any(|(.., has)| has.values().any(|position| position.on))
    }

    /// The position of the next change of a scope.
    pub(crate) fn next(&self, scope: &KillScope, on: bool, now_s: u64) -> Position {
        let damaged = self.damaged.iter().filter(|damaged| damaged.scope == *scope);
        let damaged: Vec<u64> = damaged.map(|damaged| damaged.epoch).collect();
        Position::next(self.registers.position(scope), &damaged, on, now_s)
    }
}

/// Verifies a register. Its author's certificate may have expired since; it only had to be valid
/// when the register was made.
fn verify(signed: &SignedKill, roots: &[CertificateDer<'_>]) -> Result<Verified, String> {
    let unverified: KillRegister = serde_json::from_slice(&signed.0.body)
        .map_err(|error| format!("cannot parse a kill register: {}", chain(&error)))?;
    let then = UnixTime::since_unix_epoch(Duration::from_secs(unverified.at));
    let verified = signed.verify(roots, UnixTime::now()).or_else(|_| signed.verify(roots, then));
    let (by, register) = verified.map_err(|error| chain(&error))?;
    Ok(Verified { register, by: by.to_string() })
}

#[cfg(test)]
#[path = "kill_registers_test.rs"]
mod kill_registers_test;
