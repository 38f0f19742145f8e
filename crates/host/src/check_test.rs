use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use cohort_core::policy::Check;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{CheckContext, CheckFailure, check_name, look};
use crate::cgroup::Cgroups;
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
    let url = "http://127.0.0.1:{port}/healthz";
    let text = format!("{{\"type\":\"http\",\"url\":\"{url}\",\"timeout\":\"2s\"{more}}}");
    (check(&text), CheckContext { service_port: Some(port), ..CheckContext::default() })
}

const OK: &str = "HTTP/1.1 200 OK\r\nx-role: follower\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn a_checks_name_has_the_port_of_this_server() {
    let (check, context) = http(8080, "");
    assert_eq!(check_name(&check, &context), "http http://127.0.0.1:8080/healthz");
    let none = CheckContext::default();
    assert_eq!(check_name(&check, &none), "http http://127.0.0.1:{port}/healthz");
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
    let tcp = check("{\"type\":\"tcp\",\"address\":\"localhost:{port}\"}");
    let context = CheckContext { service_port: Some(port), ..CheckContext::default() };
    assert_eq!(look(&tcp, &context).await, Ok(()));
    let nowhere =
        check("{\"type\":\"tcp\",\"address\":\"no.such.host.invalid:1\",\"timeout\":\"5s\"}");
    assert_eq!(look(&nowhere, &context).await, Err(CheckFailure::NameNotFound));
}

#[tokio::test]
async fn exec_runs_files_of_the_release_or_of_the_list_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("probe");
    std::fs::write(&program, "#!/bin/sh\n[ \"$1\" = 7 ] || { echo not \"$1\"; exit 3; }\n")
        .unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let listed = BTreeMap::from([("probe".to_owned(), program.clone())]);
    let context = CheckContext {
        service_port: Some(7),
        release_folder: Some(folder.path().to_owned()),
        host_programs: Arc::new(listed),
        programs: Programs::new(Launch::confine_for_tests(), Cgroups::default()),
        ..CheckContext::default()
    };
    let exec = |command: &str, arg: &str| {
        check(&format!(
            r#"{{"type":"exec","command":"{command}","args":["{arg}"],"timeout":"2s"}}"#
        ))
    };
    assert_eq!(look(&exec("probe", "{port}"), &context).await, Ok(()));
    assert_eq!(look(&exec("host:probe", "7"), &context).await, Ok(()));
    let seen = look(&exec("./probe", "; true"), &context).await;
    assert_eq!(
        seen,
        Err(CheckFailure::Exited { exit: Exit::Status(3), output: "not ; true".into() })
    );
    for command in ["../probe", "/bin/sh", "host:sh", ""] {
        let seen = look(&exec(command, "7"), &context).await;
        assert!(matches!(seen, Err(CheckFailure::CannotCheck(_))), "{command}: {seen:?}");
    }
    let mut slow = exec("slow", "");
    let slow_program: PathBuf = folder.path().join("slow");
    std::fs::write(&slow_program, "#!/bin/sh\nsleep 600\n").unwrap();
    std::fs::set_permissions(&slow_program, std::fs::Permissions::from_mode(0o755)).unwrap();
    slow.timeout.ms = 50;
    assert_eq!(look(&slow, &context).await, Err(CheckFailure::TimedOut));
}
