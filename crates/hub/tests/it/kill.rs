//! The kill switch through the hub: signed by an operator, latched, seen by a watch.

use cohort_core::ids::GroupId;
use cohort_identity::Role;
use cohort_registry::keys;
use cohort_registry::typed::get;
use cohort_wire::hub::KILL;
use cohort_wire::kill::{KillAnswer, KillRegister, KillScope, SignedKill};

use crate::support::Running;

fn signed(hub: &Running, role: Role, scope: KillScope, epoch: u64, on: bool) -> SignedKill {
    let register = KillRegister { scope, epoch, on, reason: "smoke".into(), at: 0 };
    SignedKill::sign(&hub.identity(role, "ada"), &register).unwrap()
}

#[tokio::test]
async fn on_is_latched_off_needs_a_higher_epoch_and_agents_see_it() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let operator = hub.operator();
    let on = signed(&hub, Role::Operator, KillScope::Fleet, 1, true);
    let answer: KillAnswer = operator.post(KILL, &on).await.unwrap();
    assert!(answer.changed);
    assert_eq!(answer.registers, vec![on.clone()]);
    let off = signed(&hub, Role::Operator, KillScope::Fleet, 1, false);
    let answer: KillAnswer = operator.post(KILL, &off).await.unwrap();
    assert!(!answer.changed, "on wins ties");
    let metrics = hub.plain("GET", "/metrics", "").await.text();
    assert!(metrics.contains("cohort_hub_kill_registers_latched_total 1\n"), "{metrics}");
    assert!(metrics.contains("cohort_hub_kill_switches_on 1\n"), "{metrics}");
    // An agent forwards what an operator has signed.
    let scope = KillScope::Group(GroupId::new("intel.zone-a").unwrap());
    let group_on = signed(&hub, Role::Operator, scope.clone(), 3, true);
    let answer: KillAnswer = agent.post(KILL, &group_on).await.unwrap();
    assert!(answer.changed);
    for (scope, register) in [(KillScope::Fleet, on), (scope, group_on)] {
        let seen = get(&agent.registry(), &keys::kill(&scope)).await.unwrap().unwrap();
        assert_eq!(serde_json::from_str::<SignedKill>(&seen.value).unwrap(), register);
    }

    let hub = hub.restart().await;
    let answer: KillAnswer = hub.operator().get(KILL).await.unwrap();
    assert_eq!(answer.registers.len(), 2, "latched on disk");
    let off = signed(&hub, Role::Operator, KillScope::Fleet, 2, false);
    let answer: KillAnswer = hub.operator().post(KILL, &off).await.unwrap();
    assert!(answer.changed);
    let fleet = keys::kill(&KillScope::Fleet);
    let seen = get(&hub.operator().registry(), &fleet).await.unwrap().unwrap();
    assert_eq!(serde_json::from_str::<SignedKill>(&seen.value).unwrap(), off);
    hub.stop().await;
}

#[tokio::test]
async fn what_no_operator_signed_changes_nothing() {
    let hub = Running::start().await;
    let stranger = Running::start().await;
    let operator = hub.operator();
    for wrong in [
        signed(&hub, Role::Agent, KillScope::Fleet, 1, true),
        signed(&hub, Role::Viewer, KillScope::Fleet, 1, true),
        signed(&stranger, Role::Operator, KillScope::Fleet, 1, true),
    ] {
        let error = operator.post::<KillAnswer>(KILL, &wrong).await.unwrap_err();
        assert_eq!(error.status, 403, "{error}");
    }
    let mut forged = signed(&hub, Role::Operator, KillScope::Fleet, 1, true);
    forged.0.body[0] ^= 1;
    assert_eq!(operator.post::<KillAnswer>(KILL, &forged).await.unwrap_err().status, 403);
    // A viewer may not even forward a good one.
    let good = signed(&hub, Role::Operator, KillScope::Fleet, 1, true);
    let viewer = hub.client(Role::Viewer, "vera");
    assert_eq!(viewer.post::<KillAnswer>(KILL, &good).await.unwrap_err().status, 403);
    let answer: KillAnswer = operator.get(KILL).await.unwrap();
    assert!(answer.registers.is_empty());
    hub.stop().await;
    stranger.stop().await;
}
