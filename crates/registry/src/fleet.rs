//! The whole fleet at one revision, as `cohort status` shows it.

use std::collections::BTreeMap;

use cohort_base::chain;
use cohort_core::ids::{AppId, GroupId};
use cohort_wire::intent::SignedIntent;
use serde::{Deserialize, Serialize};

use crate::api::{KeyValue, Registry, RegistryError};
use crate::keys::{self, Place};
use crate::records::{
    Bootstrap, BootstrapRecord, GroupInfo, GroupRecord, GroupVerdict, IntentRecord, MembersRecord,
    ServerRecord, decode,
};
use crate::typed::{decode_verdict, list};

/// The registry's content, by object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fleet {
    /// The registry's revision at the read.
    pub revision: u64,
    /// Groups with any record.
    pub groups: BTreeMap<GroupId, FleetGroup>,
    pub servers: Vec<ServerRecord>,
    pub verdicts: Vec<GroupVerdict>,
    /// The apps' policies, each with its operator's signature; unproven.
    pub policies: BTreeMap<AppId, SignedIntent>,
    /// Apps that were removed, also from groups that have not done so yet; unproven.
    pub removed: BTreeMap<AppId, SignedIntent>,
    /// Kill switches: scope and signed register, as text.
    pub kill: BTreeMap<String, String>,
    /// The registry was lost, or restored from a backup, and nobody has confirmed that yet. Set by
    /// the hub.
    #[serde(default)]
    pub restored: bool,
    /// Unreadable records, each with the reason: listed, so that they neither hide nor block the
    /// rest.
    pub unreadable: Vec<String>,
}

/// All records of a group, except its servers' and its verdicts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FleetGroup {
    /// Written when its first server joined.
    pub info: Option<GroupInfo>,
    /// `None`: not bootstrapped yet.
    pub bootstrap: Option<Bootstrap>,
    /// Written by its leader.
    pub members: Option<MembersRecord>,
    /// One per app, written by its leader.
    pub apps: Vec<GroupRecord>,
}

/// Reads the whole fleet.
///
/// # Errors
/// [`RegistryError`]; never `Corrupt`: unreadable records are listed in the answer.
pub async fn read_fleet(registry: &dyn Registry) -> Result<Fleet, RegistryError> {
    let (items, revision) = list(registry, keys::ROOT).await?;
    let mut fleet = Fleet { revision, ..Fleet::default() };
    for pair in items {
        if let Err(error) = add(&mut fleet, &pair) {
            fleet.unreadable.push(chain(&error));
        }
    }
    Ok(fleet)
}

fn add(fleet: &mut Fleet, pair: &KeyValue) -> Result<(), RegistryError> {
    match keys::parse(&pair.key) {
        Some(Place::Server { .. }) => fleet.servers.push(decode(pair)?),
        Some(Place::GroupInfo { group }) => {
            let info = decode(pair)?;
            fleet.groups.entry(group).or_default().info = Some(info);
        }
        Some(Place::Bootstrap { group }) => {
            let bootstrap = Bootstrap::of(decode::<BootstrapRecord>(pair)?, pair.mod_revision);
            fleet.groups.entry(group).or_default().bootstrap = Some(bootstrap);
        }
        Some(Place::Members { group }) => {
            let members = decode(pair)?;
            fleet.groups.entry(group).or_default().members = Some(members);
        }
        Some(Place::GroupRecord { group, .. }) => {
            let record = decode(pair)?;
            fleet.groups.entry(group).or_default().apps.push(record);
        }
        Some(Place::Verdict { .. }) => fleet.verdicts.extend(decode_verdict(pair)?),
        Some(Place::Policy { app }) => {
            fleet.policies.insert(app, decode::<IntentRecord>(pair)?.signed);
        }
        Some(Place::Removed { app }) => {
            fleet.removed.insert(app, decode::<IntentRecord>(pair)?.signed);
        }
        Some(Place::Kill { scope }) => {
            fleet.kill.insert(scope, pair.value.clone());
        }
        None => {
            let text = format!("registry key `{}` is not part of the layout", pair.key);
            fleet.unreadable.push(text);
        }
    }
    Ok(())
}
