use std::slice::from_ref;

use cohort_identity::Authority;

use super::*;

struct Lab {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Lab {
    fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(&folder.path().join("ca"), now()).unwrap();
        Lab { folder, authority }
    }

    fn identity(&self, role: Role, name: &str) -> Identity {
        let peer = Peer::new(role, name).unwrap();
        let day = Duration::from_secs(86_400);
        self.authority.make_identity(&peer, day, now()).unwrap()
    }

    fn open(&self, name: &str) -> Arc<Revocations> {
        Revocations::open(&self.folder.path().join(name), now()).unwrap()
    }
}

fn now() -> UnixTime {
    UnixTime::now()
}

fn revocation(name: &str, at: u64) -> Revocation {
    let (role, name) = (Role::Operator, PeerName::new(name).unwrap());
    Revocation { role, name, at, again: 0, reason: "stolen laptop".to_owned() }
}

fn certified(name: &str, not_before: u64) -> Certified {
    let not_before = UnixTime::since_unix_epoch(Duration::from_secs(not_before));
    let (peer, group) = (Peer::new(Role::Operator, name).unwrap(), None);
    Certified { peer, group, not_before, not_after: not_before }
}

#[test]
fn what_was_issued_by_then_is_revoked_and_what_is_issued_later_counts() {
    let lab = Lab::new();
    let (ana, at) = (lab.identity(Role::Operator, "ana"), now().as_secs());
    let known = lab.open("known");
    let offer = |name, at| {
        let signed = SignedRevocation::sign(&ana, &revocation(name, at)).unwrap();
        known.offer(&signed, ana.roots(), now()).unwrap()
    };
    assert_eq!(known.digest(), 0);
    assert!(offer("bob", at - 60) && !offer("bob", at - 60) && !offer("bob", at - 90));
    assert!(known.revokes(&certified("bob", at - 60)));
    assert!(!known.revokes(&certified("bob", at - 59)));
    assert!(!known.revokes(&certified("eve", at - 60)));
    assert!(offer("bob", at));
    assert!(known.revokes(&certified("bob", at - 59)), "revoked again");
    let again = lab.open("known");
    assert_eq!(again.digest(), known.digest(), "not forgotten by a restart");
    assert!(again.revokes(&certified("bob", at)));
    let later = UnixTime::since_unix_epoch(Duration::from_secs(at) + LIFETIME);
    let old = Revocations::open(&lab.folder.path().join("known"), later).unwrap();
    assert!(old.all().is_empty(), "no certificate is that old");
}

#[test]
fn only_an_operator_revokes_and_not_in_the_future() {
    let lab = Lab::new();
    let (ana, s1) = (lab.identity(Role::Operator, "ana"), lab.identity(Role::Agent, "s1"));
    let stranger = Lab::new().identity(Role::Operator, "ana");
    let known = lab.open("known");
    let at = now().as_secs();
    for (by, at) in [(&s1, at), (&stranger, at), (&ana, at + AHEAD_S_MAX + 60)] {
        let signed = SignedRevocation::sign(by, &revocation("bob", at)).unwrap();
        assert!(known.offer(&signed, ana.roots(), now()).is_err(), "{}", by.peer());
    }
    assert!(known.all().is_empty());
}

#[test]
fn places_that_talk_know_the_same() {
    let lab = Lab::new();
    let (ana, at) = (lab.identity(Role::Operator, "ana"), now().as_secs());
    let (one, other) = (lab.open("one"), lab.open("other"));
    let count = REVOCATIONS_SENT_MAX + 10;
    for number in 0..count {
        let revocation = revocation(&format!("p{number}"), at);
        let signed = SignedRevocation::sign(&ana, &revocation).unwrap();
        let place = if number % 3 == 0 { &one } else { &other };
        assert!(place.offer(&signed, ana.roots(), now()).unwrap());
    }
    let mut lacks = BTreeMap::new();
    let mut rounds = 0;
    while one.digest() != other.digest() {
        let exchange = RevocationsExchange { has: one.has(), news: one.news_for(&lacks) };
        let answer = other.exchange(&exchange, ana.roots(), now());
        one.take(&answer.news, ana.roots(), now());
        lacks = answer.has;
        rounds += 1;
        assert!(rounds < 5, "one does not learn of the other's");
    }
    assert_eq!((one.all().len(), other.all().len()), (count, count));
}

#[test]
fn the_certificate_itself_says_when_it_was_issued() {
    let lab = Lab::new();
    let (ana, bob) = (lab.identity(Role::Operator, "ana"), lab.identity(Role::Operator, "bob"));
    let known = lab.open("known");
    let own = revocation("eve", now().as_secs());
    let certified = SignedRevocation::sign(&bob, &own).unwrap().0.certified().unwrap();
    assert!(!known.revokes(&certified));
    let signed = SignedRevocation::sign(&ana, &revocation("bob", now().as_secs())).unwrap();
    assert!(known.offer(&signed, ana.roots(), now()).unwrap());
    assert!(known.revokes(&certified));
}

#[test]
fn whoever_is_revoked_revokes_nobody() {
    let lab = Lab::new();
    let (ana, bob) = (lab.identity(Role::Operator, "ana"), lab.identity(Role::Operator, "bob"));
    let (known, at) = (lab.open("known"), now().as_secs());
    let revokes = |by: &Identity, name, at| {
        let signed = SignedRevocation::sign(by, &revocation(name, at)).unwrap();
        known.offer(&signed, ana.roots(), now())
    };
    assert!(revokes(&ana, "bob", at).unwrap());
    assert!(matches!(revokes(&bob, "ana", at), Err(RevocationError::Revoked(_))));
    assert!(matches!(revokes(&bob, "ana", at - 60), Err(RevocationError::Revoked(_))));
}

#[test]
fn names_that_nobody_has_do_not_keep_an_operator_from_being_revoked() {
    let lab = Lab::new();
    let (ana, at) = (lab.identity(Role::Operator, "ana"), now().as_secs());
    let known = Revocations::default();
    let offer = |role, name: &str, at| {
        let name = PeerName::new(name).unwrap();
        let revocation = Revocation { role, name, at, again: 0, reason: String::new() };
        let signed = SignedRevocation::sign(&ana, &revocation).unwrap();
        known.offer(&signed, ana.roots(), now())
    };
    for number in 0..REVOCATIONS_MAX {
        assert!(offer(Role::Viewer, &format!("x{number}"), at).unwrap());
    }
    assert!(matches!(offer(Role::Viewer, "y", at - 1), Err(RevocationError::TooMany)));
    assert!(offer(Role::Operator, "bob", at - 1).unwrap(), "one of the viewers gives way");
    assert_eq!(known.all().len(), REVOCATIONS_MAX);
    assert!(known.revokes(&certified("bob", at - 1)));
}

/// An operator who has gone bad signs as many as are kept, dated ahead: what others signed stays,
/// and so does the way to revoke that operator.
#[test]
fn nobody_displaces_what_others_signed_by_signing_many() {
    let lab = Lab::new();
    let (ana, mal) = (lab.identity(Role::Operator, "ana"), lab.identity(Role::Operator, "mal"));
    let at = now().as_secs();
    let known = Revocations::default();
    let offer = |by: &Identity, role, name: &str, at| {
        let name = PeerName::new(name).unwrap();
        let revocation = Revocation { role, name, at, again: 0, reason: String::new() };
        known.offer(&SignedRevocation::sign(by, &revocation).unwrap(), ana.roots(), now())
    };
    assert!(offer(&ana, Role::Viewer, "eve", at).unwrap());
    for number in 0..REVOCATIONS_MAX + 2 {
        let ahead = at + AHEAD_S_MAX - 60;
        let _ = offer(&mal, Role::Operator, &format!("x{number}"), ahead);
    }
    let eve = Peer::new(Role::Viewer, "eve").unwrap();
    assert_eq!(known.revoked_at(&eve), Some(at));
    assert!(offer(&ana, Role::Operator, "mal", at).unwrap());
    assert_eq!(known.all().len(), REVOCATIONS_MAX);
}

/// A hub's next certificate is valid after the date only.
#[test]
fn a_hub_is_not_revoked_ahead_of_time() {
    let lab = Lab::new();
    let (ana, at) = (lab.identity(Role::Operator, "ana"), now().as_secs());
    let offer = |at| {
        let name = PeerName::new("hub").unwrap();
        let revocation = Revocation { role: Role::Hub, name, at, again: 0, reason: String::new() };
        let signed = SignedRevocation::sign(&ana, &revocation).unwrap();
        Revocations::default().offer(&signed, ana.roots(), now())
    };
    assert!(matches!(offer(at + 60), Err(RevocationError::Ahead { .. })));
    assert!(offer(at).unwrap());
}

/// The authority that had certified whoever signed it ends.
#[test]
fn a_revocation_that_is_signed_again_replaces_the_one_before_everywhere() {
    let lab = Lab::new();
    let (ana, ben) = (lab.identity(Role::Operator, "ana"), lab.identity(Role::Operator, "ben"));
    let before = revocation("cy", now().as_secs() - 5);
    let (one, other) = (Revocations::default(), Revocations::default());
    let signed = SignedRevocation::sign(&ana, &before).unwrap();
    for known in [&one, &other] {
        assert!(known.offer(&signed, ana.roots(), now()).unwrap());
    }
    let stranger = Lab::new();
    let roots = stranger.identity(Role::Operator, "dee");
    assert_eq!(one.unproven(roots.roots(), now()), from_ref(&signed));
    assert_eq!(one.unproven(ana.roots(), now()), []);
    let again = SignedRevocation::sign(&ben, &before.once_more()).unwrap();
    assert!(one.offer(&again, ana.roots(), now()).unwrap());
    assert!(!one.offer(&signed, ana.roots(), now()).unwrap(), "not back");
    assert_ne!(one.digest(), other.digest());
    other.take(&one.news_for(&other.has()), ana.roots(), now());
    assert_eq!((other.has(), other.digest()), (one.has(), one.digest()));
    assert_eq!(other.revoked_at(&before.peer()), Some(before.at));
    let last = Revocation { again: AGAIN_MAX, ..before };
    assert!(last.once_more().edition() > last.edition());
}
