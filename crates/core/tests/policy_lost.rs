//! A hub that has lost a policy, or has an older one, changes nothing in the group, and is named.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use cohort_core::gate::RegistryView;
use cohort_core::ids::Revision;
use cohort_core::waiting::WaitingOn;
use cohort_core::{Body, Observations, Plan, plan};

use common::{app, group, policy, server};

/// The plan of a group whose policy is of revision 1, with a hub that has this one.
fn seen(hub: Option<u64>) -> Plan {
    let mut view = RegistryView::default();
    view.policies.extend(hub.map(|revision| (app(), (Revision(revision), policy(3, 2)))));
    let (leader, registry) = (Some(server(0)), Some(view));
    plan(&group(), &Observations { leader, registry, ..Observations::default() })
}

fn lost(plan: &Plan) -> Option<&WaitingOn> {
    let mut on = plan.waiting.iter().map(|waiting| &waiting.on);
    on.find(|on| matches!(on, WaitingOn::PolicyLost { .. }))
}

fn sets_policy(plan: &Plan) -> bool {
    plan.commands.iter().any(|body| matches!(body, Body::SetPolicy { .. }))
}

/// The hub shows a removal of the app that an operator signed before the policy that the group has.
#[test]
fn a_removal_from_before_the_policy_is_a_replay_and_removes_nothing() {
    let seen = |removal: u64| {
        let mut view = RegistryView::default();
        view.removed.insert(app(), Revision(removal));
        let (leader, registry) = (Some(server(0)), Some(view));
        plan(&group(), &Observations { leader, registry, ..Observations::default() })
    };
    let removes =
        |plan: &Plan| plan.commands.iter().any(|body| matches!(body, Body::RemoveApp { .. }));
    for replayed in [0, 1] {
        let plan = seen(replayed);
        assert!(!removes(&plan));
        let found_out = WaitingOn::PolicyLost { hub: None, group: Revision(1) };
        assert_eq!(lost(&plan), Some(&found_out));
    }
    let plan = seen(2);
    assert_eq!((removes(&plan), lost(&plan)), (true, None));
}

#[test]
fn a_policy_that_the_hub_lost_is_asked_for_and_an_older_one_is_not_taken() {
    let group = Revision(1);
    let plan = seen(None);
    assert_eq!(lost(&plan), Some(&WaitingOn::PolicyLost { hub: None, group }));
    let plan = seen(Some(0));
    assert_eq!(lost(&plan), Some(&WaitingOn::PolicyLost { hub: Some(Revision(0)), group }));
    assert!(!sets_policy(&plan));
    let plan = seen(Some(1));
    assert_eq!((lost(&plan), sets_policy(&plan)), (None, false));
    let plan = seen(Some(2));
    assert_eq!((lost(&plan), sets_policy(&plan)), (None, true));
    let away = Observations { leader: Some(server(0)), ..Observations::default() };
    assert_eq!(lost(&cohort_core::plan(&common::group(), &away)), None, "a hub that is away");
}
