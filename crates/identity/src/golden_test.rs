//! Every format of this crate: files, tokens, requests, statements. Certificates and keys are
//! random, so the golden files are read, judged, and where they have a text form, written again.

use std::fs;
use std::path::PathBuf;

use cohort_base::golden::hold;

use crate::authority_test::{at, peer, request};
use crate::*;

/// When the golden files were made.
const NOW: u64 = 1_800_000_000;
const CONTEXT: &str = "cohort-kill/1";

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The text of a golden file. `UPDATE=1` makes it if there is none.
fn text(name: &str, make: impl FnOnce() -> String) -> String {
    let path = golden(name);
    if std::env::var_os("UPDATE").is_some() && !path.exists() {
        fs::write(&path, make()).unwrap();
    }
    fs::read_to_string(path).unwrap()
}

#[test]
fn files_of_authority_and_identity() {
    let (authority, operator) = (golden("authority"), golden("operator"));
    let ada = peer(Role::Operator, "ada");
    if std::env::var_os("UPDATE").is_some() && !authority.exists() {
        let made = Authority::create(&authority, at(NOW)).unwrap();
        made.make_identity(&ada, LIFETIME, at(NOW)).unwrap().save(&operator).unwrap();
    }
    let authority = Authority::open(&authority).unwrap();
    let identity = Identity::load(&operator).unwrap();
    assert_eq!(identity.peer(), &ada);
    assert_eq!(identity.roots(), [authority.certificate().clone()]);
    let until = NOW + LIFETIME.as_secs();
    assert_eq!(identity.validity().not_after, at(until));

    // A statement that this identity signed, as it is stored and passed on.
    let line = text("statement.json", || {
        let signed = sign_statement(&identity, CONTEXT, b"body").unwrap();
        serde_json::to_string(&signed).unwrap()
    });
    let statement: SignedStatement = serde_json::from_str(&line).unwrap();
    assert_eq!(statement.body, b"body");
    let author =
        verify_statement(identity.roots(), CONTEXT, &statement, &[Role::Operator], at(NOW));
    assert_eq!(author.unwrap(), ada);
    assert_eq!(serde_json::to_string(&statement).unwrap(), line);
}

#[test]
fn a_request() {
    let web = peer(Role::Agent, "web-1");
    let line = text("request.json", || request(web.clone()).1.to_text());
    let request = IdentityRequest::from_text(&line).unwrap();
    assert_eq!(request.peer(), &web);
    assert_eq!(request.to_text(), line);
}

#[test]
fn a_join_token() {
    let token = JoinToken {
        id: "01".repeat(8),
        secret: "23".repeat(32),
        anchors: Anchors { authority: "45".repeat(32), trusted_root: Some("67".repeat(32)) },
        expires_at: Some(NOW),
        addresses: vec!["hub.example:7417".to_owned(), "[::1]:7417".to_owned()],
    };
    let forever = JoinToken { expires_at: None, ..token.clone() };
    let anchors = Anchors { trusted_root: None, ..token.anchors.clone() };
    let bare = JoinToken { anchors, ..token.clone() };
    let tokens = [token, forever, bare];
    let lines = text("join-tokens.txt", || tokens.each_ref().map(JoinToken::to_text).join("\n"));
    for (line, token) in lines.lines().zip(&tokens) {
        assert_eq!(line.parse::<JoinToken>().as_ref(), Ok(token));
        assert_eq!(token.to_text(), line);
    }
    assert_eq!(lines.lines().count(), tokens.len());
}

#[test]
fn what_the_hub_stores_about_tokens() {
    let record = |state| TokenRecord {
        version: 1,
        id: "01".repeat(8),
        secret_sha256: "67".repeat(32),
        grant: JoinGrant { role: Role::Agent, name: Some(PeerName::new("web-1").unwrap()) },
        trusted_root: Some("ab".repeat(32)),
        created_at: NOW,
        expires_at: Some(NOW + 60),
        state,
    };
    let used = TokenState::Used {
        peer: peer(Role::Agent, "web-1"),
        key_fingerprint: "89".repeat(32),
        used_at: NOW + 1,
    };
    let mut anybody = record(TokenState::Revoked);
    anybody.grant.name = None;
    anybody.expires_at = None;
    hold(&golden("tokens.jsonl"), &[record(TokenState::Unused), record(used), anybody]);
}

#[test]
fn roles_and_protocols() {
    hold(&golden("roles.jsonl"), &Role::ALL);
    let names = Alpn::ALL.map(|alpn| alpn.to_string());
    let expected = ["cohort-control/1", "cohort-raft/1", "cohort-bulk/1", "cohort-hub/1"];
    assert_eq!(names, expected);
}
