//! Asking groups: any of a group's agents answers; the next is asked when one does not.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_wire::agent::{GroupStatus, STATUS};
use cohort_wire::http::{Call, CallError, Client, Target};
use futures_util::{StreamExt as _, stream};
use serde::de::DeserializeOwned;

use crate::args::Direct;
use crate::connect::{AGENT_DEADLINE, agent_target, is_away};
use crate::context::Context;
use crate::failure::{Failure, chain};
use crate::fleet::{Known, KnownGroup, Origin, Recorded, know};

/// Groups asked at one time: hundreds of groups in seconds, without hundreds of handshakes at once.
const CONCURRENCY_MAX: usize = 16;

/// What came of asking a group.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Which group.
    pub(crate) group: GroupId,
    /// Its status, or why there is none.
    pub(crate) status: Result<GroupStatus, String>,
    /// What the registry last knew of it.
    pub(crate) registry: BTreeMap<AppId, Recorded>,
    /// Servers that joined, as far as the hub knows.
    pub(crate) joined: BTreeSet<ServerId>,
}

/// A picture of the fleet, or of a part of it.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    /// Where the groups' names and addresses came from.
    pub(crate) origin: Origin,
    /// Every app that has a policy.
    pub(crate) apps: BTreeSet<AppId>,
    /// The groups.
    pub(crate) groups: Vec<Asked>,
}

/// Asks one group, every group, or the group of one agent.
///
/// # Errors
/// When nobody can be asked at all. A group that does not answer is part of the picture.
pub(crate) async fn picture(
    context: &Context,
    client: &Client,
    direct: &Direct,
    only: Option<&GroupId>,
) -> Result<Picture, Failure> {
    if let Some((server, address)) = direct.agent() {
        let status = ask(client, &agent_target(server, address)?).await?;
        let apps = status.apps.keys().cloned().collect();
        let asked = Asked {
            group: status.group.clone(),
            status: Ok(status),
            registry: BTreeMap::new(),
            joined: BTreeSet::new(),
        };
        return Ok(Picture { origin: Origin::Agent, apps, groups: vec![asked] });
    }
    let (known, origin) = know(context).await?;
    if let Some(group) = only {
        known.group(group)?;
    }
    let Known { groups, apps } = known;
    let chosen = groups.into_iter().filter(|(name, _)| only.is_none_or(|only| only == name));
    let mut groups: Vec<Asked> = stream::iter(chosen)
        .map(|(name, known)| ask_group(client, name, known))
        .buffer_unordered(CONCURRENCY_MAX)
        .collect()
        .await;
    groups.sort_by(|a, b| a.group.cmp(&b.group));
    Ok(Picture { origin, apps, groups })
}

/// Asks a group's agents one after the other, until one speaks for the majority.
pub(crate) async fn ask_group(client: &Client, group: GroupId, known: KnownGroup) -> Asked {
    let mut best: Option<GroupStatus> = None;
    let mut failures = Vec::new();
    for (server, address) in &known.candidates {
        let Ok(target) = agent_target(server, address) else { continue };
        match ask(client, &target).await {
            Ok(status) if status.group == group && status.linearizable => {
                best = Some(status);
                break;
            }
            Ok(status) if status.group == group => {
                // Of several that cannot reach the majority, the one that knows most.
                if best.as_ref().is_none_or(|known| known.applied < status.applied) {
                    best = Some(status);
                }
            }
            Ok(status) => failures.push(format!("{server} belongs to {}", status.group)),
            Err(error) => failures.push(chain(&error)),
        }
    }
    let status = best.ok_or_else(|| match failures.first() {
        None => "no server has joined yet".to_owned(),
        Some(first) => {
            format!("none of {} agents answered: {first}", known.candidates.len())
        }
    });
    Asked { group, status, registry: known.states, joined: known.servers }
}

async fn ask(client: &Client, target: &Target) -> Result<GroupStatus, CallError> {
    client.call_json(target, Call::get(STATUS).deadline(AGENT_DEADLINE)).await
}

/// A group to which a person says something.
#[derive(Debug)]
pub(crate) struct Spoken {
    client: Client,
    targets: Vec<Target>,
    /// Its status just now.
    pub(crate) status: GroupStatus,
}

impl Spoken {
    /// Finds the group, and learns its status.
    ///
    /// # Errors
    /// When there is no such group, or none of its agents answers.
    pub(crate) async fn to(
        context: &Context,
        direct: &Direct,
        group: &GroupId,
    ) -> Result<Self, Failure> {
        let client = context.client()?;
        let candidates = match direct.agent() {
            Some((server, address)) => vec![(server.clone(), address.to_owned())],
            None => {
                let (known, origin) = know(context).await?;
                if let Some(warning) = crate::fleet::warning(&origin) {
                    crate::output::note(&warning);
                }
                known.group(group)?.candidates.clone()
            }
        };
        let known = KnownGroup { candidates: candidates.clone(), ..KnownGroup::default() };
        let status = ask_group(&client, group.clone(), known).await.status.map_err(|reason| {
            Failure::new("unreachable", format!("group {group} cannot be asked: {reason}"))
                .hint("are its agents running?")
        })?;
        // Whoever answered comes first, then the rest, all of whom pass it on to the leader.
        let mut candidates = candidates;
        candidates.sort_by_key(|(server, _)| *server != status.answered_by);
        let targets: Result<Vec<Target>, Failure> =
            candidates.iter().map(|(server, address)| agent_target(server, address)).collect();
        Ok(Spoken { client, targets: targets?, status })
    }

    /// Says it to one agent after the other, until one has taken it.
    ///
    /// # Errors
    /// The first refusal; or, when nobody could do it, what an agent said about it rather than that
    /// another one could not be reached.
    pub(crate) async fn say<T: DeserializeOwned>(&self, call: Call) -> Result<T, Failure> {
        let mut failed: Option<CallError> = None;
        for target in &self.targets {
            match self.client.call_json(target, call.clone()).await {
                // Requests carry an id by which a group knows that one came twice.
                Err(error) if is_away(&error) => {
                    if failed.as_ref().is_none_or(|known| known.status().is_none()) {
                        failed = Some(error);
                    }
                }
                Err(error) => return Err(error.into()),
                Ok(answer) => return Ok(answer),
            }
        }
        let group = &self.status.group;
        Err(failed.map_or_else(
            || Failure::new("unreachable", format!("group {group} has no agent to ask")),
            Failure::from,
        ))
    }
}
