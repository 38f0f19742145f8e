//! Whether a group has room for another app or another server: what a group would refuse later, out
//! of sight, the hub refuses to the person who asks.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::{AppId, GroupId};
use cohort_core::state::{APPS_MAX, SERVER_APPS_MAX, SERVERS_MAX};
use cohort_registry::fleet::Fleet;
use cohort_wire::http::ApiError;

/// Refuses a new app for which some group has no room; every group has every app.
pub(crate) fn for_app(fleet: &Fleet, app: &AppId) -> Result<(), ApiError> {
    if fleet.policies.contains_key(app) {
        return Ok(());
    }
    let apps: BTreeSet<&AppId> = fleet.policies.keys().chain([app]).collect();
    let remove = "remove one: cohort app remove APP";
    if apps.len() > APPS_MAX {
        let full = format!("app {app} would be one more than the {APPS_MAX} that a fleet may have");
        return Err(ApiError::conflict(full).hint(remove));
    }
    let mut sizes: BTreeMap<&GroupId, usize> = BTreeMap::new();
    for server in &fleet.servers {
        *sizes.entry(&server.group).or_default() += 1;
    }
    for (group, servers) in sizes {
        // An app that the group is still removing takes its place until it is gone.
        let leaving = fleet.groups.get(group).into_iter().flat_map(|known| &known.apps);
        let leaving = leaving.map(|record| &record.app).filter(|app| !apps.contains(app)).count();
        let apps = apps.len() + leaving;
        if apps <= APPS_MAX && servers * apps <= SERVER_APPS_MAX {
            continue;
        }
        let full = ApiError::conflict(format!(
            "group {group} has {servers} servers, and would have {apps} apps ({leaving} being \
             removed): at most {APPS_MAX}, and servers times apps at most {SERVER_APPS_MAX}"
        ));
        return Err(match leaving {
            0 => full.hint(remove),
            _ => full.hint(format!("wait until they are gone: cohort why {group}")),
        }
        .hint("or split the group: give some of its servers another label"));
    }
    Ok(())
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

    use cohort_core::ids::{AppId, GroupId, Incarnation};
    use cohort_core::phase::PhaseName;
    use cohort_core::state::{APPS_MAX, SERVER_APPS_MAX, SERVERS_MAX};
    use cohort_identity::SignedStatement;
    use cohort_registry::fleet::{Fleet, FleetGroup};
    use cohort_registry::records::{GroupRecord, SCHEMA, ServerRecord, Stamp};
    use cohort_wire::intent::SignedIntent;

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
        let policy = |n| {
            let (body, context, signature) = (Vec::new(), String::new(), Vec::new());
            let signed = SignedStatement { body, context, chain: String::new(), signature };
            (format!("app-{n}").parse().unwrap(), SignedIntent(signed))
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
    fn an_app_that_a_group_still_removes_takes_its_room() {
        let new: AppId = "new".parse().unwrap();
        let group: GroupId = "intel.zone-a".parse().unwrap();
        let leaves = |name: &str| GroupRecord {
            schema: SCHEMA,
            group: "intel.zone-a".parse().unwrap(),
            app: name.parse().unwrap(),
            stamp: Stamp { incarnation: Incarnation(1), term: 1, index: 1 },
            sequence: 1,
            state: PhaseName::Removing,
            running: None,
            target: None,
            held_reason: None,
            since: 0,
        };
        let mut fleet = fleet(3, APPS_MAX - 1);
        let known = FleetGroup { apps: vec![leaves("app-0")], ..FleetGroup::default() };
        fleet.groups.insert(group.clone(), known);
        assert!(for_app(&fleet, &new).is_ok(), "counted once");
        fleet.groups.get_mut(&group).unwrap().apps.push(leaves("old"));
        assert!(for_app(&fleet, &new).is_err());
        fleet.policies.pop_last();
        assert!(for_app(&fleet, &new).is_ok());
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
