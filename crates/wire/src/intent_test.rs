use std::time::Duration;

use cohort_identity::{LIFETIME, Peer, STATEMENT_BYTES_MAX};

use super::*;
use crate::http::testing::Fleet;

fn policy(channel: &str) -> AppIntent {
    let policy = serde_json::json!({ "app": "web", "channel": channel });
    let wanted = Wanted::Policy(policy);
    AppIntent { app: "web".parse().unwrap(), revision: Revision(4), wanted, at: 1 }
}

fn verify(fleet: &Fleet, signed: &SignedIntent) -> Result<(Peer, AppIntent), IntentError> {
    signed.verify(&[fleet.authority.certificate().clone()], UnixTime::now())
}

#[test]
fn an_operators_word_is_proven_and_nobody_elses() {
    let fleet = Fleet::new();
    for role in Role::ALL {
        let identity = fleet.identity(role, "ann");
        let signed = SignedIntent::sign(&identity, &policy("stable")).unwrap();
        let found = verify(&fleet, &signed);
        match role {
            Role::Operator => {
                assert_eq!(found.unwrap(), (identity.peer().clone(), policy("stable")));
            }
            Role::Viewer | Role::Publisher | Role::Agent | Role::Hub => {
                let refused = matches!(found, Err(IntentError::Statement(_)));
                assert!(refused, "{role}");
            }
        }
    }
}

/// The hub changes what it was given to pass on: another policy, a removal, a higher revision.
#[test]
fn a_changed_intent_is_found_out() {
    let fleet = Fleet::new();
    let operator = fleet.identity(Role::Operator, "ann");
    let signed = SignedIntent::sign(&operator, &policy("stable")).unwrap();
    for forged in [
        policy("beta"),
        AppIntent { revision: Revision(9), ..policy("stable") },
        AppIntent { wanted: Wanted::Removal, ..policy("stable") },
    ] {
        let body = serde_json::to_vec(&forged).unwrap();
        let forged = SignedIntent(SignedStatement { body, ..signed.0.clone() });
        assert!(matches!(verify(&fleet, &forged), Err(IntentError::Statement(_))));
    }
    let stranger = Fleet::new().identity(Role::Operator, "ann");
    let foreign = SignedIntent::sign(&stranger, &policy("stable")).unwrap();
    assert!(verify(&fleet, &foreign).is_err(), "another authority's operator");
    let other = sign_statement(&operator, "cohort-kill/1", &signed.0.body).unwrap();
    assert!(verify(&fleet, &SignedIntent(other)).is_err(), "another kind of statement");
}

#[test]
fn an_expired_certificate_proves_nothing_whatever_date_it_signs() {
    let fleet = Fleet::new();
    let operator = fleet.identity(Role::Operator, "ann");
    let signed = SignedIntent::sign(&operator, &policy("stable")).unwrap();
    let roots = [fleet.authority.certificate().clone()];
    let later = UnixTime::now().as_secs() + LIFETIME.as_secs() + 86_400;
    let later = UnixTime::since_unix_epoch(Duration::from_secs(later));
    assert!(matches!(signed.verify(&roots, later), Err(IntentError::Statement(_))));
    assert_eq!(signed.unverified().unwrap(), policy("stable"));
}

#[test]
fn a_policy_longer_than_a_statement_is_not_signed() {
    let operator = Fleet::new().identity(Role::Operator, "ann");
    let long = policy(&"x".repeat(STATEMENT_BYTES_MAX));
    assert!(matches!(SignedIntent::sign(&operator, &long), Err(IntentError::Statement(_))));
}
