//! Which group a joining server belongs to, and its record in the registry.

use std::collections::BTreeMap;

use cohort_base::chain;
use cohort_core::ids::{GroupId, Platform, ServerId};
use cohort_core::orders::MemberAddress;
use cohort_registry::records::{GroupInfo, MemberRecord, SCHEMA, ServerRecord, decode, encode};
use cohort_registry::typed::{intents, list, read_members};
use cohort_registry::{Compare, EmbeddedRegistry, KeyValue, Op, Registry as _, Txn, keys};
use cohort_wire::entry;
use cohort_wire::http::ApiError;
use cohort_wire::hub::{JoinedGroup, JoiningServer, LABEL_BYTES_MAX};

use crate::refusal::Refusal;
use crate::room;

/// Attempts to enrol a server while others change the same group: twenty servers may join together.
const ATTEMPTS_MAX: u32 = 64;

/// A server, and the group it belongs to.
#[derive(Debug)]
pub(crate) struct Placed {
    record: ServerRecord,
    info: GroupInfo,
}

/// Checks a server's statements about itself, and determines its group. `grouping`: the labels
/// whose values form the group's name.
pub(crate) fn place(
    grouping: &[String],
    server: &ServerId,
    joining: JoiningServer,
) -> Result<Placed, ApiError> {
    let JoiningServer { address, platform, mut labels, rack } = joining;
    entry::address(&address)?;
    entry::labels(&labels)?;
    rack.iter().try_for_each(|rack| entry::word("rack", rack, LABEL_BYTES_MAX))?;
    labels.entry("platform".to_owned()).or_insert_with(|| platform.as_str().replace('/', "-"));
    let present = || grouping.iter().filter_map(|key| labels.get_key_value(key));
    let parts: Vec<&str> = present().map(|(_, value)| value.as_str()).collect();
    let name = if parts.is_empty() { "default".to_owned() } else { parts.join(".") };
    let group = GroupId::new(name).map_err(|error| {
        let labels = grouping.join(", ");
        ApiError::bad_request(chain(&error))
            .hint(format!("the group's name is made of the labels {labels}"))
    })?;
    let group_labels: BTreeMap<String, String> =
        present().map(|(key, value)| (key.clone(), value.clone())).collect();
    let info = GroupInfo { schema: SCHEMA, group: group.clone(), labels: group_labels, platform };
    let record =
        ServerRecord { schema: SCHEMA, server: server.clone(), address, labels, rack, group };
    Ok(Placed { record, info })
}

impl Placed {
    /// The group that the server belongs to.
    pub(crate) fn group(&self) -> &GroupId {
        &self.record.group
    }

    /// Checks that the group has room for the server, and the server its group's platform: all
    /// servers of a group run the same artifacts.
    pub(crate) async fn check(&self, registry: &EmbeddedRegistry) -> Result<(), Refusal> {
        let pair = registry.get(&keys::group_info(&self.info.group));
        let info = pair.map(|pair| decode(&pair)).transpose()?;
        same_platform(info.as_ref(), &self.info.platform)?;
        check_room(registry, &self.record).await
    }

    /// Writes the server's record, and its group's if it is the first, in one transaction.
    pub(crate) async fn enrol(self, registry: &EmbeddedRegistry) -> Result<JoinedGroup, Refusal> {
        let Placed { record, info } = self;
        let info_key = keys::group_info(&info.group);
        for _ in 0..ATTEMPTS_MAX {
            let mut then = vec![Op::put(keys::server(&record.server), encode(&record))];
            let revision = match registry.get(&info_key) {
                Some(pair) => {
                    same_platform(Some(&decode(&pair)?), &info.platform)?;
                    pair.mod_revision
                }
                None => {
                    then.push(Op::put(&info_key, encode(&info)));
                    0
                }
            };
            check_room(registry, &record).await?;
            let compare = vec![Compare::unchanged_since(&info_key, revision)];
            if !registry.txn(Txn { compare, then, ..Txn::default() }).await?.succeeded {
                continue;
            }
            let members = read_members(registry, &info.group).await?;
            let address = |MemberRecord { server, address, member, .. }| MemberAddress {
                server,
                address,
                member,
            };
            return Ok(JoinedGroup {
                group: info.group,
                labels: info.labels,
                members: members.into_iter().flat_map(|known| known.members).map(address).collect(),
            });
        }
        let busy = format!("too many servers are joining group {} at once", info.group);
        Err(ApiError::overloaded(busy).into())
    }
}

/// Refuses a server for which its group has no room.
async fn check_room(registry: &EmbeddedRegistry, joins: &ServerRecord) -> Result<(), Refusal> {
    let (items, _) = list(registry, keys::SERVERS).await?;
    let of_group = |pair: &KeyValue| {
        decode::<ServerRecord>(pair)
            .is_ok_and(|known| known.group == joins.group && known.server != joins.server)
    };
    let others = items.iter().filter(|pair| of_group(pair)).count();
    Ok(room::for_server(&joins.group, others, intents(registry, keys::POLICIES).await?.len())?)
}

fn same_platform(info: Option<&GroupInfo>, platform: &Platform) -> Result<(), ApiError> {
    match info {
        Some(info) if info.platform != *platform => Err(ApiError::conflict(format!(
            "group {} is on {}, but this server is {platform}",
            info.group, info.platform
        ))
        .hint("give the server a label that puts it into another group")),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
#[path = "placing_test.rs"]
mod placing_test;
