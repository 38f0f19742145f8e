use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

pub(crate) fn peer(role: Role, name: &str) -> Peer {
    Peer::new(role, name).unwrap()
}

/// A key, and the request for its certificate.
pub(crate) fn request(peer: Peer) -> (rcgen::KeyPair, IdentityRequest) {
    let pair = rcgen::KeyPair::generate().unwrap();
    let request = IdentityRequest::new(peer, &pair).unwrap();
    (pair, request)
}

pub(crate) fn authority() -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(dir.path(), UnixTime::now()).unwrap();
    (dir, authority)
}

#[test]
fn an_authority_is_opened_again_as_it_was() {
    let (dir, made) = authority();
    let opened = Authority::open(dir.path()).unwrap();
    assert_eq!(made.fingerprint(), opened.fingerprint());
    assert_eq!(made.fingerprint().len(), 64);
    // What the opened one issues is good for those who trust the one that was made.
    let web = peer(Role::Agent, "web-1");
    let identity = opened.make_identity(&web, DAY, UnixTime::now()).unwrap();
    assert_eq!(identity.peer(), &web);
    assert_eq!(identity.roots(), [made.certificate().clone()]);
}

#[test]
fn its_key_is_for_its_owner_only() {
    let (dir, _authority) = authority();
    let mode = fs::metadata(dir.path().join("ca-key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn an_authority_is_never_replaced() {
    let (dir, made) = authority();
    let again = Authority::create(dir.path(), UnixTime::now());
    assert!(matches!(again, Err(AuthorityError::Exists { .. })), "{again:?}");
    assert_eq!(Authority::open(dir.path()).unwrap().fingerprint(), made.fingerprint());
}

#[test]
fn a_crash_between_key_and_certificate_is_started_over() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ca-key.pem"), "half a k").unwrap();
    Authority::create(dir.path(), UnixTime::now()).unwrap();
}

#[test]
fn truncated_and_mixed_files_are_refused() {
    for name in ["ca.pem", "ca-key.pem"] {
        let (dir, _authority) = authority();
        let path = dir.path().join(name);
        let text = fs::read_to_string(&path).unwrap();
        for length in [0, 1, text.len() / 2] {
            fs::write(&path, &text[..length]).unwrap();
            let opened = Authority::open(dir.path());
            assert!(matches!(opened, Err(AuthorityError::Damaged { .. })), "{name} {length}");
        }
        fs::remove_file(&path).unwrap();
        let opened = Authority::open(dir.path());
        assert!(matches!(opened, Err(AuthorityError::File(_))), "{name} missing");
    }
    let ((one, _), (other, _)) = (authority(), authority());
    fs::copy(one.path().join("ca.pem"), other.path().join("ca.pem")).unwrap();
    let mixed = Authority::open(other.path());
    assert!(matches!(mixed, Err(AuthorityError::Damaged { .. })), "{mixed:?}");
}

#[test]
fn a_request_gives_a_certificate_that_lives_without_the_hub() {
    let (_dir, authority) = authority();
    let web = peer(Role::Agent, "web-1");
    let now = at(1_800_000_000);
    let (pair, asked) = request(web.clone());
    let asked = IdentityRequest::from_text(&asked.to_text()).unwrap();
    let chain = authority.issue(&asked, &web, None, now).unwrap();
    let identity =
        Identity::from_pem(&chain, &pair.serialize_pem(), authority.certificate_pem()).unwrap();
    let life = identity.validity();
    assert_eq!(life.not_after.as_secs() - now.as_secs(), 400 * DAY.as_secs());
    assert!(life.not_before < now);
    // Whenever the hub vanishes, at least thirty days are left to whoever renews when told to.
    let last_moment = (0..400).find(|days| identity.is_expiring(at(now.as_secs() + days * 86400)));
    assert!(400 - last_moment.unwrap() > 30, "{last_moment:?}");
    assert!(!identity.is_expired(now));
    assert!(identity.is_expired(at(now.as_secs() + 401 * 86400)));
}

#[test]
fn a_certificate_names_the_group_that_its_holder_was_assigned() {
    let (_dir, authority) = authority();
    let web = peer(Role::Agent, "web-1");
    let (pair, asked) = request(web.clone());
    let now = at(UnixTime::now().as_secs());
    let not_before = at(now.as_secs() - BACKDATED.as_secs());
    let not_after = at(now.as_secs() + LIFETIME.as_secs());
    let certified = |group| {
        let chain = authority.issue(&asked, &web, group, now).unwrap();
        let root = authority.certificate_pem();
        let identity = Identity::from_pem(&chain, &pair.serialize_pem(), root).unwrap();
        certified_by(identity.chain()).unwrap()
    };
    let group = "intel.zone-a";
    let named =
        Certified { peer: web.clone(), group: Some(group.to_owned()), not_before, not_after };
    assert_eq!(certified(Some(group)), named);
    assert_eq!(
        certified(None),
        Certified { peer: web.clone(), group: None, not_before, not_after }
    );
}

#[test]
fn one_asks_only_for_oneself() {
    let (_dir, authority) = authority();
    let (_, asked) = request(peer(Role::Operator, "web-1"));
    let renewed = authority.issue(&asked, &peer(Role::Agent, "web-1"), None, UnixTime::now());
    assert!(matches!(renewed, Err(AuthorityError::WrongPeer { .. })), "{renewed:?}");
}

#[test]
fn bad_requests_are_refused() {
    let web = peer(Role::Agent, "web-1");
    let (_, good) = request(web);
    let text = good.to_text();
    let oversized = format!("{text}{}", " ".repeat(REQUEST_BYTES_MAX));
    assert!(matches!(IdentityRequest::from_text(&oversized), Err(RequestError::TooLarge { .. })));
    for length in 0..text.len() {
        assert!(IdentityRequest::from_text(&text[..length]).is_err(), "cut at {length}");
    }
    // The name is part of what is proved.
    let renamed = text.replace("web-1", "web-2");
    assert!(matches!(IdentityRequest::from_text(&renamed), Err(RequestError::Proof)));
    let later = text.replace("\"version\":1", "\"version\":2");
    let refused = IdentityRequest::from_text(&later);
    assert!(matches!(refused, Err(RequestError::Version { version: 2 })), "{refused:?}");
    let (_, other) = request(peer(Role::Agent, "web-1"));
    let stolen = text.replace(
        &hex::encode(good.public_key().as_info()),
        &hex::encode(other.public_key().as_info()),
    );
    assert!(matches!(IdentityRequest::from_text(&stolen), Err(RequestError::Proof)));
}

#[test]
fn names_are_labels_and_nothing_else() {
    for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", "*", &"a".repeat(64)] {
        assert!(PeerName::new(bad).is_err(), "{bad}");
    }
    for good in ["a", "0", "a-b", &"a".repeat(63)] {
        let peer = peer(Role::Publisher, good);
        assert_eq!(peer.dns_name(), format!("{good}.publisher.cohort.internal"));
        let _ = peer.server_name();
    }
}

#[test]
fn strangers_certificates_name_nobody() {
    let named = |names: Vec<String>| {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        peer_of(&[certificate.der().clone()])
    };
    let agent = "web-1.agent.cohort.internal".to_owned();
    assert_eq!(named(vec![agent.clone()]), Ok(peer(Role::Agent, "web-1")));
    for stranger in ["example.com", "agent.cohort.internal", "web-1.agentcohort.internal"] {
        assert!(named(vec![stranger.to_owned()]).is_err(), "{stranger}");
    }
    assert!(named(vec!["web-1.root.cohort.internal".to_owned()]).is_err());
    assert!(named(vec!["a.b.agent.cohort.internal".to_owned()]).is_err());
    let operator = "web-1.operator.cohort.internal".to_owned();
    assert_eq!(named(vec![agent, operator]), Err(InvalidPeer::Ambiguous));
    assert!(named(vec![]).is_err());
    assert_eq!(peer_of(&[]), Err(InvalidPeer::Empty));
    let junk = CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
    assert!(matches!(peer_of(&[junk]), Err(InvalidPeer::Unreadable(_))));
}
