use std::convert::Infallible;
use std::fs;

use crate::authority_test::{at, authority, peer};
use crate::*;

const NOW: u64 = 1_800_000_000;

fn addresses() -> Vec<String> {
    vec!["hub.example:7417".to_owned(), "[::1]:7417".to_owned()]
}

fn anchors() -> Anchors {
    Anchors::of(&"ab".repeat(32), Some("root"))
}

fn any_agent() -> JoinGrant {
    JoinGrant { role: Role::Agent, name: None }
}

fn store(dir: &tempfile::TempDir) -> JoinTokens {
    JoinTokens::open(dir.path()).unwrap()
}

fn create(tokens: &JoinTokens, grant: JoinGrant, expires_at: Option<u64>) -> JoinToken {
    tokens.create(grant, &anchors(), &addresses(), expires_at, at(NOW)).unwrap()
}

fn request(name: &str) -> IdentityRequest {
    authority_test::request(peer(Role::Agent, name)).1
}

fn redeem(
    tokens: &JoinTokens,
    token: &JoinToken,
    request: &IdentityRequest,
    now: u64,
) -> Result<String, RedeemError> {
    tokens.redeem(&token.id, token.secret(), request, KnownName::default(), at(now), |peer| {
        Ok::<_, Infallible>(format!("certificate of {peer} at {now}"))
    })
}

#[test]
fn a_token_is_one_line_of_text() {
    let dir = tempfile::tempdir().unwrap();
    let token = create(&store(&dir), any_agent(), Some(NOW + 60));
    let text = token.to_text();
    assert_eq!(text.parse(), Ok(token.clone()));
    assert_eq!(format!("  {text}\n").parse(), Ok(token.clone()));
    assert_eq!(token.addresses, addresses());
    assert!(!format!("{token:?}").contains(token.secret()));
    for length in 0..text.len() {
        assert!(text[..length].parse::<JoinToken>().is_err(), "cut at {length}");
    }
    let changed = text.replacen("hub.example", "hub.evil", 1);
    assert_eq!(changed.parse::<JoinToken>(), Err(JoinTokenError::Incomplete));
    let long = format!("{text}{}", "x".repeat(4000));
    assert!(matches!(long.parse::<JoinToken>(), Err(JoinTokenError::TooLong { .. })));
}

/// The owner of the hub cannot put a root of its own under a joiner's trust, nor withhold it.
#[test]
fn a_joiner_accepts_only_the_authority_and_the_root_of_its_token() {
    let ((_dir, ours), (_other_dir, other)) = (authority(), authority());
    let (pem, root) = (ours.certificate_pem(), Some("{\"root\":1}"));
    let anchors = Anchors::of(&ours.fingerprint(), root);
    assert_eq!(anchors.check(pem, root), Ok(()));
    for forged in [Some("{\"root\":2}"), Some(""), None] {
        assert_eq!(anchors.check(pem, forged), Err(JoinTokenError::OtherRoot));
    }
    let both = format!("{pem}\n{}", other.certificate_pem());
    for forged in [other.certificate_pem(), &both, "", "PEM"] {
        assert_eq!(anchors.check(forged, root), Err(JoinTokenError::OtherAuthority));
    }
    let none = Anchors::of(&ours.fingerprint(), None);
    assert_eq!(
        (none.check(pem, None), none.check(pem, root)),
        (Ok(()), Err(JoinTokenError::OtherRoot))
    );
    let token = JoinToken::generate(&none, &addresses(), None).unwrap();
    assert_eq!(token.to_text().parse::<JoinToken>().unwrap().anchors, none);
}

#[test]
fn addresses_have_a_host_and_a_port() {
    for bad in ["hub", "hub:", ":7417", "hub:99999", ""] {
        let made = JoinToken::generate(&anchors(), &[bad.to_owned()], None);
        assert!(matches!(made, Err(JoinTokenError::Address { .. })), "{bad}: {made:?}");
    }
}

#[test]
fn the_secret_is_not_on_the_hubs_disk() {
    let dir = tempfile::tempdir().unwrap();
    let token = create(&store(&dir), any_agent(), None);
    let text = fs::read_to_string(dir.path().join(format!("{}.json", token.id))).unwrap();
    assert!(!text.contains(token.secret()));
}

#[test]
fn a_token_is_used_once_and_a_lost_answer_is_given_again() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = store(&dir);
    let token = create(&tokens, any_agent(), None);
    let web = request("web-1");
    redeem(&tokens, &token, &web, NOW).unwrap();
    // The same key, within the window, even after a restart of the hub.
    redeem(&tokens, &token, &web, NOW + 5).unwrap();
    drop(tokens);
    let tokens = store(&dir);
    redeem(&tokens, &token, &web, NOW + REDEEM_AGAIN_WINDOW_S).unwrap();
    let late = redeem(&tokens, &token, &web, NOW + REDEEM_AGAIN_WINDOW_S + 1);
    assert!(matches!(late, Err(RedeemError::Used)), "{late:?}");
    // Nor for a server that was removed since.
    let removed = KnownName { removed_at: Some(NOW + 3), ..KnownName::default() };
    let issue = |_: &Peer| Ok::<_, Infallible>(String::new());
    let back = tokens.redeem(&token.id, token.secret(), &web, removed, at(NOW + 5), issue);
    assert!(matches!(back, Err(RedeemError::Used)), "{back:?}");
    // Another key never.
    let thief = redeem(&tokens, &token, &request("web-1"), NOW + 5);
    assert!(matches!(thief, Err(RedeemError::Used)), "{thief:?}");
}

#[test]
fn wrong_secret_unknown_expired_and_revoked_tokens_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = store(&dir);
    let web = request("web-1");
    let token = create(&tokens, any_agent(), Some(NOW + 60));
    let other = create(&tokens, any_agent(), None);
    let guess =
        tokens.redeem(&token.id, other.secret(), &web, KnownName::default(), at(NOW), |_| {
            Ok::<_, Infallible>(String::new())
        });
    assert!(matches!(guess, Err(RedeemError::Unknown)), "{guess:?}");
    let expired = redeem(&tokens, &token, &web, NOW + 61);
    assert!(matches!(expired, Err(RedeemError::Expired)), "{expired:?}");
    tokens.revoke(&other.id).unwrap();
    let revoked = redeem(&tokens, &other, &web, NOW);
    assert!(matches!(revoked, Err(RedeemError::Revoked)), "{revoked:?}");
    assert!(matches!(tokens.revoke("0000"), Err(RedeemError::Unknown)));
    let foreign = JoinToken::generate(&anchors(), &addresses(), None).unwrap();
    let unknown = redeem(&tokens, &foreign, &web, NOW);
    assert!(matches!(unknown, Err(RedeemError::Unknown)), "{unknown:?}");
}

#[test]
fn a_token_grants_one_role_and_perhaps_one_name() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = store(&dir);
    let named = JoinGrant { role: Role::Agent, name: Some(PeerName::new("web-1").unwrap()) };
    let token = create(&tokens, named.clone(), None);
    let wrong_name = redeem(&tokens, &token, &request("web-2"), NOW);
    assert!(matches!(wrong_name, Err(RedeemError::Grant(_))), "{wrong_name:?}");
    let operator = authority_test::request(peer(Role::Operator, "web-1")).1;
    let wrong_role = redeem(&tokens, &token, &operator, NOW);
    assert!(matches!(wrong_role, Err(RedeemError::Grant(_))), "{wrong_role:?}");
    redeem(&tokens, &token, &request("web-1"), NOW).unwrap();
    // Whatever its role, a person gets a name only by a token that has it.
    let unnamed = create(&tokens, JoinGrant { role: Role::Operator, name: None }, None);
    let person = redeem(&tokens, &unnamed, &operator, NOW);
    assert!(matches!(person, Err(RedeemError::Grant(_))), "{person:?}");

    // A token for anybody does not make its user a server that is there already; one for that very
    // name does.
    let anybody = create(&tokens, any_agent(), None);
    let taken = redeem(&tokens, &anybody, &request("web-1"), NOW);
    assert!(matches!(taken, Err(RedeemError::NameTaken(_))), "{taken:?}");
    let known = KnownName { is_taken: true, ..KnownName::default() };
    let (other, issue) = (request("web-4"), |_: &Peer| Ok::<_, Infallible>(String::new()));
    let taken = tokens.redeem(&anybody.id, anybody.secret(), &other, known, at(NOW), issue);
    assert!(matches!(taken, Err(RedeemError::NameTaken(_))), "{taken:?}");
    let replacing = create(&tokens, named, None);
    redeem(&tokens, &replacing, &request("web-1"), NOW).unwrap();
    redeem(&tokens, &anybody, &request("web-3"), NOW).unwrap();
}

#[test]
fn a_failed_issue_leaves_the_token_unused() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = store(&dir);
    let token = create(&tokens, any_agent(), None);
    let web = request("web-1");
    let failed =
        tokens.redeem(&token.id, token.secret(), &web, KnownName::default(), at(NOW), |_| {
            Err("disk full")
        });
    assert!(matches!(failed, Err(RedeemError::Issue(_))), "{failed:?}");
    redeem(&tokens, &token, &web, NOW).unwrap();
}

#[test]
fn damaged_files_are_refused_tokens_and_nothing_worse() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = store(&dir);
    let (good, bad) = (create(&tokens, any_agent(), None), create(&tokens, any_agent(), None));
    drop(tokens);
    let path = dir.path().join(format!("{}.json", bad.id));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    fs::write(dir.path().join(".unfinished-half.json.abc"), "{").unwrap();
    let tokens = store(&dir);
    assert_eq!(tokens.list().len(), 1);
    let refused = redeem(&tokens, &bad, &request("web-1"), NOW);
    assert!(matches!(refused, Err(RedeemError::Unknown)), "{refused:?}");
    redeem(&tokens, &good, &request("web-1"), NOW).unwrap();
}

#[test]
fn old_unused_tokens_are_forgotten_and_used_ones_kept() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = store(&dir);
    let used = create(&tokens, any_agent(), Some(NOW + 60));
    redeem(&tokens, &used, &request("web-1"), NOW).unwrap();
    create(&tokens, any_agent(), Some(NOW + 60));
    let forever = create(&tokens, any_agent(), None);
    assert_eq!(tokens.prune(1000, at(NOW + 1000)).unwrap(), 0);
    assert_eq!(tokens.prune(1000, at(NOW + 2000)).unwrap(), 1);
    let mut left: Vec<String> = store(&dir).list().into_iter().map(|record| record.id).collect();
    let mut expected = vec![used.id, forever.id];
    left.sort();
    expected.sort();
    assert_eq!(left, expected);
}

#[test]
fn two_servers_racing_for_one_token_get_one_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = store(&dir);
    let token = create(&tokens, any_agent(), None);
    let won = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..4)
            .map(|number| {
                let (tokens, token) = (&tokens, &token);
                let request = request(&format!("web-{number}"));
                scope.spawn(move || redeem(tokens, token, &request, NOW).is_ok())
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).filter(|won| *won).count()
    });
    assert_eq!(won, 1);
}

#[test]
fn the_whole_way_of_a_server_that_joins() {
    let (_ca, authority) = authority();
    let (hub, server) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tokens = JoinTokens::open(hub.path()).unwrap();
    let now = UnixTime::now();
    let of_authority = Anchors::of(&authority.fingerprint(), None);
    let token = tokens.create(any_agent(), &of_authority, &addresses(), None, now).unwrap();
    let request = Identity::prepare_request(server.path(), peer(Role::Agent, "web-1")).unwrap();
    let chain = tokens
        .redeem(&token.id, token.secret(), &request, KnownName::default(), now, |peer| {
            authority.issue(&request, peer, None, now)
        })
        .unwrap();
    let roots = authority.certificate_pem();
    assert_eq!(sha256_hex(authority.certificate()), token.anchors.authority);
    let identity = Identity::accept(server.path(), &chain, roots).unwrap();
    assert_eq!(identity.peer(), &peer(Role::Agent, "web-1"));
}
