//! Reading and writing kill registers: at the hub and the agents of the groups that they cover, or
//! at a named agent.
//!
//! Registers spread from server to server, so no single place has the latest of all of them. They
//! are collected from every place that responds.

use std::time::Duration;

use cohort_base::chain;
use cohort_identity::{CertificateDer, UnixTime};
use cohort_wire::agent;
use cohort_wire::http::{Call, CallError, Client, Target};
use cohort_wire::hub::KILL;
use cohort_wire::kill::{
    DamagedKill, KillAnswer, KillRegister, KillScope, Position, Registers, SignedKill,
};
use futures_util::{StreamExt as _, stream};

use crate::args::Direct;
use crate::connect::{self, Hub, agent_target};
use crate::context::Context;
use crate::failure::Failure;
use crate::fleet::know;
use crate::output::note;

/// Deadline of a call to one place. 2 s: the switch is used in an emergency.
const DEADLINE: Duration = Duration::from_secs(2);
const CONCURRENCY_MAX: usize = 16;

/// A place that has kill registers.
#[derive(Debug, Clone)]
enum Place {
    Hub(Hub),
    /// The first of these agents that responds.
    Agent {
        client: Client,
        targets: Vec<Target>,
    },
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
    /// The errors of places that did not respond.
    pub(crate) failures: Vec<Failure>,
}

#[derive(Debug, Clone)]
pub(crate) struct Verified {
    pub(crate) register: KillRegister,
    pub(crate) by: String,
}

impl Places {
    /// The places of a scope's register, or with `None` of all: the named agent; or the hub and,
    /// of each group that the scope covers, one agent that responds. A group's own register goes
    /// to every agent that may answer for it.
    pub(crate) async fn of(
        context: &Context,
        direct: &Direct,
        scope: Option<&KillScope>,
    ) -> Result<Self, Failure> {
        let client = context.client()?;
        let agent = |targets| Place::Agent { client: client.clone(), targets };
        if let Some((server, address)) = direct.agent() {
            return Ok(Places { places: vec![agent(vec![agent_target(server, address)?])] });
        }
        let mut places = vec![Place::Hub(Hub::of(context)?)];
        if let Ok((known, _)) = know(context).await {
            let candidates: Vec<Vec<_>> = match scope {
                Some(KillScope::Group(group)) => {
                    let all =
                        known.groups.get(group).into_iter().flat_map(|group| &group.candidates);
                    all.map(|one| vec![one]).collect()
                }
                Some(KillScope::Fleet) | None => {
                    known.groups.values().map(|group| group.candidates.iter().collect()).collect()
                }
            };
            for of_one in candidates.into_iter().filter(|of_one| !of_one.is_empty()) {
                let targets = of_one.into_iter().map(|(server, at)| agent_target(server, at));
                places.push(agent(targets.collect::<Result<_, _>>()?));
            }
        }
        Ok(Places { places })
    }

    pub(crate) async fn gather(&self, roots: &[CertificateDer<'_>]) -> Gathered {
        let answers = self.everywhere(Call::get).await;
        let mut gathered = Gathered::default();
        for answer in answers {
            gathered.add(answer, roots);
        }
        gathered
    }

    /// Writes a register to every place. Returns how many accepted it, and the other errors.
    pub(crate) async fn give(&self, signed: &SignedKill) -> (usize, Vec<Failure>) {
        // Idempotent.
        let answers = self.everywhere(|path| Call::post(path, signed).idempotent()).await;
        let mut taken = 0;
        let mut failures = Vec::new();
        for answer in answers {
            match answer {
                Ok(answer) if answer.registers.contains(signed) => taken += 1,
                Ok(_) => failures.push(Failure::new("conflict", "it has a newer register already")),
                Err(error) => failures.push(error.into()),
            }
        }
        (taken, failures)
    }

    async fn everywhere(
        &self,
        call: impl Fn(&'static str) -> Call,
    ) -> Vec<Result<KillAnswer, CallError>> {
        let calls: Vec<(Place, Call)> = self
            .places
            .iter()
            .map(|place| match place {
                Place::Hub(_) => (place.clone(), call(KILL).deadline(DEADLINE)),
                Place::Agent { .. } => (place.clone(), call(agent::KILL).deadline(DEADLINE)),
            })
            .collect();
        stream::iter(calls)
            .map(async |(place, call)| {
                let (name, answer) = match place {
                    Place::Hub(hub) => ("the hub".to_owned(), hub.call(call).await),
                    Place::Agent { client, targets } => {
                        match connect::ask(&client, &targets, call).await {
                            Ok((at, answer)) => (targets[at].peer.name.to_string(), Ok(answer)),
                            Err(error) => (String::new(), Err(error)),
                        }
                    }
                };
                let mut answer: KillAnswer = answer?;
                for DamagedKill { reason, .. } in &mut answer.damaged {
                    *reason = format!("{name}: {reason}");
                }
                Ok(answer)
            })
            .buffered(CONCURRENCY_MAX)
            .collect()
            .await
    }
}

impl Gathered {
    fn add(&mut self, answer: Result<KillAnswer, CallError>, roots: &[CertificateDer<'_>]) {
        let KillAnswer { registers, damaged, .. } = match answer {
            Ok(answer) => answer,
            Err(error) => return self.failures.push(error.into()),
        };
        self.answered += 1;
        self.damaged.extend(damaged);
        for signed in &registers {
            match verify(signed, roots) {
                Ok(verified) => {
                    let scope = verified.register.scope.clone();
                    self.registers.merge(scope, verified.register.position(), verified);
                }
                Err(reason) => note(&format!("warning: {reason}")),
            }
        }
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
