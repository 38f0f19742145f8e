use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use cohort_core::policy::Check;
use cohort_core::report::Blame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{CheckContext, CheckFailure, HostProgram, ReleaseChecks, check_name, look};
use crate::cgroup::{Cgroups, Limits};
use crate::isolation::Isolation;
use crate::launch::Launch;
use crate::process::Exit;
use crate::program::Programs;

/// A server that answers every request with these bytes and closes; returns its port.
async fn server(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _read = stream.read(&mut request).await;
            let _written = stream.write_all(answer.as_bytes()).await;
        }
    });
    port
}

fn check(text: &str) -> Check {
    serde_json::from_str(text).unwrap()
}

fn http(port: u16, more: &str) -> (Check, CheckContext) {
    let text = format!("{{\"type\":\"http\",\"path\":\"/healthz\",\"timeout\":\"2s\"{more}}}");
    (check(&text), CheckContext { service_port: Some(port), ..CheckContext::default() })
}

const OK: &str = "HTTP/1.1 200 OK\r\nx-role: follower\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn a_checks_name_has_the_port_of_this_server() {
    let (check, context) = http(8080, "");
    assert_eq!(check_name(&check, &context), "http :8080/healthz");
    let none = CheckContext::default();
    assert_eq!(check_name(&check, &none), "http /healthz");
}

#[tokio::test]
async fn http_looks_at_status_body_and_headers() {
    let port = server(OK).await;
    let good = ["", ",\"expect_body\":\"ok\"", ",\"expect_header\":{\"X-Role\":\"follower\"}"];
    for more in good {
        let (check, context) = http(port, more);
        assert_eq!(look(&check, &context).await, Ok(()), "{more}");
    }
    let header = |name: &str, found: Option<&str>, expected: &str| CheckFailure::WrongHeader {
        name: name.to_owned(),
        found: found.map(str::to_owned),
        expected: expected.to_owned(),
    };
    let wrong_body = CheckFailure::WrongBody { found: "ok".into(), expected: "fine".into() };
    let body = "ok".to_owned();
    let wrong = [
        (",\"expect_status\":204", CheckFailure::WrongStatus { found: 200, expected: 204, body }),
        (",\"expect_body\":\"fine\"", wrong_body),
        (
            ",\"expect_header\":{\"x-role\":\"leader\"}",
            header("x-role", Some("follower"), "leader"),
        ),
        (",\"expect_header\":{\"x-none\":\"a\"}", header("x-none", None, "a")),
    ];
    for (more, failure) in wrong {
        let (check, context) = http(port, more);
        assert_eq!(look(&check, &context).await, Err(failure), "{more}");
    }
}

#[tokio::test]
async fn the_kinds_of_failure_are_told_apart() {
    let (check, context) = http(server("").await, "");
    assert_eq!(look(&check, &context).await, Err(CheckFailure::Reset));

    let (check, context) = http(server("SSH-2.0-nothing here\r\n\r\n").await, "");
    assert_eq!(look(&check, &context).await, Err(CheckFailure::NotHttp));

    let half = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nok";
    let (check, context) = http(server(half).await, ",\"expect_body\":\"never\"");
    assert_eq!(look(&check, &context).await, Err(CheckFailure::Reset));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (check, context) = http(port, "");
    assert_eq!(look(&check, &context).await, Err(CheckFailure::TimedOut), "nobody accepts");
    drop(listener);
    assert_eq!(look(&check, &context).await, Err(CheckFailure::Refused));

    let (check, _) = http(0, "");
    let seen = look(&check, &CheckContext::default()).await;
    assert!(matches!(seen, Err(CheckFailure::CannotCheck(_))), "no port: {seen:?}");
}

#[tokio::test]
async fn a_body_without_end_is_read_to_the_limit_only() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while stream.write_all(&[b'a'; 4096]).await.is_ok() {}
    });
    let (mut check, context) = http(port, ",\"expect_body\":\"b\"");
    check.timeout.ms = 5_000;
    assert!(matches!(look(&check, &context).await, Err(CheckFailure::WrongBody { .. })));
}

#[tokio::test]
async fn tcp_is_there_or_not() {
    let port = server(OK).await;
    let tcp = check("{\"type\":\"tcp\"}");
    let context = CheckContext { service_port: Some(port), ..CheckContext::default() };
    assert_eq!(look(&tcp, &context).await, Ok(()));
    let own = check(&format!("{{\"type\":\"tcp\",\"port\":{port}}}"));
    assert_eq!(look(&own, &CheckContext::default()).await, Ok(()));
    let elsewhere = CheckContext { service_address: Some([127, 0, 0, 2].into()), ..context };
    assert_eq!(look(&tcp, &elsewhere).await, Err(CheckFailure::Refused));
}

/// A program that wants one argument, and prints what it got instead.
const WANTS_7: &str = "#!/bin/sh\n[ \"$*\" = 7 ] || { echo not \"$*\"; exit 3; }\n";

/// A release in `folder` that declares some checks, and a server that lists `probe`.
fn declaring(folder: &Path, checks: &[(&str, &[&str])]) -> CheckContext {
    let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let declared = checks.iter().map(|(name, words)| (name.parse().unwrap(), text(words)));
    let listed = serde_json::json!([folder.join("probe"), "7"]);
    let listed =
        BTreeMap::from([("probe".parse().unwrap(), serde_json::from_value(listed).unwrap())]);
    CheckContext {
        service_port: Some(7),
        release: Some(ReleaseChecks {
            version: "1.2.0".parse().unwrap(),
            folder: folder.to_owned(),
            declared: declared.collect(),
            isolation: Isolation::default(),
            limits: Limits::default(),
        }),
        host_programs: Arc::new(listed),
        programs: Programs::new(Launch::confine_for_tests(), Cgroups::default()),
        ..CheckContext::default()
    }
}

fn exec(name: &str) -> Check {
    check(&format!(r#"{{"type":"exec","name":"{name}","timeout":"2s"}}"#))
}

fn program(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn exec_runs_what_the_release_declares_or_the_server_lists() {
    let folder = tempfile::tempdir().unwrap();
    program(folder.path(), "probe", WANTS_7);
    let checks: [(&str, &[&str]); 3] = [
        ("port", &["./probe", "{port}"]),
        ("wrong", &["./probe", "8", "; true"]),
        ("sh", &["true"]),
    ];
    let context = declaring(folder.path(), &checks);
    assert_eq!(look(&exec("port"), &context).await, Ok(()));
    assert_eq!(look(&exec("host:probe"), &context).await, Ok(()));
    assert_eq!(look(&exec("sh"), &context).await, Ok(()), "looked up in PATH");
    let output = "not 8 ; true".to_owned();
    let exit = Exit::Status(3);
    assert_eq!(look(&exec("wrong"), &context).await, Err(CheckFailure::Exited { exit, output }));
}

/// The release has an interpreter; a policy of somebody who owns the hub has no way to use it.
#[tokio::test]
async fn exec_runs_nothing_that_only_a_policy_names() {
    let folder = tempfile::tempdir().unwrap();
    program(folder.path(), "sh", "#!/bin/sh\ntouch \"$0.ran\"\n");
    let context = declaring(folder.path(), &[]);
    let undeclared =
        CheckFailure::Undeclared { name: "sh".parse().unwrap(), version: "1.2.0".parse().unwrap() };
    assert_eq!(look(&exec("sh"), &context).await, Err(undeclared.clone()));
    assert_eq!(undeclared.blame(), Blame::Release);
    let unlisted = CheckFailure::NotListed("sh".to_owned());
    assert_eq!(look(&exec("host:sh"), &context).await, Err(unlisted.clone()));
    assert_eq!(unlisted.blame(), Blame::Surroundings);
    assert!(!folder.path().join("sh.ran").exists());
}

#[tokio::test]
async fn exec_ends_at_its_timeout() {
    let folder = tempfile::tempdir().unwrap();
    program(folder.path(), "slow", "#!/bin/sh\nsleep 600\n");
    let context = declaring(folder.path(), &[("slow", &["./slow"])]);
    let mut slow = exec("slow");
    slow.timeout.ms = 50;
    assert_eq!(look(&slow, &context).await, Err(CheckFailure::TimedOut));
}

#[test]
fn a_program_of_the_server_has_an_absolute_path() {
    let parse = |value: serde_json::Value| serde_json::from_value::<HostProgram>(value);
    assert!(parse(serde_json::json!("/bin/true")).is_ok());
    assert!(parse(serde_json::json!(["/bin/test", "-e", "/x"])).is_ok());
    for wrong in [
        serde_json::json!(""),
        serde_json::json!("true"),
        serde_json::json!([]),
        serde_json::json!(["/bin/true", "\u{0}"]),
        serde_json::json!({ "path": "/bin/true" }),
    ] {
        assert!(parse(wrong.clone()).is_err(), "{wrong}");
    }
}
