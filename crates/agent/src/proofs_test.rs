use std::time::Duration;

use cohort_core::Body;
use cohort_core::State;
use cohort_core::ids::Revision;
use cohort_core::policy::{Policy, Proof};
use cohort_identity::{Peer, Role, UnixTime};
use cohort_wire::intent::{AppIntent, SignedIntent, Wanted};
use serde_json::json;

use super::{Proofs, proof_of};
use crate::testing::{Lab, apply, founded, web};

/// What `by` signed of `web`.
fn signed(lab: &Lab, by: Role, revision: u64, wanted: Wanted) -> Proof {
    let at = UnixTime::now().as_secs();
    let intent = AppIntent { app: web(), revision: Revision(revision), wanted, at };
    let identity = lab.slot_of(&Peer::new(by, "ana").unwrap()).current();
    proof_of(&SignedIntent::sign(&identity, &intent).unwrap())
}

fn stable() -> serde_json::Value {
    json!({ "app": "web", "channel": "stable" })
}

fn with_policy(proof: Proof) -> State {
    let mut state = founded();
    let policy = serde_json::from_value(stable()).unwrap();
    apply(&mut state, Body::SetPolicy { policy, revision: Revision(3), proof });
    state
}

#[tokio::test]
async fn a_policy_that_no_operator_signed_gives_no_orders() {
    let lab = Lab::new().await;
    let identity = lab.slot("s1").current();
    let check =
        |state: &State, now| Proofs::default().unproven(state, identity.roots(), now).is_empty();
    let now = UnixTime::now();
    let policy = || Wanted::Policy(stable());
    let real = with_policy(signed(&lab, Role::Operator, 3, policy()));
    assert!(check(&real, now));
    let decades = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + 1_000_000_000));
    assert!(check(&real, decades), "an operator's certificate may expire meanwhile");
    let beta = Wanted::Policy(json!({ "app": "web", "channel": "beta" }));
    for forged in [
        Proof::default(),
        Proof("{}".to_owned().into()),
        signed(&lab, Role::Agent, 3, policy()),
        signed(&lab, Role::Publisher, 3, policy()),
        signed(&lab, Role::Operator, 2, policy()),
        signed(&lab, Role::Operator, 3, beta),
        signed(&lab, Role::Operator, 3, Wanted::Removal),
    ] {
        assert!(!check(&with_policy(forged.clone()), now), "{forged:?}");
    }
    // A removal likewise.
    let remove = |proof| {
        let mut state = real.clone();
        let app = state.apps.get_mut(&web()).unwrap();
        app.servers.values_mut().for_each(|here| here.found = true);
        apply(&mut state, Body::RemoveApp { app: web(), revision: Revision(4), proof });
        state
    };
    assert!(check(&remove(signed(&lab, Role::Operator, 4, Wanted::Removal)), now));
    for forged in [Proof::default(), signed(&lab, Role::Operator, 4, policy())] {
        assert!(!check(&remove(forged), now));
    }
}

/// Such as one that came with a snapshot of a hostile leader.
#[tokio::test]
async fn another_policy_with_a_known_revision_is_verified_again() {
    let lab = Lab::new().await;
    let identity = lab.slot("s1").current();
    let (proofs, now) = (Proofs::default(), UnixTime::now());
    let unproven = |state: &State| proofs.unproven(state, identity.roots(), now);
    let mut state = with_policy(signed(&lab, Role::Operator, 3, Wanted::Policy(stable())));
    assert!(unproven(&state).is_empty());
    let beta = json!({ "app": "web", "channel": "beta" });
    let policy: Policy = serde_json::from_value(beta).unwrap();
    state.apps.get_mut(&web()).unwrap().policy = policy.into();
    assert_eq!(unproven(&state), [web()].into());
    // The others get their orders.
    let other = json!({ "app": "db", "channel": "stable" });
    let intent = AppIntent {
        app: "db".parse().unwrap(),
        revision: Revision(4),
        wanted: Wanted::Policy(other.clone()),
        at: now.as_secs(),
    };
    let operator = lab.slot_of(&Peer::new(Role::Operator, "ana").unwrap()).current();
    let proof = proof_of(&SignedIntent::sign(&operator, &intent).unwrap());
    let policy = serde_json::from_value(other).unwrap();
    apply(&mut state, Body::SetPolicy { policy, revision: Revision(4), proof });
    assert_eq!(unproven(&state), [web()].into());
}
