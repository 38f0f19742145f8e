use std::fs;

use crate::authority_test::{at, authority, peer, request};
use crate::*;

fn identity(authority: &Authority, name: &str) -> Identity {
    authority.make_identity(&peer(Role::Agent, name), LIFETIME, UnixTime::now()).unwrap()
}

/// A certificate that renews the present one, as the hub answers.
fn renew(
    present: &Identity,
    by: &Authority,
    authorities: &str,
    dir: &std::path::Path,
) -> Result<Identity, IdentityError> {
    let web = present.peer().clone();
    let request = Identity::prepare_request(dir, web.clone()).unwrap();
    // Never earlier than the present one.
    let later = at(UnixTime::now().as_secs() + 1);
    let chain = by.issue(&request, &web, None, later).unwrap();
    present.accept_renewal(dir, &chain, authorities, UnixTime::now())
}

#[test]
fn what_a_new_authority_issues_is_good_for_those_who_have_not_heard_of_it() {
    let (dir, old) = authority();
    let before = identity(&old, "web-1");
    let new = old.rotate(dir.path(), UnixTime::now()).unwrap();
    assert_ne!(new.fingerprint(), old.fingerprint());
    assert_eq!(new.trusted(), [new.fingerprint(), old.fingerprint()]);
    assert_eq!(new.anchor(), old.fingerprint(), "joiners trust what everyone trusts");
    let after = identity(&new, "web-2");
    assert_eq!(after.issuer(), Some(new.fingerprint()));
    let sign = |identity: &Identity| sign_statement(identity, "test/1", b"body").unwrap();
    let verify = |roots: &Identity, by: &Identity| {
        verify_statement(roots.roots(), "test/1", &sign(by), &[Role::Agent], UnixTime::now())
    };
    assert!(verify(&before, &after).is_ok(), "the old one certifies the new one");
    assert!(verify(&after, &before).is_ok(), "both are trusted");
    // Opened again, it is the same; the old key is nowhere.
    let again = Authority::open(dir.path()).unwrap();
    assert_eq!(again.trusted(), new.trusted());
    assert!(matches!(again.rotate(dir.path(), UnixTime::now()), Err(AuthorityError::Rotating)));
    let files: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    // At the end, the old one is nothing.
    let done = again.alone().unwrap();
    done.save_alone(dir.path()).unwrap();
    assert_eq!(done.trusted(), [new.fingerprint()]);
    let last = identity(&done, "web-3");
    assert!(verify(&last, &before).is_err());
    assert!(verify(&last, &after).is_ok());
    assert!(matches!(done.alone(), Err(AuthorityError::NotRotating)));
}

#[test]
fn a_rotation_that_is_interrupted_has_happened_or_not() {
    let (dir, old) = authority();
    let (cert, key) = (dir.path().join("ca.pem"), dir.path().join("ca-key.pem"));
    let (old_cert, old_key) = (fs::read(&cert).unwrap(), fs::read(&key).unwrap());
    let new = old.rotate(dir.path(), UnixTime::now()).unwrap();
    // Before the certificate was replaced.
    let new_cert = fs::read(&cert).unwrap();
    fs::rename(&key, dir.path().join("ca-key.pem.next")).unwrap();
    fs::write(&key, old_key).unwrap();
    fs::write(&cert, old_cert).unwrap();
    let unchanged = Authority::open(dir.path()).unwrap();
    assert_eq!(unchanged.trusted(), [old.fingerprint()]);
    // After that, and before the key was.
    fs::write(&cert, new_cert).unwrap();
    assert_eq!(Authority::open(dir.path()).unwrap().trusted(), new.trusted());
    assert!(!dir.path().join("ca-key.pem.next").exists());
}

#[test]
fn an_identity_follows_to_an_authority_that_the_trusted_one_certifies_and_to_no_other() {
    let (ca, old) = authority();
    let (_strange_ca, stranger) = authority();
    let present = identity(&old, "web-1");
    let dir = tempfile::tempdir().unwrap();
    present.save(dir.path()).unwrap();
    let both = format!("{}{}", old.certificate_pem(), stranger.certificate_pem());
    for authorities in [stranger.certificate_pem(), &both] {
        let refused = renew(&present, &old, authorities, dir.path()).unwrap_err();
        assert!(
            matches!(refused, IdentityError::Foreign(_) | IdentityError::Untrusted(_)),
            "{refused}"
        );
        assert_eq!(Identity::load(dir.path()).unwrap().trusted(), [old.fingerprint()]);
    }
    let new = old.rotate(ca.path(), UnixTime::now()).unwrap();
    let strange = format!("{}{}", new.trusted_pem(), stranger.certificate_pem());
    let refused = renew(&present, &new, &strange, dir.path()).unwrap_err();
    assert!(matches!(refused, IdentityError::Foreign(_)), "{refused}");
    let followed = renew(&present, &new, &new.trusted_pem(), dir.path()).unwrap();
    assert_eq!(followed.issuer(), Some(new.fingerprint()));
    assert_eq!(followed.trusted(), new.trusted());
    let done = new.alone().unwrap();
    done.save_alone(ca.path()).unwrap();
    let last = renew(&followed, &done, &done.trusted_pem(), dir.path()).unwrap();
    assert_eq!(last.trusted(), [new.fingerprint()]);
    assert_eq!(Identity::load(dir.path()).unwrap().trusted(), [new.fingerprint()]);
}

/// A certificate of `params` for a new key, by itself; its PEM, and the key's.
fn certificate(change: impl FnOnce(&mut rcgen::CertificateParams)) -> (String, String) {
    use rcgen::{BasicConstraints, IsCa, KeyUsagePurpose};
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "Example AG");
    params.distinguished_name.push(rcgen::DnType::CommonName, "Servers");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    change(&mut params);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn an_authority_of_ones_own_issues_and_is_replaced_like_any_other() {
    let (pem, key) = certificate(|_| ());
    let dir = tempfile::tempdir().unwrap();
    let own = Authority::import(dir.path(), &pem, &key, UnixTime::now()).unwrap();
    let web = peer(Role::Agent, "web-1");
    let (_, asked) = request(web.clone());
    let chain = own.issue(&asked, &web, Some("group"), UnixTime::now()).unwrap();
    assert!(chain.contains("BEGIN CERTIFICATE"));
    let before = identity(&own, "web-1");
    assert_eq!(before.issuer(), Some(own.fingerprint()));
    let new = own.rotate(dir.path(), UnixTime::now()).unwrap();
    let state = tempfile::tempdir().unwrap();
    before.save(state.path()).unwrap();
    assert!(renew(&before, &new, &new.trusted_pem(), state.path()).is_ok());
    let again = Authority::import(dir.path(), &pem, &key, UnixTime::now());
    assert!(matches!(again, Err(AuthorityError::Exists(_))));
}

#[test]
fn an_authority_that_cannot_do_what_it_must_is_refused_and_leaves_nothing() {
    use rcgen::{GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints};
    let (good, good_key) = certificate(|_| ());
    let soon = certificate(|params| {
        let now = i64::try_from(UnixTime::now().as_secs()).unwrap();
        let days = std::time::Duration::from_secs(86_400 * 300);
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + std::time::Duration::from_secs(now.unsigned_abs() - 60);
        params.not_after = params.not_before + days;
    });
    let past = certificate(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let leaf = certificate(|params| params.is_ca = IsCa::ExplicitNoCa);
    let signs_nothing =
        certificate(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    let other_names = certificate(|params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".to_owned())],
            excluded_subtrees: Vec::new(),
        });
    });
    let two = (format!("{good}{good}"), good_key.clone());
    let other_key = (good, certificate(|_| ()).1);
    let nothing = (String::new(), good_key);
    for (nth, (pem, key)) in
        [soon, past, leaf, signs_nothing, other_names, two, other_key, nothing].iter().enumerate()
    {
        let dir = tempfile::tempdir().unwrap();
        let refused = Authority::import(dir.path(), pem, key, UnixTime::now());
        assert!(matches!(refused, Err(AuthorityError::Unfit { .. })), "{nth}: {refused:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
