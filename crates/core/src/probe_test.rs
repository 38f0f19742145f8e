use super::Probe;

fn judged(text: &str) -> Result<(), String> {
    let probe: Probe = serde_json::from_str(text).map_err(|error| error.to_string())?;
    probe.validate()
}

#[test]
fn what_a_server_can_check_is_accepted() {
    for text in [
        r#"{"type": "tcp"}"#,
        r#"{"type": "tcp", "port": "metrics"}"#,
        r#"{"type": "tcp", "socket": "redis.sock", "send": "PING\r\n", "expect": "+PONG"}"#,
        r#"{"type": "http", "path": "/", "method": "HEAD"}"#,
        r#"{"type": "http", "path": "/", "method": "POST", "body": "{}", "expect_status": 204}"#,
        r#"{"type": "http", "path": "/", "tls": {}}"#,
        r#"{"type": "http", "path": "/", "tls": {"insecure": true, "server_name": "a.example"}}"#,
        r#"{"type": "http", "path": "/", "expect_json": {"/status": "ok", "/up": true, "/n": 3}}"#,
        r#"{"type": "http", "path": "/", "headers": {"Host": "example.com"}, "port": 8081}"#,
        r#"{"type": "http", "path": "/", "headers": {"Authorization": "x"}}"#,
    ] {
        assert_eq!(judged(text), Ok(()), "{text}");
    }
}

#[test]
fn what_no_server_can_check_is_refused() {
    for text in [
        r#"{"type": "tcp", "port": 0}"#,
        r#"{"type": "tcp", "port": 99999}"#,
        r#"{"type": "tcp", "port": -1}"#,
        r#"{"type": "tcp", "port": "9100 "}"#,
        r#"{"type": "tcp", "port": 1, "socket": "a"}"#,
        r#"{"type": "tcp", "socket": "/run/docker.sock"}"#,
        r#"{"type": "tcp", "socket": "../docker.sock"}"#,
        r#"{"type": "tcp", "expect": ""}"#,
        r#"{"type": "tcp", "port": 6379, "send": "FLUSHALL\r\n"}"#,
        r#"{"type": "tcp", "port": "redis", "send": "PING\r\n"}"#,
        r#"{"type": "tcp", "prot": 1}"#,
        r#"{"type": "http", "path": "/{prot}"}"#,
        r#"{"type": "http", "path": "localhost/healthz"}"#,
        r#"{"type": "http", "path": "/", "expect_status": 999}"#,
        r#"{"type": "http", "path": "/", "method": "DELETE"}"#,
        r#"{"type": "http", "path": "/", "method": "POST", "port": 2375}"#,
        r#"{"type": "http", "path": "/", "headers": {"Authorization": "x"}, "port": 2375}"#,
        r#"{"type": "http", "path": "/", "method": "POST", "port": "docker"}"#,
        r#"{"type": "http", "path": "/", "body": "x"}"#,
        r#"{"type": "http", "path": "/", "method": "HEAD", "expect_body": "x"}"#,
        r#"{"type": "http", "path": "/", "expect_json": {"status": "ok"}}"#,
        r#"{"type": "http", "path": "/", "expect_json": {"/status": {}}}"#,
        r#"{"type": "http", "path": "/", "headers": {"a b": "c"}}"#,
        r#"{"type": "http", "path": "/", "headers": {"a": "b\r\nc: d"}}"#,
        r#"{"type": "http", "path": "/", "tls": {"server_name": "a b"}}"#,
        r#"{"type": "http", "path": "/", "tls": {"insecure": true, "ca": "x"}}"#,
        r#"{"type": "http", "path": "/", "tls": {"verify": false}}"#,
    ] {
        assert!(judged(text).is_err(), "{text}");
    }
}
