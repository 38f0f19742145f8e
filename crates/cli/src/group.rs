//! Calls to groups: any agent of a group can respond; if one does not, the next is tried.

use std::collections::{BTreeMap, BTreeSet};

use cohort_base::chain;
use cohort_core::ids::{AppId, GroupId};
use cohort_identity::{Identity, UnixTime};
use cohort_view::command::Command;
use cohort_view::hint::Hint;
use cohort_view::report::{Asked, FleetReport, Origin, Picture};
use cohort_wire::agent::{GroupStatus, STATUS};
use cohort_wire::http::{Call, CallError, Client, Target};
use futures_util::{StreamExt as _, stream};
use serde::de::DeserializeOwned;

use crate::args::Direct;
use crate::connect::{self, AGENT_DEADLINE, agent_target};
use crate::context::Context;
use crate::failure::Failure;
use crate::fleet::{Groups, Known, KnownGroup, know};
use crate::output::warn;
use crate::toml_keys::nearest;

/// Groups asked concurrently. 16: hundreds of groups in seconds, without hundreds of simultaneous
/// handshakes.
const CONCURRENCY_MAX: usize = 16;

/// Asks one group, every group, or the group of one agent.
async fn picture(
    context: &Context,
    client: &Client,
    direct: &Direct,
    only: Groups<'_>,
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
    let Known { groups, apps } = known.chosen(only)?;
    let mut groups: Vec<Asked> = stream::iter(groups)
        .map(|(name, known)| ask_group(client, name, known))
        .buffer_unordered(CONCURRENCY_MAX)
        .collect()
        .await;
    groups.sort_by(|a, b| a.group.cmp(&b.group));
    Ok(Picture { origin, apps, groups })
}

/// Asks like [`picture`], and judges the responses.
pub(crate) async fn report(
    context: &Context,
    client: &Client,
    direct: &Direct,
    only: Groups<'_>,
) -> Result<FleetReport, Failure> {
    let picture = picture(context, client, direct, only).await?;
    Ok(FleetReport::of(picture, UnixTime::now().as_secs()))
}

/// Asks a group's agents in turn, until one responds through the leader.
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
                // Without a quorum: the agent that has applied the most.
                if best.as_ref().is_none_or(|known| known.applied < status.applied) {
                    best = Some(status);
                }
            }
            Ok(status) => failures.push(format!("{server} is in group {}", status.group)),
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
    let call = Call::get(STATUS).deadline(AGENT_DEADLINE);
    connect::ask(client, std::slice::from_ref(target), call).await.map(|(_, status)| status)
}

#[derive(Debug)]
pub(crate) struct Steered {
    client: Client,
    /// Signs the commands.
    pub(crate) identity: Identity,
    targets: Vec<Target>,
    /// Its status when the group was found.
    pub(crate) status: GroupStatus,
}

impl Steered {
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
                warn(&origin);
                known.group(group)?.candidates.clone()
            }
        };
        let known = KnownGroup { candidates: candidates.clone(), ..KnownGroup::default() };
        let status = ask_group(&client, group.clone(), known).await.status.map_err(|reason| {
            Failure::new("unreachable", format!("cannot reach group {group}: {reason}"))
                .hint("check that its agents run")
        })?;
        // The agent that responded comes first. Any agent forwards to the leader.
        let mut candidates = candidates;
        candidates.sort_by_key(|(server, _)| *server != status.answered_by);
        let targets: Result<Vec<Target>, Failure> =
            candidates.iter().map(|(server, address)| agent_target(server, address)).collect();
        Ok(Steered { client, identity: context.identity()?, targets: targets?, status })
    }

    /// Sends a call to the agents in turn, until one accepts it. Requests carry an id, so that a
    /// group recognizes a duplicate.
    pub(crate) async fn send<T: DeserializeOwned>(&self, call: Call) -> Result<T, Failure> {
        let (_, answer) = connect::ask(&self.client, &self.targets, call.idempotent()).await?;
        Ok(answer)
    }
}

/// A group does not have the named app; `names` are those that it has.
pub(crate) fn no_such_app(group: &GroupId, app: &AppId, names: &[&str]) -> Failure {
    let hint = match nearest(app.as_str(), names.iter().copied()) {
        Some(near) => Hint::Meant(near.to_owned()),
        None if names.is_empty() => Command::AppApply.into(),
        None => format!("it has: {}", names.join(", ")).into(),
    };
    Failure::new("no_such_app", format!("group {group} has no app `{app}`")).hint(hint)
}
