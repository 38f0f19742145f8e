use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::authority_test::{authority, peer};
use crate::*;

fn make(authority: &Authority, name: &str) -> Identity {
    let agent = peer(Role::Agent, name);
    authority.make_identity(&agent, LIFETIME, UnixTime::now()).unwrap()
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap()
}

#[test]
fn saved_and_loaded() {
    let (_ca, authority) = authority();
    let dir = tempfile::tempdir().unwrap();
    assert!(!Identity::exists(dir.path()));
    let identity = make(&authority, "web-1");
    identity.save(dir.path()).unwrap();
    assert!(Identity::exists(dir.path()));
    let loaded = Identity::load(dir.path()).unwrap();
    assert_eq!(loaded.peer(), identity.peer());
    assert_eq!(loaded.chain(), identity.chain());
    assert_eq!(loaded.validity(), identity.validity());
    let mode = fs::metadata(dir.path().join("key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!dir.path().join("key.pem.next").exists());
}

#[test]
fn its_debug_form_hides_the_key() {
    let (_ca, authority) = authority();
    let text = format!("{:?}", make(&authority, "web-1"));
    assert!(text.contains("web-1") && !text.contains("PRIVATE") && !text.contains("key"), "{text}");
}

/// Every state that a crash can leave while the second identity replaces the first.
#[test]
fn a_crash_while_saving_leaves_the_old_or_the_new_one() {
    let (_ca, authority) = authority();
    let (old, new) = (make(&authority, "web-1"), make(&authority, "web-1"));
    let (old_dir, new_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    old.save(old_dir.path()).unwrap();
    new.save(new_dir.path()).unwrap();
    let new_key = read(new_dir.path(), "key.pem");

    // The new key waits, its certificate has not come: the old identity.
    fs::write(old_dir.path().join("key.pem.next"), &new_key).unwrap();
    assert_eq!(Identity::load(old_dir.path()).unwrap().chain(), old.chain());

    // A half-written file beside changes nothing.
    fs::write(old_dir.path().join(".unfinished-cert.pem.abc"), "-----BEG").unwrap();
    assert_eq!(Identity::load(old_dir.path()).unwrap().chain(), old.chain());

    // The certificate is in place, the key still waits: the new identity, finished on loading.
    fs::write(old_dir.path().join("cert.pem"), read(new_dir.path(), "cert.pem")).unwrap();
    assert_eq!(Identity::load(old_dir.path()).unwrap().chain(), new.chain());
    assert_eq!(read(old_dir.path(), "key.pem"), new_key);
    assert!(!old_dir.path().join("key.pem.next").exists());
}

#[test]
fn truncated_files_are_refused() {
    let (_ca, authority) = authority();
    for name in ["cert.pem", "key.pem", "ca.pem"] {
        let dir = tempfile::tempdir().unwrap();
        make(&authority, "web-1").save(dir.path()).unwrap();
        let text = read(dir.path(), name);
        for length in [0, 10, text.len() / 2, text.len() - 20] {
            fs::write(dir.path().join(name), &text[..length]).unwrap();
            assert!(Identity::load(dir.path()).is_err(), "{name} cut at {length}");
        }
        fs::write(dir.path().join(name), "x".repeat(300_000)).unwrap();
        let error = Identity::load(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::File(_)), "{error}");
    }
}

#[test]
fn parts_of_different_identities_do_not_mix() {
    let ((_a, one), (_b, other)) = (authority(), authority());
    let dir = tempfile::tempdir().unwrap();
    make(&one, "web-1").save(dir.path()).unwrap();
    let (chain, key) = (read(dir.path(), "cert.pem"), read(dir.path(), "key.pem"));
    let foreign_roots = Identity::from_pem(&chain, &key, other.certificate_pem()).unwrap_err();
    assert!(matches!(foreign_roots, IdentityError::Untrusted(_)), "{foreign_roots}");
    make(&one, "web-2").save(dir.path()).unwrap();
    let foreign_key = read(dir.path(), "key.pem");
    let mixed = Identity::from_pem(&chain, &foreign_key, one.certificate_pem()).unwrap_err();
    assert!(matches!(mixed, IdentityError::KeyMismatch), "{mixed}");
}

#[test]
fn a_prepared_request_keeps_its_key_until_it_is_answered() {
    let (_ca, authority) = authority();
    let dir = tempfile::tempdir().unwrap();
    let web = peer(Role::Agent, "web-1");
    let first = Identity::prepare_request(dir.path(), web.clone()).unwrap();
    let again = Identity::prepare_request(dir.path(), web.clone()).unwrap();
    assert_eq!(first.public_key(), again.public_key());

    let now = UnixTime::now();
    let chain = authority.issue(&again, &web, None, now).unwrap();
    let roots = authority.certificate_pem();
    let accepted = Identity::accept(dir.path(), &chain, roots).unwrap();
    assert_eq!(accepted.peer(), &web);
    assert_eq!(Identity::load(dir.path()).unwrap().chain(), accepted.chain());

    // A renewal has a key of its own, and an answer to somebody else's request changes nothing.
    let renewal = Identity::prepare_request(dir.path(), web).unwrap();
    assert_ne!(renewal.public_key(), first.public_key());
    assert!(accepted.accept_renewal(dir.path(), &chain, authority.certificate_pem(), now).is_err());
    assert_eq!(Identity::load(dir.path()).unwrap().chain(), accepted.chain());
}

#[test]
fn only_a_later_certificate_of_the_same_peer_and_authority_renews_an_identity() {
    let (_ca, authority) = authority();
    let (_other_ca, stranger) = self::authority();
    let dir = tempfile::tempdir().unwrap();
    let web = peer(Role::Agent, "web-1");
    let (start, day) = (UnixTime::now(), Duration::from_secs(86_400));
    let after =
        |time: Duration| UnixTime::since_unix_epoch(Duration::from_secs(start.as_secs()) + time);
    // Made a day after `start`, so that one made at `start` ends earlier.
    let present = authority.make_identity(&web, LIFETIME, after(day)).unwrap();
    present.save(dir.path()).unwrap();
    let renew = |by: &Authority, peer: &Peer, made: UnixTime, now: UnixTime| {
        let request = Identity::prepare_request(dir.path(), peer.clone()).unwrap();
        let chain = by.issue(&request, peer, None, made).unwrap();
        present.accept_renewal(dir.path(), &chain, authority.certificate_pem(), now)
    };
    let now = after(day * 30);
    for (refused, expected) in [
        (renew(&stranger, &web, now, now), "not issued by a trusted authority"),
        (renew(&authority, &peer(Role::Agent, "web-2"), now, now), "it is for"),
        (renew(&authority, &peer(Role::Operator, "web-1"), now, now), "it is for"),
        (renew(&authority, &web, after(day * 40), now), "it is valid from"),
        (renew(&authority, &web, now, after(LIFETIME + day * 31)), "it is valid from"),
        (renew(&authority, &web, start, now), "it ends at"),
    ] {
        let error = cohort_base::chain(&refused.unwrap_err());
        assert!(error.contains(expected), "{error}");
        assert_eq!(Identity::load(dir.path()).unwrap().chain(), present.chain());
    }
    let renewed = renew(&authority, &web, now, now).unwrap();
    assert_eq!(Identity::load(dir.path()).unwrap().chain(), renewed.chain());
    assert_eq!(renewed.roots(), present.roots());
}

#[test]
fn a_damaged_waiting_key_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key.pem.next"), "half").unwrap();
    Identity::prepare_request(dir.path(), peer(Role::Agent, "web-1")).unwrap();
}
