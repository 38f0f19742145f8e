use crate::authority_test::{at, authority, peer};
use crate::*;

const CONTEXT: &str = "cohort-test/1";

fn make(authority: &Authority, role: Role) -> Identity {
    let peer = peer(role, "somebody");
    authority.make_identity(&peer, LIFETIME, UnixTime::now()).unwrap()
}

fn verify(statement: &SignedStatement, trusting: &Authority) -> Result<Peer, StatementError> {
    let roots = [trusting.certificate().clone()];
    verify_statement(&roots, CONTEXT, statement, &[Role::Operator], UnixTime::now())
}

#[test]
fn an_operators_statement_is_believed_after_any_journey() {
    let (_ca, authority) = authority();
    let said = sign_statement(&make(&authority, Role::Operator), CONTEXT, b"stop").unwrap();
    let text = serde_json::to_string(&said).unwrap();
    let arrived: SignedStatement = serde_json::from_str(&text).unwrap();
    assert_eq!(verify(&arrived, &authority).unwrap(), peer(Role::Operator, "somebody"));
}

#[test]
fn other_roles_and_strangers_are_not_believed() {
    let ((_a, ours), (_b, theirs)) = (authority(), authority());
    for role in [Role::Agent, Role::Hub, Role::Publisher, Role::Viewer] {
        let said = sign_statement(&make(&ours, role), CONTEXT, b"stop").unwrap();
        let refused = verify(&said, &ours);
        assert!(matches!(refused, Err(StatementError::Role(_))), "{role}: {refused:?}");
    }
    let said = sign_statement(&make(&theirs, Role::Operator), CONTEXT, b"stop").unwrap();
    let refused = verify(&said, &ours);
    assert!(matches!(refused, Err(StatementError::Untrusted(_))), "{refused:?}");
}

#[test]
fn nothing_of_it_can_be_changed() {
    let (_ca, authority) = authority();
    let said = sign_statement(&make(&authority, Role::Operator), CONTEXT, b"stop").unwrap();
    let body = SignedStatement { body: b"go".to_vec(), ..said.clone() };
    assert!(matches!(verify(&body, &authority), Err(StatementError::Signature(_))));
    let mut signature = said.clone();
    signature.signature[10] ^= 1;
    assert!(matches!(verify(&signature, &authority), Err(StatementError::Signature(_))));
    // An agent cannot put an operator's chain in front of its own signature.
    let agents = sign_statement(&make(&authority, Role::Agent), CONTEXT, b"stop").unwrap();
    let borrowed = SignedStatement { chain: said.chain.clone(), ..agents };
    assert!(matches!(verify(&borrowed, &authority), Err(StatementError::Signature(_))));
    let no_chain = SignedStatement { chain: String::new(), ..said };
    assert!(matches!(verify(&no_chain, &authority), Err(StatementError::Untrusted(_))));
}

#[test]
fn one_kind_is_not_taken_for_another() {
    let (_ca, authority) = authority();
    let said =
        sign_statement(&make(&authority, Role::Operator), "cohort-other/1", b"stop").unwrap();
    assert!(matches!(verify(&said, &authority), Err(StatementError::Context { .. })));
    let relabelled = SignedStatement { context: CONTEXT.to_owned(), ..said };
    assert!(matches!(verify(&relabelled, &authority), Err(StatementError::Signature(_))));
}

#[test]
fn an_expired_author_is_not_believed() {
    let (_ca, authority) = authority();
    let said = sign_statement(&make(&authority, Role::Operator), CONTEXT, b"stop").unwrap();
    let roots = [authority.certificate().clone()];
    let later = at(UnixTime::now().as_secs() + LIFETIME.as_secs() + 86400);
    let refused = verify_statement(&roots, CONTEXT, &said, &[Role::Operator], later);
    assert!(matches!(refused, Err(StatementError::Untrusted(_))), "{refused:?}");
}

#[test]
fn oversized_parts_are_refused_before_they_are_looked_at() {
    let (_ca, authority) = authority();
    let operator = make(&authority, Role::Operator);
    let large = vec![0; STATEMENT_BYTES_MAX + 1];
    assert!(matches!(
        sign_statement(&operator, CONTEXT, &large),
        Err(StatementError::TooLarge { .. })
    ));
    let said = sign_statement(&operator, CONTEXT, b"stop").unwrap();
    for bad in [
        SignedStatement { body: large, ..said.clone() },
        SignedStatement { chain: "x".repeat(100_000), ..said.clone() },
        SignedStatement { signature: vec![0; 5000], ..said },
    ] {
        assert!(matches!(verify(&bad, &authority), Err(StatementError::TooLarge { .. })));
    }
}
