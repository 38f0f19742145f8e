//! Replacing the authority while agents and people talk to the hub.

use std::slice::from_ref;

use cohort_identity::{Authority, Identity, PeerName, Role, UnixTime};
use cohort_wire::agent::REVOCATIONS;
use cohort_wire::http::{ApiError, Call, CallError, Client};
use cohort_wire::hub::{
    AUTHORITY, AuthorityAnswer, AuthorityRequest, AuthorityStatus, FINISH_AUTHORITY,
    FinishAuthorityRequest, RENEW, ROTATE_AUTHORITY, RenewAnswer, RenewRequest,
};
use cohort_wire::intent::Wanted;
use cohort_wire::revocation::{
    Revocation, RevocationsAnswer, RevocationsExchange, SignedRevocation,
};
use cohort_wire::tls::IdentitySlot;

use crate::support::{Caller, Running, server};

/// Renews as a process does; returns its new identity.
async fn renew(hub: &Running, present: &Identity) -> Result<Identity, ApiError> {
    let dir = tempfile::tempdir().unwrap();
    present.save(dir.path()).unwrap();
    let request = Identity::prepare_request(dir.path(), present.peer().clone()).unwrap();
    let caller = caller(hub, present);
    let answer: RenewAnswer =
        caller.post(RENEW, &RenewRequest { request: request.to_text() }).await?;
    let now = UnixTime::now();
    Ok(present.accept_renewal(dir.path(), &answer.certificate, &answer.authorities, now).unwrap())
}

fn caller(hub: &Running, identity: &Identity) -> Caller {
    let dir = tempfile::tempdir().unwrap();
    identity.save(dir.path()).unwrap();
    let copy = Identity::load(dir.path()).unwrap();
    Caller { client: Client::new(IdentitySlot::new(copy)), target: hub.target() }
}

/// What an agent says at each look.
async fn follow(hub: &Running, identity: &Identity) -> AuthorityAnswer {
    let request = AuthorityRequest { issuer: identity.issuer(), trusts: identity.trusted() };
    caller(hub, identity).post(AUTHORITY, &request).await.unwrap()
}

async fn finish(
    hub: &Running,
    by: &Identity,
    leave_behind: bool,
) -> Result<AuthorityStatus, ApiError> {
    caller(hub, by).post(FINISH_AUTHORITY, &FinishAuthorityRequest { leave_behind }).await
}

async fn revoke(hub: &Running, by: &Identity, revocation: &Revocation) {
    let news = vec![SignedRevocation::sign(by, revocation).unwrap()];
    let exchange = RevocationsExchange { news, ..RevocationsExchange::default() };
    let answer: RevocationsAnswer = caller(hub, by).post(REVOCATIONS, &exchange).await.unwrap();
    assert_eq!(answer.has[&revocation.key()], revocation.edition());
}

#[tokio::test]
async fn the_authority_is_replaced_while_everyone_works_and_ends_when_all_have_followed() {
    let hub = Running::start().await;
    let before = hub.token(Role::Agent, None).await;
    let (_, first) = hub
        .join(&hub.token(Role::Agent, None).await, Role::Agent, "web-1", Some(server("zone-a")))
        .await;
    let first = first.unwrap();
    let operator = hub.identity(Role::Operator, "ada");
    let policy = hub
        .signed("ada", Wanted::Policy(serde_json::json!({"app": "web", "channel": "stable"})))
        .await;
    let body = cohort_wire::hub::PolicyRequest { signed: policy, expected: None };
    let _: cohort_wire::hub::PolicyAnswer =
        caller(&hub, &operator).post("/v1/policies/web", &body).await.unwrap();
    let refused = finish(&hub, &operator, true).await.unwrap_err();
    assert_eq!(refused.status, 409, "nothing is being replaced");
    let eve = Revocation {
        // An operator's would void the tokens, too.
        role: Role::Viewer,
        name: PeerName::new("eve").unwrap(),
        at: UnixTime::now().as_secs() - 2,
        again: 0,
        reason: "left".to_owned(),
    };
    revoke(&hub, &operator, &eve).await;

    let status: AuthorityStatus =
        caller(&hub, &operator).post(ROTATE_AUTHORITY, &()).await.unwrap();
    assert_eq!((status.trusts.len(), status.servers, status.behind.len()), (2, 1, 1));
    let again: Result<AuthorityStatus, ApiError> =
        caller(&hub, &operator).post(ROTATE_AUTHORITY, &()).await;
    assert_eq!(again.unwrap_err().status, 409);
    // Those with old certificates work on, and servers join, by old tokens and new.
    assert_ne!(follow(&hub, &first).await.issuer, first.issuer().unwrap());
    for (token, name) in [(before, "web-2"), (hub.token(Role::Agent, None).await, "web-3")] {
        let (answer, joined) = hub.join(&token, Role::Agent, name, Some(server("zone-a"))).await;
        let token: cohort_identity::JoinToken = token.token.parse().unwrap();
        assert_eq!(token.anchors.check(&answer.unwrap().authority, None), Ok(()));
        let joined = renew(&hub, &joined.unwrap()).await.unwrap();
        assert_eq!(joined.trusted().len(), 2);
        follow(&hub, &joined).await;
    }
    let refused = finish(&hub, &operator, false).await.unwrap_err();
    assert!(refused.status == 409 && refused.error.contains("web-1"), "{refused:?}");
    assert!(!refused.error.contains("web-2"), "{refused:?}");
    let first = renew(&hub, &first).await.unwrap();
    follow(&hub, &first).await;

    // The policy was signed with a certificate of the old one.
    let refused = finish(&hub, &operator, false).await.unwrap_err();
    assert!(refused.status == 409 && refused.error.contains("web"), "{refused:?}");
    let operator = renew(&hub, &operator).await.unwrap();
    let fleet: cohort_registry::fleet::Fleet =
        caller(&hub, &operator).get("/v1/fleet").await.unwrap();
    let old = fleet.policies.values().next().unwrap().clone();
    let intent = cohort_wire::intent::AppIntent {
        revision: cohort_core::ids::Revision(fleet.revision + 1),
        ..old.unverified().unwrap()
    };
    let signed = cohort_wire::intent::SignedIntent::sign(&operator, &intent).unwrap();
    let expected = Some(old.unverified().unwrap().revision);
    let body = cohort_wire::hub::PolicyRequest { signed, expected };
    let _: cohort_wire::hub::PolicyAnswer =
        caller(&hub, &operator).post("/v1/policies/web", &body).await.unwrap();

    // Nobody would believe the revocation any more.
    let refused = finish(&hub, &operator, false).await.unwrap_err();
    assert!(refused.status == 409 && refused.error.contains("revocation"), "{refused:?}");
    let status: AuthorityStatus = caller(&hub, &operator).get(AUTHORITY).await.unwrap();
    let [signed] = &status.revocations[..] else { panic!("{:?}", status.revocations) };
    let (_, known) = signed.verify(operator.roots(), UnixTime::now()).unwrap();
    assert_eq!(known, eve);
    revoke(&hub, &operator, &known.once_more()).await;

    let status = finish(&hub, &operator, false).await.unwrap();
    assert_eq!(status.trusts, from_ref(&status.issuer));
    assert_eq!(status.revocations, []);
    // What only the old one certified counts no more, not even to renew.
    assert!(is_cut_off(&caller(&hub, &hub.identity(Role::Operator, "ada"))).await);
    let last = renew(&hub, &first).await.unwrap();
    assert_eq!(last.trusted(), from_ref(&status.issuer));
    assert_eq!(follow(&hub, &last).await.trusts, last.trusted());

    // The same after a restart, and the key of the old one is gone.
    let hub = hub.restart().await;
    let known: AuthorityStatus =
        caller(&hub, &renew_by(&hub, &operator).await).get(AUTHORITY).await.unwrap();
    assert_eq!(known.trusts, status.trusts);
    let authority = Authority::open(&hub.config.authority_dir()).unwrap();
    assert_eq!(authority.fingerprint(), status.issuer);
    hub.stop().await;
}

async fn renew_by(hub: &Running, identity: &Identity) -> Identity {
    renew(hub, identity).await.unwrap()
}

/// Whether there is no connection any more.
async fn is_cut_off(caller: &Caller) -> bool {
    let call = Call::get("/v1/fleet");
    let answer: Result<serde_json::Value, CallError> =
        caller.client.call_json(&caller.target, call).await;
    matches!(answer, Err(error) if !matches!(error, CallError::Answered { .. }))
}

#[tokio::test]
async fn a_server_that_is_left_behind_does_not_keep_the_old_authority_for_ever() {
    let hub = Running::start().await;
    let (_, lost) = hub.join_agent("web-1", "zone-a").await;
    let operator = hub.identity(Role::Operator, "ada");
    let _: AuthorityStatus = caller(&hub, &operator).post(ROTATE_AUTHORITY, &()).await.unwrap();
    let operator = renew(&hub, &operator).await.unwrap();
    assert!(finish(&hub, &operator, false).await.is_err());
    assert!(finish(&hub, &operator, true).await.is_ok());
    assert!(is_cut_off(&lost).await);
    hub.stop().await;
}

/// The trail cannot be written: nothing changes that is not in it.
#[tokio::test]
async fn no_authority_is_replaced_without_an_entry_in_the_audit_trail() {
    let hub = Running::start().await;
    let operator = caller(&hub, &hub.identity(Role::Operator, "ada"));
    let before: AuthorityStatus = operator.get(AUTHORITY).await.unwrap();
    let trail = hub.config.data_dir.join("audit");
    let aside = hub.config.data_dir.join("aside");
    std::fs::rename(&trail, &aside).unwrap();
    let refused: Result<AuthorityStatus, ApiError> = operator.post(ROTATE_AUTHORITY, &()).await;
    assert_eq!(refused.unwrap_err().status, 503);
    let after: AuthorityStatus = operator.get(AUTHORITY).await.unwrap();
    assert_eq!((after.issuer, after.trusts), (before.issuer, before.trusts));
    std::fs::rename(&aside, &trail).unwrap();
    let _: AuthorityStatus = operator.post(ROTATE_AUTHORITY, &()).await.unwrap();
}

/// The hub's disk fails in the middle of the end of the old authority.
#[tokio::test]
async fn an_end_of_the_old_authority_that_failed_can_be_repeated() {
    let hub = Running::start().await;
    let operator = hub.identity(Role::Operator, "ada");
    let _: AuthorityStatus = caller(&hub, &operator).post(ROTATE_AUTHORITY, &()).await.unwrap();
    let operator = renew(&hub, &operator).await.unwrap();
    let file = hub.config.authority_dir().join("ca.pem");
    let aside = hub.config.authority_dir().join("aside");
    std::fs::rename(&file, &aside).unwrap();
    std::fs::create_dir_all(file.join("in-the-way")).unwrap();
    assert_eq!(finish(&hub, &operator, true).await.unwrap_err().status, 500);
    std::fs::remove_dir_all(&file).unwrap();
    std::fs::rename(&aside, &file).unwrap();
    let hub = hub.restart().await;
    let status = finish(&hub, &operator, true).await.unwrap();
    assert_eq!(status.trusts, from_ref(&status.issuer));
}
