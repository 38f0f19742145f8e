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
use crate::own_values::OwnValues;
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

fn at(port: u16) -> Arc<OwnValues> {
    let app = "web".parse().unwrap();
    Arc::new(OwnValues::of(&app, Some(port), BTreeMap::new(), BTreeMap::new()))
}

fn check(text: &str) -> Check {
    serde_json::from_str(text).unwrap()
}

fn http(port: u16, more: &str) -> (Check, CheckContext) {
    let text = format!("{{\"type\":\"http\",\"path\":\"/healthz\",\"timeout\":\"2s\"{more}}}");
    (check(&text), CheckContext { own_values: at(port), ..CheckContext::default() })
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

/// Slow error pages and streams: the status is the answer.
#[tokio::test]
async fn a_service_that_never_comes_to_the_point_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        while stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await.is_ok() {}
    });
    let (mut check, context) = http(port, "");
    check.timeout = "1h".to_owned().try_into().unwrap();
    let failure = look(&check, &context).await.unwrap_err();
    assert!(matches!(failure, CheckFailure::Unreachable(_) | CheckFailure::NotHttp), "{failure}");
}

#[tokio::test]
async fn a_wrong_status_is_told_although_its_body_does_not_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let begin = b"HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\na\r\nmigrating\n\r\n";
        stream.write_all(begin).await.unwrap();
        std::future::pending::<()>().await;
    });
    let (mut check, context) = http(port, "");
    check.timeout.ms = 200;
    let (found, expected, body) = (503, 200, "migrating".to_owned());
    let told = CheckFailure::WrongStatus { found, expected, body };
    assert_eq!(look(&check, &context).await, Err(told));
}

#[tokio::test]
async fn http_looks_at_values_in_json() {
    let body = "{\"status\": \"ok\", \"db\": {\"up\": true, \"lag\": 3}}";
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let port = server(answer.leak()).await;
    let json = |values: &str| http(port, &format!(",\"expect_json\":{values}"));
    let (check, context) = json("{\"/status\":\"ok\",\"/db/up\":true,\"/db/lag\":3}");
    assert_eq!(look(&check, &context).await, Ok(()));
    for (values, found) in [("{\"/db/lag\":0}", Some("3")), ("{\"/cache\":\"ok\"}", None)] {
        let (check, context) = json(values);
        let seen = look(&check, &context).await;
        let Err(CheckFailure::WrongValue { found: seen, .. }) = seen else { panic!("{seen:?}") };
        assert_eq!(seen.as_deref(), found);
    }
    let (check, context) = http(server(OK).await, ",\"expect_json\":{\"/a\":1}");
    assert!(matches!(look(&check, &context).await, Err(CheckFailure::WrongBody { .. })));
}

#[tokio::test]
async fn a_request_has_the_headers_and_the_body_of_its_check() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let mut length = 0;
        while !request[..length].ends_with(b"ping") {
            length += stream.read(&mut request[length..]).await.unwrap();
        }
        stream.write_all(OK.as_bytes()).await.unwrap();
        String::from_utf8(request[..length].to_vec()).unwrap().to_lowercase()
    });
    let more = ",\"method\":\"POST\",\"body\":\"ping\",\
                \"headers\":{\"Host\":\"example.com\",\"X-Probe\":\"1\"}";
    let (check, context) = http(port, more);
    assert_eq!(look(&check, &context).await, Ok(()));
    let asked = asked.await.unwrap();
    assert!(asked.starts_with("post /healthz http/1.1"), "{asked}");
    assert!(asked.contains("\r\nx-probe: 1\r\n"), "{asked}");
    assert_eq!(asked.matches("\r\nhost: ").count(), 1, "{asked}");
}

/// A server of the app's own socket, which is in its runtime directory.
#[tokio::test]
async fn a_socket_of_the_app_is_reached_and_no_link_is_followed() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let listeners = [&folder, &elsewhere]
        .map(|it| tokio::net::UnixListener::bind(it.path().join("web.sock")).unwrap());
    for listener in listeners {
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _read = stream.read(&mut [0; 1024]).await;
                let _written = stream.write_all(OK.as_bytes()).await;
            }
        });
    }
    let link = folder.path().join("link.sock");
    std::os::unix::fs::symlink(elsewhere.path().join("web.sock"), link).unwrap();
    let runtime_dir = folder.path().display().to_string();
    let variables = BTreeMap::from([("COHORT_RUNTIME_DIR".to_owned(), runtime_dir)]);
    let context = CheckContext { variables, ..CheckContext::default() };
    let of = |socket: &str| {
        check(&format!("{{\"type\":\"http\",\"path\":\"/\",\"socket\":\"{socket}\"}}"))
    };
    assert_eq!(look(&of("web.sock"), &context).await, Ok(()));
    assert_eq!(check_name(&of("web.sock"), &context), "http web.sock:/");
    let missing = look(&of("none.sock"), &context).await;
    assert!(matches!(missing, Err(CheckFailure::Unreachable(_))), "{missing:?}");
    let linked = look(&of("link.sock"), &context).await;
    assert!(matches!(linked, Err(CheckFailure::Unreachable(_))), "{linked:?}");
}

/// A TLS server with a certificate of its own for `name`; returns its port, and the certificate.
async fn tls_server(name: &str) -> (u16, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let pem = certificate.pem();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _read = stream.read(&mut [0; 1024]).await;
            let _written = stream.write_all(OK.as_bytes()).await;
            let _ended = stream.shutdown().await;
        }
    });
    (port, pem)
}

#[tokio::test]
async fn https_verifies_the_name_and_the_authority_unless_told_otherwise() {
    let (port, pem) = tls_server("web.example").await;
    let (_, other) = tls_server("web.example").await;
    let of = |tls: serde_json::Value| http(port, &format!(",\"tls\":{tls}"));
    let named = |name: &str, ca: &str| serde_json::json!({ "server_name": name, "ca": ca });
    for good in [named("web.example", &pem), serde_json::json!({ "insecure": true })] {
        let (check, context) = of(good);
        assert_eq!(look(&check, &context).await, Ok(()));
        assert_eq!(check_name(&check, &context), format!("https :{port}/healthz"));
    }
    let of_system = serde_json::json!({ "server_name": "web.example" });
    for wrong in [named("other.example", &pem), named("web.example", &other), of_system] {
        let (check, context) = of(wrong.clone());
        let seen = look(&check, &context).await;
        assert!(matches!(seen, Err(CheckFailure::NotTrusted(_))), "{wrong}: {seen:?}");
    }
    let (check, context) = of(named("web.example", "no certificate"));
    let seen = look(&check, &context).await;
    assert!(matches!(seen, Err(CheckFailure::CannotCheck(_))), "{seen:?}");
    // The service speaks plain HTTP.
    let (check, context) = http(server(OK).await, ",\"tls\":{}");
    let seen = look(&check, &context).await;
    assert!(matches!(seen, Err(CheckFailure::NotTrusted(_))), "{seen:?}");
}

#[tokio::test]
async fn tcp_sends_and_expects() {
    let port = server("+PONG\r\n").await;
    let context = CheckContext { own_values: at(port), ..CheckContext::default() };
    let of = |expect: &str| {
        check(&format!("{{\"type\":\"tcp\",\"send\":\"PING\",\"expect\":\"{expect}\"}}"))
    };
    assert_eq!(look(&of("PONG"), &context).await, Ok(()));
    let wrong = CheckFailure::WrongAnswer { found: "+PONG".into(), expected: "OK".into() };
    assert_eq!(look(&of("OK"), &context).await, Err(wrong));
    let silent = server("").await;
    let context = CheckContext { own_values: at(silent), ..CheckContext::default() };
    assert_eq!(look(&of("PONG"), &context).await, Err(CheckFailure::Reset));
}

#[tokio::test]
async fn tcp_is_there_or_not() {
    let port = server(OK).await;
    let tcp = check("{\"type\":\"tcp\"}");
    let context = CheckContext { own_values: at(port), ..CheckContext::default() };
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
        own_values: at(7),
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
