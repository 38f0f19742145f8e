//! Whether a group has room for another app or another server: what a group would refuse later, out
//! of sight, the hub refuses to the person who asks.

use std::collections::BTreeMap;

use cohort_core::ids::{AppId, GroupId};
use cohort_core::state::{APPS_MAX, SERVER_APPS_MAX, SERVERS_MAX};
use cohort_registry::fleet::Fleet;
use cohort_wire::http::ApiError;

/// Refuses a new app for which some group has no room; every group has every app.
pub(crate) fn for_app(fleet: &Fleet, app: &AppId) -> Result<(), ApiError> {
    if fleet.policies.iter().any(|known| known.record.app == *app) {
        return Ok(());
    }
    let apps = fleet.policies.len() + 1;
    let remove = "remove one: cohort app remove APP";
    if apps > APPS_MAX {
        let full = format!("app {app} would be one more than the {APPS_MAX} that a fleet may have");
        return Err(ApiError::conflict(full).hint(remove));
    }
    let mut sizes: BTreeMap<&GroupId, usize> = BTreeMap::new();
    for server in &fleet.servers {
        *sizes.entry(&server.group).or_default() += 1;
    }
    let largest = sizes.into_iter().max_by_key(|(_, servers)| *servers);
    match largest.filter(|(_, servers)| servers * apps > SERVER_APPS_MAX) {
        Some((group, servers)) => Err(ApiError::conflict(format!(
            "group {group} has {servers} servers, and would have {apps} apps: servers times apps \
             may be at most {SERVER_APPS_MAX}"
        ))
        .hint(remove)
        .hint("or split the group: give some of its servers another label")),
        None => Ok(()),
    }
}

/// Refuses a server for which its group has no room; `others` are the group's other servers.
pub(crate) fn for_server(group: &GroupId, others: usize, apps: usize) -> Result<(), ApiError> {
    let servers = others + 1;
    if servers <= SERVERS_MAX && servers * apps <= SERVER_APPS_MAX {
        return Ok(());
    }
    Err(ApiError::conflict(format!(
        "group {group} is full: {others} servers and {apps} apps; at most {SERVERS_MAX} servers, \
         and servers times apps at most {SERVER_APPS_MAX}"
    ))
    .hint("give the server a label that puts it into another group")
    .hint("or remove an app: cohort app remove APP"))
}

#[cfg(test)]
mod room_test {
    use std::collections::BTreeMap;

    use cohort_core::ids::{AppId, GroupId, Revision};
    use cohort_core::state::{APPS_MAX, SERVER_APPS_MAX, SERVERS_MAX};
    use cohort_registry::fleet::Fleet;
    use cohort_registry::records::{PolicyRecord, SCHEMA, ServerRecord, VersionedPolicy};

    use super::{for_app, for_server};

    fn fleet(servers: usize, apps: usize) -> Fleet {
        let group: GroupId = "intel.zone-a".parse().unwrap();
        let server = |n| ServerRecord {
            schema: SCHEMA,
            server: format!("s{n}").parse().unwrap(),
            address: format!("s{n}:7417"),
            labels: BTreeMap::new(),
            rack: None,
            group: group.clone(),
        };
        let policy = |n| VersionedPolicy {
            revision: Revision(1),
            record: PolicyRecord {
                schema: SCHEMA,
                app: format!("app-{n}").parse().unwrap(),
                policy: serde_json::Value::Null,
                by: "ana".into(),
                at: 0,
            },
        };
        Fleet {
            servers: (0..servers).map(server).collect(),
            policies: (0..apps).map(policy).collect(),
            ..Fleet::default()
        }
    }

    #[test]
    fn an_app_is_refused_where_a_group_would_outgrow_its_snapshot() {
        let new: AppId = "new".parse().unwrap();
        let known: AppId = "app-0".parse().unwrap();
        assert!(for_app(&fleet(3, APPS_MAX - 1), &new).is_ok());
        assert!(for_app(&fleet(3, APPS_MAX), &new).is_err());
        assert!(for_app(&fleet(3, APPS_MAX), &known).is_ok(), "it is there already");
        let fit = SERVER_APPS_MAX / SERVERS_MAX;
        assert!(for_app(&fleet(SERVERS_MAX, fit - 1), &new).is_ok());
        assert!(for_app(&fleet(SERVERS_MAX, fit), &new).is_err());
    }

    #[test]
    fn a_server_is_refused_where_its_group_is_full() {
        let group: GroupId = "intel.zone-a".parse().unwrap();
        assert!(for_server(&group, SERVERS_MAX - 1, 1).is_ok());
        assert!(for_server(&group, SERVERS_MAX, 1).is_err());
        assert!(for_server(&group, SERVER_APPS_MAX / APPS_MAX - 1, APPS_MAX).is_ok());
        assert!(for_server(&group, SERVER_APPS_MAX / APPS_MAX, APPS_MAX).is_err());
    }
}
