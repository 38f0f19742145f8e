//! Where kill registers are read and given: the hub, one agent of each group, or one named agent.
//!
//! Registers travel from server to server, so that no single place knows all of them at once. What
//! is known is therefore gathered from wherever somebody answers.

use std::collections::BTreeMap;
use std::time::Duration;

use cohort_identity::{CertificateDer, UnixTime};
use cohort_wire::agent;
use cohort_wire::http::{Call, CallError, Client, Target};
use cohort_wire::hub::{KILL, KillAnswer};
use cohort_wire::kill::{KillRegister, KillScope, Merged, SignedKill, merge};
use futures_util::{StreamExt as _, stream};

use crate::args::Direct;
use crate::connect::{Hub, agent_target};
use crate::context::Context;
use crate::failure::{Failure, chain};
use crate::fleet::know;
use crate::output::note;

/// How long one place is waited for: the switch is thrown in a hurry.
const DEADLINE: Duration = Duration::from_secs(2);
/// Places asked at one time.
const CONCURRENCY_MAX: usize = 16;

/// One place.
#[derive(Debug, Clone)]
enum Place {
    Hub(Hub),
    Agent { client: Client, target: Target },
}

/// Every place that is asked.
#[derive(Debug)]
pub(crate) struct Places {
    places: Vec<Place>,
}

/// What was gathered: the register that holds, per scope, and who said so.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// Per scope: the register, its author, and the proof.
    pub(crate) registers: BTreeMap<KillScope, Held>,
    /// Damaged files at the hub: they count as on.
    pub(crate) damaged: Vec<String>,
    /// How many places answered.
    pub(crate) answered: usize,
    /// Why the others did not.
    pub(crate) failures: Vec<Failure>,
}

/// A register that holds.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    /// What it says.
    pub(crate) register: KillRegister,
    /// Who says it.
    pub(crate) by: String,
    /// The proof.
    pub(crate) signed: SignedKill,
}

impl Places {
    /// The named agent; or the hub, and one agent of each group that is known.
    ///
    /// # Errors
    /// When the context is wrong. Whoever does not answer is no error here.
    pub(crate) async fn of(context: &Context, direct: &Direct) -> Result<Self, Failure> {
        let client = context.client()?;
        let agent = |target| Place::Agent { client: client.clone(), target };
        if let Some((server, address)) = direct.agent() {
            return Ok(Places { places: vec![agent(agent_target(server, address)?)] });
        }
        let mut places = vec![Place::Hub(Hub::of(context)?)];
        if let Ok((known, _)) = know(context).await {
            let firsts = known.groups.values().filter_map(|group| group.candidates.first());
            for (server, address) in firsts {
                places.push(agent(agent_target(server, address)?));
            }
        }
        Ok(Places { places })
    }

    /// Reads everywhere.
    pub(crate) async fn gather(&self, roots: &[CertificateDer<'_>]) -> Gathered {
        let answers = self.everywhere(Call::get).await;
        let mut gathered = Gathered::default();
        for answer in answers {
            gathered.add(answer, roots);
        }
        gathered
    }

    /// Gives a register everywhere. How many took it, and why the others did not.
    pub(crate) async fn give(&self, signed: &SignedKill) -> (usize, Vec<Failure>) {
        // Given twice, the second one changes nothing.
        let answers = self.everywhere(|path| Call::post(path, signed).idempotent()).await;
        let mut taken = 0;
        let mut failures = Vec::new();
        for answer in answers {
            match answer {
                Ok((registers, _)) if registers.contains(signed) => taken += 1,
                Ok(_) => failures.push(Failure::new("conflict", "a newer one is there already")),
                Err(error) => failures.push(error.into()),
            }
        }
        (taken, failures)
    }

    async fn everywhere(
        &self,
        call: impl Fn(&'static str) -> Call,
    ) -> Vec<Result<(Vec<SignedKill>, Vec<String>), CallError>> {
        let calls: Vec<(Place, Call)> = self
            .places
            .iter()
            .map(|place| match place {
                Place::Hub(_) => (place.clone(), call(KILL).deadline(DEADLINE)),
                Place::Agent { .. } => (place.clone(), call(agent::KILL).deadline(DEADLINE)),
            })
            .collect();
        stream::iter(calls)
            .map(async |(place, call)| match place {
                Place::Hub(hub) => {
                    let answer: KillAnswer = hub.call(call).await?;
                    Ok((answer.registers, answer.damaged))
                }
                Place::Agent { client, target } => {
                    Ok((client.call_json(&target, call).await?, Vec::new()))
                }
            })
            .buffered(CONCURRENCY_MAX)
            .collect()
            .await
    }
}

impl Gathered {
    fn add(
        &mut self,
        answer: Result<(Vec<SignedKill>, Vec<String>), CallError>,
        roots: &[CertificateDer<'_>],
    ) {
        let (registers, damaged) = match answer {
            Ok(answer) => answer,
            Err(error) => return self.failures.push(error.into()),
        };
        self.answered += 1;
        self.damaged.extend(damaged);
        for signed in registers {
            match held(signed, roots) {
                Ok(held) => self.put(held),
                Err(reason) => note(&format!("warning: {reason}")),
            }
        }
    }

    fn put(&mut self, held: Held) {
        let scope = &held.register.scope;
        let position = |held: &Held| (held.register.epoch, held.register.on);
        let current = self.registers.get(scope).map(position);
        if merge(current, position(&held)) == Merged::Take {
            self.registers.insert(scope.clone(), held);
        }
    }

    /// The epoch that the next change of a scope gets. *On* gets at least the time of day, so that
    /// it holds against every *off* before it, also one that is not known here. *Off* overrules
    /// only what its author has seen.
    pub(crate) fn next_epoch(&self, scope: &KillScope, on: bool, now_s: u64) -> u64 {
        let known = self.registers.get(scope).map_or(0, |held| held.register.epoch);
        let next = known.saturating_add(1);
        if on { next.max(now_s) } else { next }
    }

    /// Whether the scope's own switch is on, as far as is known.
    pub(crate) fn is_on(&self, scope: &KillScope) -> bool {
        self.registers.get(scope).is_some_and(|held| held.register.on)
    }
}

/// Verifies a register. Its author's certificate may have ended since: what counts is that it was
/// good when the register was made.
fn held(signed: SignedKill, roots: &[CertificateDer<'_>]) -> Result<Held, String> {
    let unverified: KillRegister = serde_json::from_slice(&signed.0.body)
        .map_err(|error| format!("a kill register cannot be read: {error}"))?;
    let then = UnixTime::since_unix_epoch(Duration::from_secs(unverified.at));
    let verified = signed.verify(roots, UnixTime::now()).or_else(|_| signed.verify(roots, then));
    let (by, register) = verified.map_err(|error| chain(&error))?;
    Ok(Held { register, by: by.to_string(), signed })
}

#[cfg(test)]
#[path = "kill_registers_test.rs"]
mod kill_registers_test;
