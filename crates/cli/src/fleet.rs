//! The groups of the fleet and the agents to ask: from the hub, or from its last response if it is
//! unreachable.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::str::FromStr;

use cohort_base::{chain, durable};
use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_identity::UnixTime;
use cohort_registry::fleet::Fleet;
use cohort_registry::records::ServerRecord;
use cohort_view::command::{Command, Flag};
use cohort_view::hint::Hint;
use cohort_view::report::{Origin, Recorded};
use cohort_wire::http::Call;
use cohort_wire::hub::FLEET;
use serde::{Deserialize, Serialize};

use crate::args::Direct;
use crate::connect::Hub;
use crate::context::Context;
use crate::failure::Failure;

const CACHE_FILE: &str = "fleet.json";
/// Version of the cache file; files of other versions are ignored.
const CACHE_VERSION: u32 = 3;
/// Agents of a group to try before it counts as unreachable. 10: all members, and a few more.
const CANDIDATES_MAX: usize = 10;

/// A group and the agents to ask.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct KnownGroup {
    /// Voters first, then standbys, then these where they say they are now, then other servers.
    pub(crate) candidates: Vec<(ServerId, String)>,
    /// Every server that joined the fleet.
    pub(crate) servers: BTreeSet<ServerId>,
    /// The labels that its servers share.
    pub(crate) labels: BTreeMap<String, String>,
    /// The registry's last record, per app.
    pub(crate) states: BTreeMap<AppId, Recorded>,
}

/// The input for asking every group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) groups: BTreeMap<GroupId, KnownGroup>,
    /// Every app that has a policy.
    pub(crate) apps: BTreeSet<AppId>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CacheFile {
    version: u32,
    saved_at: u64,
    known: Known,
}

/// Asks the hub for every group. Falls back to its last response if it is unreachable.
pub(crate) async fn know(context: &Context) -> Result<(Known, Origin), Failure> {
    let hub = Hub::of(context)?;
    match hub.call::<Fleet>(Call::get(FLEET)).await {
        Ok(fleet) => {
            let known = Known::of(&fleet);
            save(context, &known);
            let Fleet { restored, unreadable, .. } = fleet;
            Ok((known, Origin::Hub { restored, unreadable }))
        }
        Err(error) if error.is_away() => match load(context) {
            Some((known, age_s)) => Ok((known, Origin::Cache { age_s, because: chain(&error) })),
            None => Err(Failure::from(error)
                .hint(Hint::run_to("start the hub", Command::Hub { config: "hub.toml".to_owned() }))
                .hint(Hint::add("or ask an agent", Flag::Agent))),
        },
        Err(error) => Err(error.into()),
    }
}

/// What the hub knows, for a command that could also ask an agent by name.
pub(crate) async fn of_hub(context: &Context) -> Result<Fleet, Failure> {
    Hub::of(context)?.call(Call::get(FLEET)).await.map_err(|error| match error.is_away() {
        true => Failure::from(error).hint(Hint::add("or ask an agent", Flag::Agent)),
        false => error.into(),
    })
}

/// The groups that a command is about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Groups<'a> {
    All,
    One(&'a GroupId),
    /// Those that match.
    Some(&'a Selector),
}

impl Groups<'_> {
    fn has(self, name: &GroupId, known: &KnownGroup) -> bool {
        match self {
            Groups::All => true,
            Groups::One(one) => one == name,
            Groups::Some(selector) => selector.matches(known),
        }
    }
}

/// Labels that groups have, as `zone=zone-a,platform=linux/amd64`; all must match. `app` is an app
/// that the group has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selector(BTreeMap<String, String>);

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pairs = text.split(',').map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or_default();
            match key.is_empty() || value.is_empty() {
                true => Err(format!("`{pair}` is not a label and its value, as in zone=zone-a")),
                false => Ok((key.to_owned(), value.to_owned())),
            }
        });
        Ok(Selector(pairs.collect::<Result<_, _>>()?))
    }
}

impl Selector {
    fn matches(&self, known: &KnownGroup) -> bool {
        self.0.iter().all(|(key, value)| match key.as_str() {
            "app" => known.states.keys().any(|app| app.as_str() == value),
            _ => known.labels.get(key) == Some(value),
        })
    }
}

/// Whether `--agent` was given: then the hub is not asked.
pub(crate) fn is_direct(direct: &Direct) -> bool {
    direct.agent().is_some()
}

impl Known {
    /// Selects the agents to ask, from the hub's response.
    pub(crate) fn of(fleet: &Fleet) -> Self {
        let mut groups: BTreeMap<GroupId, KnownGroup> = BTreeMap::new();
        for (name, group) in &fleet.groups {
            let known = groups.entry(name.clone()).or_default();
            known.labels = group.info.iter().flat_map(|info| info.labels.clone()).collect();
            let members = group.members.iter().flat_map(|record| &record.members);
            let mut members: Vec<_> = members.collect();
            members.sort_by_key(|member| !member.voter);
            for member in members {
                known.candidates.push((member.server.clone(), member.address.clone()));
            }
            for record in &group.apps {
                let recorded = Recorded { state: record.state, since: record.since };
                known.states.insert(record.app.clone(), recorded);
            }
        }
        // A group without a majority cannot record that its members have moved; they tell the hub.
        let is_member = |known: &KnownGroup, server: &ServerRecord| {
            known.candidates.iter().any(|(id, _)| *id == server.server)
        };
        for server in &fleet.servers {
            let known = groups.entry(server.group.clone()).or_default();
            known.servers.insert(server.server.clone());
            let candidate = (server.server.clone(), server.address.clone());
            if is_member(known, server) && !known.candidates.contains(&candidate) {
                known.candidates.push(candidate);
            }
        }
        for server in &fleet.servers {
            let known = groups.entry(server.group.clone()).or_default();
            if !is_member(known, server) && known.candidates.len() < CANDIDATES_MAX {
                known.candidates.push((server.server.clone(), server.address.clone()));
            }
        }
        let apps = fleet.policies.keys().cloned().collect();
        Known { groups, apps }
    }

    /// Those of these groups that there are.
    ///
    /// # Errors
    /// If there are none.
    pub(crate) fn chosen(mut self, groups: Groups<'_>) -> Result<Self, Failure> {
        if let Groups::One(group) = groups {
            self.group(group)?;
        }
        self.groups.retain(|name, known| groups.has(name, known));
        if self.groups.is_empty() && matches!(groups, Groups::Some(_)) {
            let error = "no group matches the selector";
            return Err(Failure::new("no_such_group", error).hint(Command::GroupList));
        }
        Ok(self)
    }

    pub(crate) fn group(&self, name: &GroupId) -> Result<&KnownGroup, Failure> {
        self.groups.get(name).ok_or_else(|| {
            let names = self.groups.keys().map(GroupId::as_str);
            let failure = Failure::new("no_such_group", format!("there is no group `{name}`"));
            match crate::toml_keys::nearest(name.as_str(), names) {
                Some(near) => failure.hint(Hint::Meant(near.to_owned())),
                None => failure.hint(Command::GroupList),
            }
        })
    }

    /// Every group and server.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let servers = self.groups.values().flat_map(|group| &group.servers);
        self.groups.keys().map(GroupId::as_str).chain(servers.map(ServerId::as_str))
    }

    pub(crate) fn group_of(&self, server: &str) -> Option<&GroupId> {
        let has = |group: &KnownGroup| {
            group.servers.contains(server)
                || group.candidates.iter().any(|(id, _)| id.as_str() == server)
        };
        self.groups.iter().find(|(_, group)| has(group)).map(|(name, _)| name)
    }
}

/// Best effort: the cache is only used while the hub is unreachable.
fn save(context: &Context, known: &Known) {
    let dir = context.cache_dir();
    let file = CacheFile {
        version: CACHE_VERSION,
        saved_at: UnixTime::now().as_secs(),
        known: known.clone(),
    };
    let text = serde_json::to_vec(&file).expect("names and addresses are strings");
    let saved = fs::create_dir_all(&dir)
        .and_then(|()| durable::write(&dir.join(CACHE_FILE), &text, durable::READABLE));
    if let Err(error) = saved {
        tracing::debug!(%error, dir = %dir.display(), "cannot cache the list of groups");
    }
}

/// The hub's last answer that was saved here, and its age in seconds.
pub(crate) fn load(context: &Context) -> Option<(Known, u64)> {
    let text = fs::read(context.cache_dir().join(CACHE_FILE)).ok()?;
    let file: CacheFile = serde_json::from_slice(&text).ok()?;
    let age_s = UnixTime::now().as_secs().saturating_sub(file.saved_at);
    (file.version == CACHE_VERSION).then_some((file.known, age_s))
}

#[cfg(test)]
#[path = "fleet_test.rs"]
mod fleet_test;
