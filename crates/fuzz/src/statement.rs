//! What people and servers sign, and pass on.

use std::fs;
use std::sync::OnceLock;

use cohort_base::golden::round_trip;
use cohort_identity::{
    Identity, LIFETIME, Peer, Role, SignedStatement, sign_statement, verify_statement,
};
use cohort_registry::attest::{AttestRequest, Attestation};
use cohort_wire::agent::SignedSubmission;
use cohort_wire::intent::{AppIntent, SignedIntent};
use cohort_wire::kill::{DurableKill, KillRegister, SignedKill};
use cohort_wire::revocation::{Revocation, Revocations, SignedRevocation};

use crate::identity::{authority, now, operator};
use crate::script::{Script, lines, scratch};

const KINDS: [&str; 5] = [
    "cohort-app/1",
    "cohort-attestation/1",
    "cohort-kill/1",
    "cohort-revocation/1",
    "cohort-submission/1",
];

fn agent() -> &'static Identity {
    static AGENT: OnceLock<Identity> = OnceLock::new();
    AGENT.get_or_init(|| {
        let peer = Peer::new(Role::Agent, "web-1").expect("a name");
        authority().make_identity(&peer, LIFETIME, now()).expect("a certificate")
    })
}

/// Signed texts of every kind: whatever is accepted of what an author signed says what the author
/// said, and comes from a role that may say it.
pub(crate) fn submissions(bytes: &[u8]) {
    let roots = operator().roots();
    let group = "web.zone-a".parse().expect("a group");
    for identity in [operator(), agent()] {
        let role = identity.peer().role;
        let signed = |kind| sign_statement(identity, kind, bytes).ok();
        if let Some(Ok((by, intent))) =
            signed(KINDS[0]).map(|signed| SignedIntent(signed).verify(roots, now()))
        {
            assert_eq!(by.role, Role::Operator);
            assert_eq!(round_trip::<AppIntent>(bytes), Some(intent));
        }
        if let Some(signed) = signed(KINDS[1]) {
            let changes = (&[][..], &[][..]);
            let verified = Attestation(signed).verify(roots, &group, changes, now());
            assert!(verified.is_err() || role == Role::Agent);
        }
        if let Some(Ok((by, register))) =
            signed(KINDS[2]).map(|signed| SignedKill(signed).verify(roots, now()))
        {
            assert_eq!(by.role, Role::Operator);
            assert_eq!(round_trip::<KillRegister>(bytes), Some(register));
        }
        if let Some(Ok((by, revocation))) =
            signed(KINDS[3]).map(|signed| SignedRevocation(signed).verify(roots, now()))
        {
            assert_eq!(by.role, Role::Operator);
            assert_eq!(round_trip::<Revocation>(bytes), Some(revocation));
        }
        if let Some(Ok((by, _))) =
            signed(KINDS[4]).map(|signed| SignedSubmission(signed).verify(roots, &group, now()))
        {
            assert_eq!(by.role, role);
        }
    }
    round_trip::<AttestRequest>(bytes);
}

/// A signed statement, altered, or anything at all: only what was signed verifies.
pub(crate) fn signed(bytes: &[u8]) {
    static GENUINE: OnceLock<(SignedStatement, Vec<u8>)> = OnceLock::new();
    let (genuine, text) = GENUINE.get_or_init(|| {
        let text = include_bytes!("../../identity/tests/golden/statement.json");
        (serde_json::from_slice(text).expect("a golden statement"), text.to_vec())
    });
    let mut script = Script::new(bytes);
    let text = if script.is_set() { script.patch(text) } else { script.rest().to_vec() };
    let Some(statement) = round_trip::<SignedStatement>(&text) else { return };
    let _ = statement.certified();
    for kind in KINDS {
        let roles = Role::ALL;
        let roots = operator().roots();
        if verify_statement(roots, kind, &statement, &roles, now()).is_ok() {
            assert_eq!((&statement.body, &statement.context), (&genuine.body, &genuine.context));
        }
    }
}

/// A file of the kill switch, whose name is the first line: whatever it contains, one that is *on*
/// by its name stops.
pub(crate) fn kill_file(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let (on, of_group) = (script.is_set(), script.is_set());
    let epoch = script.near(7);
    let scope = if of_group { "group@web.zone-a@" } else { "fleet@" };
    let position = if on { "on" } else { "off" };
    let name = format!("{scope}{epoch:020}@{position}.kill");
    let folder = scratch();
    let content = if script.is_set() {
        // As its author signed it.
        let signed = sign_statement(operator(), KINDS[2], script.rest()).ok();
        signed.and_then(|signed| serde_json::to_vec(&SignedKill(signed)).ok()).unwrap_or_default()
    } else {
        script.rest().to_vec()
    };
    fs::write(folder.path().join(name), content).expect("a writable directory");
    let group = "web.zone-a".parse().expect("a group");
    let registers = DurableKill::open(folder.path(), Some(group)).expect("a readable directory");
    assert!(registers.is_on().is_some() || !on, "a damaged register counts as on");
}

/// The file of revocations, and what others send: nobody is let in by what it says.
pub(crate) fn revocations_file(bytes: &[u8]) {
    let folder = scratch();
    let file = folder.path().join("revocations.json");
    let mut script = Script::new(bytes);
    let content = if script.is_set() {
        // Bodies, one per line, as operators signed them.
        let signed: Vec<_> = lines(script.rest())
            .filter_map(|body| sign_statement(operator(), KINDS[3], body).ok())
            .map(SignedRevocation)
            .collect();
        let known = Revocations::default();
        known.take(&signed, operator().roots(), now());
        serde_json::to_vec(&signed).expect("texts are JSON")
    } else {
        script.rest().to_vec()
    };
    fs::write(&file, content).expect("a writable directory");
    if let Ok(known) = Revocations::open(&file, now()) {
        for revocation in known.all() {
            assert_eq!(known.revoked_at(&revocation.peer()), Some(revocation.at));
        }
    }
}
