//! The whole fleet in one answer, as of one revision: what `cohort status` shows.

use std::collections::BTreeMap;

use cohort_core::ids::{GroupId, Incarnation, Revision};
use serde::{Deserialize, Serialize};

use crate::api::{KeyValue, Registry, RegistryError};
use crate::keys::{self, Place};
use crate::records::{
    Bootstrap, BootstrapRecord, GroupInfo, GroupRecord, GroupVerdict, MembersRecord, ServerRecord,
    VersionedPolicy, decode,
};
use crate::typed::{decode_verdict, list};

/// All that the registry knows of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fleet {
    /// The registry's revision.
    pub revision: u64,
    /// Every group.
    pub groups: BTreeMap<GroupId, FleetGroup>,
    /// Every server.
    pub servers: Vec<ServerRecord>,
    /// Every verdict.
    pub verdicts: Vec<GroupVerdict>,
    /// Every app's policy.
    pub policies: Vec<VersionedPolicy>,
    /// Every kill switch: scope and signed record, as text.
    pub kill: BTreeMap<String, String>,
    /// Records that cannot be read: shown, never hidden and never a reason to show nothing.
    pub unreadable: Vec<String>,
}

/// All that the registry knows of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FleetGroup {
    /// Labels and platform.
    pub info: Option<GroupInfo>,
    /// Which life; `None`: it has none yet.
    pub bootstrap: Option<Bootstrap>,
    /// Where its members are.
    pub members: Option<MembersRecord>,
    /// How far it is with each app.
    pub apps: Vec<GroupRecord>,
}

/// Reads the whole fleet.
///
/// # Errors
/// [`RegistryError`]; never `Corrupt`: what cannot be read is listed in the answer.
pub async fn read_fleet(registry: &dyn Registry) -> Result<Fleet, RegistryError> {
    let (items, revision) = list(registry, keys::ROOT).await?;
    let mut fleet = Fleet { revision, ..Fleet::default() };
    for pair in items {
        if let Err(error) = add(&mut fleet, &pair) {
            fleet.unreadable.push(error.to_string());
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
            let BootstrapRecord { first_server, .. } = decode(pair)?;
            let incarnation = Incarnation(pair.mod_revision);
            fleet.groups.entry(group).or_default().bootstrap =
                Some(Bootstrap { incarnation, first_server });
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
        Some(Place::Policy { .. }) => {
            let revision = Revision(pair.mod_revision);
            fleet.policies.push(VersionedPolicy { revision, record: decode(pair)? });
        }
        Some(Place::Kill { scope }) => {
            fleet.kill.insert(scope, pair.value.clone());
        }
        None => fleet.unreadable.push(format!("registry key `{}` is not of the layout", pair.key)),
    }
    Ok(())
}
