//! Which groups there are and where to ask about them: from the hub, or, when it is away, from what
//! it said last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use cohort_base::durable;
use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_registry::fleet::Fleet;
use cohort_wire::http::Call;
use cohort_wire::hub::FLEET;
use serde::{Deserialize, Serialize};

use crate::args::Direct;
use crate::clock::{brief, unix_now};
use crate::connect::{Hub, is_away};
use crate::context::Context;
use crate::failure::{Failure, chain};

const CACHE_FILE: &str = "fleet.json";
/// The version of the cache file's form; another one is not read.
const CACHE_VERSION: u32 = 2;
/// How many agents of a group are asked at the most before it counts as unreachable: all members
/// and some more.
const CANDIDATES_MAX: usize = 10;

/// Where a picture of the fleet comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub(crate) enum Origin {
    /// The hub, just now.
    Hub,
    /// What the hub said before; it is away.
    Cache {
        /// How old, in seconds.
        age_s: u64,
        /// Why the hub did not answer.
        because: String,
    },
    /// The agent that was named; the hub was not asked.
    Agent,
}

/// A group and where to ask about it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct KnownGroup {
    /// Members first, then other servers.
    pub(crate) candidates: Vec<(ServerId, String)>,
    /// Every server that joined.
    pub(crate) servers: BTreeSet<ServerId>,
    /// What the registry knows of it.
    pub(crate) states: BTreeMap<AppId, Recorded>,
}

/// What the registry knows of an app in a group: for when no agent answers, and for how long it has
/// been so by everybody's clock. The group's own clock stands still while nothing happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recorded {
    /// The group's state.
    pub(crate) state: String,
    /// Since when, in seconds of Unix time.
    pub(crate) since: u64,
}

/// The fleet as far as it is needed to ask around.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Known {
    /// Every group.
    pub(crate) groups: BTreeMap<GroupId, KnownGroup>,
    /// Every app that has a policy.
    pub(crate) apps: BTreeSet<AppId>,
}

#[derive(Serialize, Deserialize)]
struct CacheFile {
    version: u32,
    saved_at: u64,
    known: Known,
}

/// Which groups there are. A direct agent is asked for itself elsewhere: it is the one candidate of
/// a group whose name is not known yet.
///
/// # Errors
/// When the hub is away and never answered before, or refuses.
pub(crate) async fn know(context: &Context) -> Result<(Known, Origin), Failure> {
    let hub = Hub::of(context)?;
    match hub.call::<Fleet>(Call::get(FLEET)).await {
        Ok(fleet) => {
            let known = Known::of(&fleet);
            save(context, &known);
            Ok((known, Origin::Hub))
        }
        Err(error) if is_away(&error) => match load(context) {
            Some((known, age_s)) => Ok((known, Origin::Cache { age_s, because: chain(&error) })),
            None => Err(Failure::from(error)
                .hint("is the hub running? cohort hub --config hub.toml")
                .hint("or ask an agent: --agent HOST:PORT --name SERVER")),
        },
        Err(error) => Err(error.into()),
    }
}

/// Tells a person that the picture is old.
pub(crate) fn warning(origin: &Origin) -> Option<String> {
    match origin {
        Origin::Hub | Origin::Agent => None,
        Origin::Cache { age_s, because } => Some(format!(
            "warning: the hub is away ({because}); asking the agents known {} ago",
            brief(age_s * 1000)
        )),
    }
}

/// Whether the agent is named, so that the hub needs not be asked.
pub(crate) fn is_direct(direct: &Direct) -> bool {
    direct.agent().is_some()
}

impl Known {
    /// From what the hub knows.
    pub(crate) fn of(fleet: &Fleet) -> Self {
        let mut groups: BTreeMap<GroupId, KnownGroup> = BTreeMap::new();
        for (name, group) in &fleet.groups {
            let known = groups.entry(name.clone()).or_default();
            let members = group.members.iter().flat_map(|record| &record.members);
            // Voters first: they know most.
            let mut members: Vec<_> = members.collect();
            members.sort_by_key(|member| !member.voter);
            for member in members {
                known.candidates.push((member.server.clone(), member.address.clone()));
            }
            for record in &group.apps {
                let recorded = Recorded { state: record.state.clone(), since: record.since };
                known.states.insert(record.app.clone(), recorded);
            }
        }
        for server in &fleet.servers {
            let known = groups.entry(server.group.clone()).or_default();
            known.servers.insert(server.server.clone());
            let is_new = known.candidates.iter().all(|(id, _)| *id != server.server);
            if is_new && known.candidates.len() < CANDIDATES_MAX {
                known.candidates.push((server.server.clone(), server.address.clone()));
            }
        }
        let apps = fleet.policies.iter().map(|policy| policy.record.app.clone()).collect();
        Known { groups, apps }
    }

    /// The group of this name.
    ///
    /// # Errors
    /// Names the nearest one.
    pub(crate) fn group(&self, name: &GroupId) -> Result<&KnownGroup, Failure> {
        self.groups.get(name).ok_or_else(|| {
            let names = self.groups.keys().map(GroupId::as_str);
            let failure = Failure::new("no_such_group", format!("there is no group `{name}`"));
            match crate::toml_keys::nearest(name.as_str(), names) {
                Some(near) => failure.hint(format!("did you mean `{near}`?")),
                None => failure.hint("cohort group list"),
            }
        })
    }

    /// The group that a server belongs to.
    pub(crate) fn group_of(&self, server: &str) -> Option<&GroupId> {
        let has = |group: &KnownGroup| {
            group.servers.contains(server)
                || group.candidates.iter().any(|(id, _)| id.as_str() == server)
        };
        self.groups.iter().find(|(_, group)| has(group)).map(|(name, _)| name)
    }
}

/// Failing to keep it costs only the next time that the hub is away.
fn save(context: &Context, known: &Known) {
    let dir = context.cache_dir();
    let file = CacheFile { version: CACHE_VERSION, saved_at: unix_now(), known: known.clone() };
    let text = serde_json::to_vec(&file).expect("names and addresses become JSON");
    let saved = fs::create_dir_all(&dir)
        .and_then(|()| durable::write(&dir.join(CACHE_FILE), &text, durable::READABLE));
    if let Err(error) = saved {
        tracing::debug!(%error, dir = %dir.display(), "fleet is not remembered");
    }
}

fn load(context: &Context) -> Option<(Known, u64)> {
    let text = fs::read(context.cache_dir().join(CACHE_FILE)).ok()?;
    let file: CacheFile = serde_json::from_slice(&text).ok()?;
    let age_s = unix_now().saturating_sub(file.saved_at);
    (file.version == CACHE_VERSION).then_some((file.known, age_s))
}

#[cfg(test)]
#[path = "fleet_test.rs"]
mod fleet_test;
