use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cohort_core::ids::GroupId;
use cohort_core::state::SERVERS_MAX;
use cohort_hub::Hub;
use cohort_identity::{Identity, JoinToken, Peer, PeerName, Role, TokenState, UnixTime};
use cohort_registry::records::{SCHEMA, ServerRecord, encode};
use cohort_registry::typed::bootstrap_group;
use cohort_registry::{EmbeddedRegistry, Op, Registry as _, Txn, keys};
use cohort_wire::agent::REVOCATIONS;
use cohort_wire::audit::{AUDIT, AuditPage};
use cohort_wire::http::{Call, CallError, Client};
use cohort_wire::hub::{
    JOIN, JoinAnswer, JoinRequest, JoiningServer, RENEW, REVOKE_TOKEN, RenewAnswer, RenewRequest,
    RevokeTokenRequest, TOKEN, TokenAnswer, TokenListed, TokenRequest,
};
use cohort_wire::revocation::{
    Revocation, Revocations, RevocationsAnswer, RevocationsExchange, SignedRevocation,
};
use cohort_wire::tls::IdentitySlot;

use crate::support::{Caller, Running, server};

/// Of the roots that follow from one another, each joiner gets the one that its token names.
#[tokio::test]
async fn a_token_stays_good_when_the_repositorys_keys_change() {
    let hub = Running::start().await;
    let metadata = hub.config.repository_dir().join("metadata");
    std::fs::create_dir_all(&metadata).unwrap();
    std::fs::write(metadata.join("1.root.json"), "first").unwrap();
    let before = hub.token(Role::Agent, None).await;
    for (version, content) in [(2, "second"), (10, "tenth")] {
        std::fs::write(metadata.join(format!("{version}.root.json")), content).unwrap();
    }
    let after = hub.token(Role::Agent, None).await;
    for (token, name, root) in [(before, "web-1", "first"), (after, "web-2", "tenth")] {
        let (answer, _) = hub.join(&token, Role::Agent, name, Some(server("zone-a"))).await;
        let answer = answer.unwrap();
        assert_eq!(answer.trusted_root.as_deref(), Some(root));
        let token: JoinToken = token.token.parse().unwrap();
        assert_eq!(token.anchors.check(&answer.authority, Some(root)), Ok(()));
    }
    hub.stop().await;
}

#[tokio::test]
async fn a_server_joins_and_learns_all_that_it_needs() {
    let hub = Running::start_with(|config| {
        config.mirrors = vec!["http://mirror-1/".to_owned()];
    })
    .await;
    let root = hub.config.repository_dir().join("metadata/1.root.json");
    std::fs::create_dir_all(root.parent().unwrap()).unwrap();
    std::fs::write(&root, "{\"a\":\"root\"}").unwrap();
    let token: JoinToken = hub.token(Role::Agent, None).await.token.parse().unwrap();
    let (answer, _) = hub.join_agent("web-1", "zone-a").await;
    assert_eq!(token.anchors.check(&answer.authority, answer.trusted_root.as_deref()), Ok(()));
    assert_eq!(answer.hub.as_str(), "hub");
    assert_eq!(answer.trusted_root.as_deref(), Some("{\"a\":\"root\"}"));
    assert_eq!(answer.mirrors, ["http://mirror-1/"]);
    assert_eq!(answer.repository_port, Some(hub.plain.port()));
    let group = answer.group.unwrap();
    assert_eq!(group.group.as_str(), "intel.zone-a");
    assert_eq!(group.labels.len(), 2);
    let fleet: cohort_registry::fleet::Fleet = hub.operator().get("/v1/fleet").await.unwrap();
    assert_eq!(fleet.servers.len(), 1);
    assert_eq!(fleet.servers[0].group, group.group);
    let info = fleet.groups[&group.group].info.clone().unwrap();
    assert_eq!(info.platform.as_str(), "linux/amd64");
    assert!(fleet.unreadable.is_empty());
    hub.stop().await;
}

#[tokio::test]
async fn a_token_is_good_once_and_for_its_role_and_name() {
    let hub = Running::start().await;
    let token = hub.token(Role::Agent, None).await;
    let (first, _) = hub.join(&token, Role::Agent, "web-1", Some(server("zone-a"))).await;
    first.unwrap();
    let (again, _) = hub.join(&token, Role::Agent, "web-2", Some(server("zone-a"))).await;
    let error = again.unwrap_err();
    assert_eq!((error.status, error.kind.as_str()), (403, "forbidden"));
    assert!(!error.hints.is_empty());

    let token = hub.token(Role::Agent, None).await;
    let request =
        TokenRequest { role: Role::Operator, name: None, valid_s: None, addresses: vec![] };
    let unnamed = hub.operator().post::<TokenAnswer>(TOKEN, &request).await.unwrap_err();
    assert_eq!(unnamed.status, 400, "it could take any person's name");
    let (other_role, _) = hub.join(&token, Role::Operator, "eve", None).await;
    assert_eq!(other_role.unwrap_err().status, 403);
    let (taken, _) = hub.join(&token, Role::Agent, "web-1", Some(server("zone-a"))).await;
    assert_eq!(taken.unwrap_err().status, 409, "the name of a server that is there");
    let named = hub.token(Role::Agent, Some("web-1")).await;
    let (other_name, _) = hub.join(&named, Role::Agent, "web-9", Some(server("zone-a"))).await;
    assert_eq!(other_name.unwrap_err().status, 403);
    let (replaced, _) = hub.join(&named, Role::Agent, "web-1", Some(server("zone-a"))).await;
    replaced.expect("a token for that very name replaces its holder");

    let revoked = hub.token(Role::Viewer, Some("vera")).await;
    let request = RevokeTokenRequest { id: revoked.id.clone() };
    hub.operator().post::<()>(REVOKE_TOKEN, &request).await.unwrap();
    let (late, _) = hub.join(&revoked, Role::Viewer, "vera", None).await;
    assert_eq!(late.unwrap_err().status, 403);
    let ann = hub.token(Role::Publisher, Some("ann")).await;
    hub.join(&ann, Role::Publisher, "ann", None).await.0.unwrap();
    let unused = hub.token(Role::Agent, Some("web-7")).await;
    let listed: Vec<TokenListed> = hub.operator().get(TOKEN).await.unwrap();
    let state = |id: &str| listed.iter().find(|it| it.id == id).map(|it| &it.state);
    assert_eq!(state(&revoked.id), Some(&TokenState::Revoked));
    assert_eq!(state(&unused.id), Some(&TokenState::Unused));
    assert!(
        matches!(state(&ann.id), Some(TokenState::Used { peer, .. }) if peer.name.as_str() == "ann")
    );
    assert_eq!(state(&named.id), None, "a server that has joined is in the fleet");
    hub.stop().await;
}

/// Whoever has no token gets the same answer whatever else it says.
#[tokio::test]
async fn join_looks_at_the_token_first() {
    let hub = Running::start().await;
    hub.join_agent("web-1", "zone-a").await;
    let token: JoinToken = hub.token(Role::Agent, None).await.token.parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let peer = Peer::new(Role::Agent, "web-1").unwrap();
    let good = Identity::prepare_request(dir.path(), peer).unwrap().to_text();
    let other_platform = JoiningServer { platform: "intel".parse().unwrap(), ..server("zone-a") };
    let caller = Caller { client: Client::joining(&token.anchors.authority), target: hub.target() };
    for (id, secret) in [("0".repeat(16), token.secret().to_owned()), (token.id, "x".to_owned())] {
        for request in [good.clone(), "no request".to_owned()] {
            for server in [None, Some(server("zone-a")), Some(other_platform.clone())] {
                let request = JoinRequest {
                    token_id: id.clone(),
                    token_secret: secret.clone(),
                    request: request.clone(),
                    server,
                };
                let error = caller.post::<JoinAnswer>(JOIN, &request).await.unwrap_err();
                assert_eq!((error.status, error.error.as_str()), (403, "unknown join token"));
            }
        }
    }
    let large = Call::post(JOIN, &"x".repeat(100_000));
    assert_eq!(caller.send(large).await.unwrap_err().status, 413);
    hub.stop().await;
}

#[tokio::test]
async fn a_caller_that_lost_the_answer_may_ask_again_also_from_another_group() {
    let hub = Running::start().await;
    let token: JoinToken = hub.token(Role::Agent, None).await.token.parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let peer = Peer::new(Role::Agent, "web-1").unwrap();
    for zone in ["zone-a", "zone-a", "zone-b"] {
        let request = JoinRequest {
            token_id: token.id.clone(),
            token_secret: token.secret().to_owned(),
            request: Identity::prepare_request(dir.path(), peer.clone()).unwrap().to_text(),
            server: Some(server(zone)),
        };
        let client = Client::joining(&token.anchors.authority);
        let caller = Caller { client, target: hub.target() };
        let answer: JoinAnswer = caller.post(JOIN, &request).await.unwrap();
        let last = tempfile::tempdir().unwrap();
        let key = dir.path().join("key.pem.next");
        std::fs::copy(key, last.path().join("key.pem.next")).unwrap();
        let identity = Identity::accept(last.path(), &answer.certificate, &answer.authority);
        // Its certificate and its record name the same group.
        let group = answer.group.unwrap().group;
        assert_eq!(group.as_str(), format!("intel.{zone}"));
        let client = Client::new(IdentitySlot::new(identity.unwrap()));
        let agent = Caller { client, target: hub.target() };
        bootstrap_group(&agent.registry(), &group, &"web-1".parse().unwrap()).await.unwrap();
    }
    hub.stop().await;
}

#[tokio::test]
async fn a_hub_of_another_authority_is_not_joined() {
    let hub = Running::start().await;
    let stranger = Running::start().await;
    let token: JoinToken = hub.token(Role::Agent, None).await.token.parse().unwrap();
    let client = Client::joining(&token.anchors.authority);
    // A token of one fleet at the hub of another.
    let call = Call::post(JOIN, &serde_json::json!({}));
    let error = client.call(&stranger.target(), call).await.unwrap_err();
    assert!(matches!(error, CallError::Identity { .. }), "{error:?}");
    // And vice versa: a certificate of one fleet at the hub of another.
    let caller = Caller { target: hub.target(), ..stranger.operator() };
    let error = caller.client.call(&caller.target, Call::get("/v1/fleet")).await.unwrap_err();
    assert!(error.status().is_none(), "{error:?}");
    hub.stop().await;
    stranger.stop().await;
}

#[tokio::test]
async fn what_a_server_says_of_itself_is_checked_before_the_token_is_used() {
    let hub = Running::start().await;
    let token = hub.token(Role::Agent, None).await;
    let mut odd = Vec::new();
    for (key, value) in [("zone", "ZONE"), ("zone", ""), ("zone", "a b"), ("", "x")] {
        let mut server = server("zone-a");
        server.labels.insert(key.to_owned(), value.to_owned());
        odd.push(server);
    }
    odd.push(cohort_wire::hub::JoiningServer { address: "nowhere".into(), ..server("zone-a") });
    let mut many = server("zone-a");
    many.labels.extend((0..40).map(|n| (format!("l{n}"), "x".to_owned())));
    odd.push(many);
    for server in odd {
        let (answer, _) = hub.join(&token, Role::Agent, "web-1", Some(server.clone())).await;
        assert_eq!(answer.unwrap_err().status, 400, "{server:?}");
    }
    let (none, _) = hub.join(&token, Role::Agent, "web-1", None).await;
    assert_eq!(none.unwrap_err().status, 400);
    let (good, _) = hub.join(&token, Role::Agent, "web-1", Some(server("zone-a"))).await;
    good.expect("the token is still good");
    // Another platform in the same group is refused.
    let token = hub.token(Role::Agent, None).await;
    let mut other = server("zone-a");
    other.platform = "linux/arm64".parse().unwrap();
    let (answer, _) = hub.join(&token, Role::Agent, "web-2", Some(other)).await;
    let error = answer.unwrap_err();
    assert_eq!(error.status, 409, "{error}");
    hub.stop().await;
}

#[tokio::test]
async fn a_token_is_not_used_up_by_a_group_without_room() {
    let hub = Running::start().await;
    let (joined, _) = hub.join_agent("web-0", "zone-a").await;
    let group = joined.group.unwrap().group;
    let hub = hub
        .restart_with(|data, _| {
            let path = data.join("registry.redb");
            std::thread::spawn(move || fill(&path, &group)).join().unwrap();
        })
        .await;
    let token = hub.token(Role::Agent, None).await;
    let (full, _) = hub.join(&token, Role::Agent, "web-9999", Some(server("zone-a"))).await;
    assert_eq!(full.unwrap_err().status, 409);
    let path = cohort_wire::hub::server_path(&"web-0".parse().unwrap());
    hub.operator().send(Call::new(http::Method::DELETE, path)).await.unwrap();
    let (joined, _) = hub.join(&token, Role::Agent, "web-9999", Some(server("zone-a"))).await;
    joined.expect("the token is still good");
    hub.stop().await;
}

/// Gives a group, which has one server, all that it may have.
#[tokio::main(flavor = "current_thread")]
async fn fill(registry: &Path, group: &GroupId) {
    let registry = EmbeddedRegistry::open(registry, "").unwrap();
    let put = |n| {
        let record = ServerRecord {
            schema: SCHEMA,
            server: format!("web-{n}").parse().unwrap(),
            address: "127.0.0.1:7417".into(),
            labels: Default::default(),
            rack: None,
            group: group.clone(),
        };
        Op::put(keys::server(&record.server), encode(&record))
    };
    let puts: Vec<Op> = (1..SERVERS_MAX).map(put).collect();
    for then in puts.chunks(100) {
        let txn = Txn { then: then.to_vec(), ..Txn::default() };
        registry.txn(txn).await.unwrap();
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_for_its_holder_only() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("web-1", "zone-a").await;
    let keys = tempfile::tempdir().unwrap();
    let ask = |name: &str| {
        let peer = Peer::new(Role::Agent, name).unwrap();
        let request = Identity::prepare_request(keys.path(), peer).unwrap();
        RenewRequest { request: request.to_text() }
    };
    let answer: RenewAnswer = agent.post(RENEW, &ask("web-1")).await.unwrap();
    assert!(answer.certificate.contains("BEGIN CERTIFICATE"));
    let other = agent.post::<RenewAnswer>(RENEW, &ask("web-2")).await.unwrap_err();
    assert_eq!(other.status, 403);
    // An agent that the registry does not know gets none.
    let removed = hub.client(Role::Agent, "web-9");
    let error = removed.post::<RenewAnswer>(RENEW, &ask("web-9")).await.unwrap_err();
    assert_eq!(error.status, 403);
    hub.stop().await;
}

#[tokio::test]
async fn only_operators_make_tokens_and_never_for_hubs() {
    let hub = Running::start().await;
    let request = TokenRequest { role: Role::Agent, name: None, valid_s: None, addresses: vec![] };
    for role in [Role::Viewer, Role::Publisher, Role::Agent, Role::Hub] {
        let caller = hub.client(role, "x");
        let error = caller.post::<serde_json::Value>(TOKEN, &request).await.unwrap_err();
        assert_eq!(error.status, 403, "{role}");
    }
    for wrong in [
        TokenRequest { role: Role::Hub, ..request.clone() },
        TokenRequest { valid_s: Some(0), ..request.clone() },
        TokenRequest { valid_s: Some(u64::MAX), ..request.clone() },
        TokenRequest { addresses: vec!["no port".into()], ..request.clone() },
    ] {
        let error = hub.operator().post::<serde_json::Value>(TOKEN, &wrong).await.unwrap_err();
        assert_eq!(error.status, 400, "{wrong:?}");
    }
    let token: JoinToken = hub.token(Role::Agent, None).await.token.parse().unwrap();
    assert_eq!(token.addresses, [hub.api.to_string()]);
    assert_eq!(token.anchors.authority, hub.authority.fingerprint());
    hub.stop().await;
}

#[tokio::test]
async fn without_authority_and_certificate_a_hub_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let config = cohort_hub::HubConfig::new(folder.path());
    let error = Hub::start(config).await.err().unwrap().to_string();
    assert!(error.contains("cohort init"), "{error}");
}

/// A stolen operator key makes join tokens, and comes back with one: not once it is revoked. A new
/// token brings the person back, with a certificate that counts.
#[tokio::test]
async fn a_revocation_ends_the_tokens_that_were_made_before() {
    let hub = Running::start().await;
    let made_before = hub.token(Role::Operator, Some("eve")).await;
    let revocation = Revocation {
        role: Role::Operator,
        name: PeerName::new("eve").unwrap(),
        // A certificate issued later is valid from a second later.
        at: UnixTime::now().as_secs() - 2,
        again: 0,
        reason: String::new(),
    };
    let ada = hub.identity(Role::Operator, "ada");
    let news = vec![SignedRevocation::sign(&ada, &revocation).unwrap()];
    let exchange = RevocationsExchange { news, ..RevocationsExchange::default() };
    let answer: RevocationsAnswer = hub.operator().post(REVOCATIONS, &exchange).await.unwrap();
    assert_eq!(answer.has, [("operator/eve".to_owned(), revocation.edition())].into());
    let (refused, _) = hub.join(&made_before, Role::Operator, "eve", None).await;
    assert_eq!(refused.unwrap_err().status, 403);
    let again = hub.token(Role::Operator, Some("eve")).await;
    let (answer, eve) = hub.join(&again, Role::Operator, "eve", None).await;
    answer.unwrap();
    let client = Client::new(IdentitySlot::new(eve.unwrap()));
    let eve = Caller { client, target: hub.target() };
    eve.get::<cohort_registry::fleet::Fleet>("/v1/fleet").await.unwrap();
}

/// A copy of the hub's key was stolen: the hub, which has the authority, makes itself another one.
#[tokio::test]
async fn a_hub_whose_certificate_is_revoked_gets_a_new_one() {
    let hub = Running::start().await;
    let revocation = Revocation {
        role: Role::Hub,
        name: PeerName::new("hub").unwrap(),
        at: UnixTime::now().as_secs() - 2,
        again: 0,
        reason: String::new(),
    };
    let ada = hub.identity(Role::Operator, "ada");
    let signed = SignedRevocation::sign(&ada, &revocation).unwrap();
    let refuses = Arc::<Revocations>::default();
    assert!(refuses.offer(&signed, ada.roots(), UnixTime::now()).unwrap());
    let slot = IdentitySlot::refusing(hub.identity(Role::Operator, "bob"), refuses);
    let bob = Caller { client: Client::new(slot), target: hub.target() };
    type Fleet = cohort_registry::fleet::Fleet;
    let get = || Call::get("/v1/fleet");
    let fleet = async || bob.client.call_json::<Fleet>(&bob.target, get()).await;
    assert!(fleet().await.is_err(), "the certificate that was stolen");
    let exchange = RevocationsExchange { news: vec![signed], ..RevocationsExchange::default() };
    let _: RevocationsAnswer = hub.operator().post(REVOCATIONS, &exchange).await.unwrap();
    let renewed = async { while fleet().await.is_err() {} };
    let renewed = tokio::time::timeout(Duration::from_secs(20), renewed).await;
    renewed.expect("the hub has no new certificate");
    hub.restart().await.operator().call::<Fleet>(get()).await.unwrap();
}

/// Whoever hangs up in the middle of a change must not keep it out of the audit trail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_in_the_audit_trail_also_if_its_caller_hangs_up() {
    let hub = Running::start().await;
    let operator = hub.operator();
    let audited = async || {
        let page: AuditPage = operator.get(&format!("{AUDIT}?after=0")).await.unwrap();
        page.lines.iter().filter(|line| line.contains("join token")).count()
    };
    let request =
        TokenRequest { role: Role::Agent, name: None, valid_s: None, addresses: Vec::new() };
    for wait_us in (0..40).map(|n| n * 150) {
        let caller = hub.client(Role::Operator, "ada");
        let _warm: AuditPage = caller.get(&format!("{AUDIT}?after=0")).await.unwrap();
        let call = caller.post::<TokenAnswer>(TOKEN, &request);
        let _hung_up = tokio::time::timeout(Duration::from_micros(wait_us), call).await;
    }
    let tokens = || std::fs::read_dir(hub.config.data_dir.join("tokens")).unwrap().count();
    let all = async {
        // A change that is under way ends, and its entry is written.
        loop {
            let before = tokens();
            if audited().await == before && tokens() == before {
                break before;
            }
        }
    };
    let made = tokio::time::timeout(Duration::from_secs(20), all).await;
    assert!(made.unwrap_or(0) > 0, "{} tokens, {} entries", tokens(), audited().await);
    hub.stop().await;
}
