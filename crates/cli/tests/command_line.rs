//! The real binary: exit codes, errors, and everything that works without a server.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// Runs `cohort` in a directory, isolated from this machine's environment.
fn cohort(dir: &Path, args: &[&str]) -> Ran {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_cohort"))
        .args(args)
        .current_dir(dir)
        .env_clear()
        .env("HOME", dir)
        .output()
        .unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Compares with a file in `tests/golden`; `UPDATE=1` rewrites it.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "tests/golden/{name}; UPDATE=1 rewrites it");
}

#[test]
fn help_is_as_documented() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = String::new();
    for command in [
        "",
        "init",
        "hub",
        "mirror",
        "agent",
        "token create",
        "publish",
        "repository",
        "repository push",
        "repository rotate-key",
        "channel set",
        "app",
        "status",
        "why",
        "rollout",
        "rollout plan",
        "group",
        "audit",
        "authority",
        "kill",
        "kill on",
        "context",
    ] {
        let mut args: Vec<&str> = command.split_whitespace().collect();
        args.push("--help");
        let ran = cohort(dir.path(), &args);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{command}");
        all.push_str(&format!("$ cohort {}\n{}\n", args.join(" "), ran.out));
    }
    golden("help.txt", &all);
}

#[test]
fn from_init_to_a_channel_without_any_server() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let made = cohort(dir, &["init", "--dir", "fleet", "--hub-address", "hub.example:7418"]);
    assert_eq!(made.code, 0, "{}", made.err);
    assert!(made.out.contains("export COHORT_CONTEXT="), "{}", made.out);
    for file in ["hub.toml", "context.toml", "authority/ca.pem", "repository/metadata/1.root.json"]
    {
        assert!(dir.join("fleet").join(file).exists(), "{file}");
    }
    let again = cohort(dir, &["init", "--dir", "fleet"]);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("COHORT_CONTEXT"), "the way to the fleet: {}", again.err);

    fs::create_dir_all(dir.join("dist/hooks")).unwrap();
    fs::write(dir.join("dist/index.html"), "hello\n").unwrap();
    let publish = ["--context", "fleet", "publish", "dist", "--app", "web", "-o", "json"];
    let with = |more: &[&str]| cohort(dir, &[&publish[..], more].concat());
    let first = with(&["--version", "1.0.0", "--platform", "linux/amd64", "--channel", "stable"]);
    assert_eq!(first.code, 0, "{}", first.err);
    let first = json(&first.out);
    assert_eq!((&first["version"], &first["channel"]), (&"1.0.0".into(), &"stable".into()));
    assert_eq!(first["already_there"], false);
    let repeated = with(&["--version", "1.0.0", "--platform", "linux/amd64"]);
    assert_eq!(json(&repeated.out)["already_there"], true, "repeating is harmless");
    fs::write(dir.join("dist/index.html"), "other\n").unwrap();
    let changed = with(&["--version", "1.0.0", "--platform", "linux/amd64"]);
    assert_eq!(changed.code, 1, "other bytes under the same version");
    assert_eq!(json(&changed.err)["kind"], "publish");
    assert_eq!(with(&["--version", "2.0.0", "--platform", "linux/amd64"]).code, 0);

    let missing = cohort(dir, &["--context", "fleet", "channel", "set", "web", "stable", "9.9.9"]);
    assert_eq!(missing.code, 1);
    assert!(missing.err.starts_with("error: "), "{}", missing.err);
    let mistyped = ["--context", "fleet", "channel", "set", "web", "stabel", "2.0.0"];
    assert_eq!(cohort(dir, &mistyped).code, 1, "nobody would notice");
    let set = cohort(dir, &["--context", "fleet", "channel", "set", "web", "stable", "2.0.0"]);
    assert_eq!(set.code, 0, "{}", set.err);
    let list = cohort(&dir.join("fleet"), &["channel", "list", "-o", "json"]);
    assert_eq!(json(&list.out)[0]["version"], "2.0.0", "the current folder is a context as well");
    assert_eq!(json(&list.out)[0]["serial"], 2);

    let token = cohort(dir, &["token", "create", "--offline", "fleet/hub.toml", "--name", "web-1"]);
    assert!(token.out.starts_with("cohort1:"), "{}", token.err);
    assert!(token.out.contains("hub.example:7418"));
    assert!(token.err.contains("agent"), "the role: {}", token.err);
}

#[test]
fn publishing_with_another_fleets_keys_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for fleet in ["ours", "theirs"] {
        assert_eq!(cohort(dir, &["init", "--dir", fleet]).code, 0);
    }
    fs::create_dir(dir.join("dist")).unwrap();
    fs::write(dir.join("dist/file"), "x").unwrap();
    let args = [
        "publish",
        "dist",
        "--app",
        "web",
        "--version",
        "1.0.0",
        "--repository",
        "ours/repository",
        "--keys",
        "theirs/keys",
    ];
    let ran = cohort(dir, &args);
    assert_eq!(ran.code, 1, "{}", ran.out);
    let list = cohort(dir, &["--context", "ours", "channel", "list", "-o", "json"]);
    assert_eq!(json(&list.out), Value::Array(Vec::new()));
}

#[test]
fn wrong_usage_is_2_and_json_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let unknown = cohort(dir, &["statsu"]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.err.contains("'status'"), "{}", unknown.err);
    let unknown = cohort(dir, &["statsu", "-o", "json"]);
    assert_eq!((unknown.code, json(&unknown.err)["kind"].clone()), (2, "usage".into()));
    let name = cohort(dir, &["channel", "set", "We b", "stable", "1"]);
    assert_eq!(name.code, 2);
    assert!(name.err.contains("`We b`"), "{}", name.err);
    let half = cohort(dir, &["status", "--agent", "h:1"]);
    assert_eq!(half.code, 2, "an agent is named with its server");
    assert_eq!(cohort(dir, &[]).code, 2);
}

#[test]
fn without_a_context_hints_lead_to_one() {
    let dir = tempfile::tempdir().unwrap();
    let ran = cohort(dir.path(), &["status"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("COHORT_CONTEXT") && ran.err.contains("cohort init"), "{}", ran.err);
}

#[test]
fn a_hub_that_is_away_is_a_failure_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // A port that is not listened on: bound and released.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    assert_eq!(cohort(dir, &["init", "--dir", "fleet", "--hub-address", &address]).code, 0);
    let ran = cohort(dir, &["--context", "fleet", "status", "-o", "json"]);
    let error = json(&ran.err);
    assert_eq!((ran.code, &error["kind"]), (1, &"refused".into()), "{error}");
    assert!(error["hints"].to_string().contains("--agent HOST:PORT"), "{error}");
    let ran = cohort(dir, &["--context", "fleet", "kill", "on"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("--agent"), "{}", ran.err);
    let waited = cohort(dir, &["--context", "fleet", "status", "--wait", "0"]);
    assert_eq!(waited.code, 1, "nobody to ask is a failure, not a time-out");
}

#[test]
fn wrong_files_are_refused_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("web.toml"), "app = \"web\"\nchanel = \"stable\"\n").unwrap();
    let ran = cohort(dir, &["app", "apply", "-f", "web.toml"]);
    assert_eq!(ran.code, 2);
    assert_eq!(
        ran.err,
        "error: web.toml line 2: unknown key `chanel`\nhint: did you mean `channel`?\n"
    );
    fs::write(dir.join("hub.toml"), "listen = \"nowhere\"\n").unwrap();
    let ran = cohort(dir, &["hub"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("hub.toml: listen: "), "{}", ran.err);
    let ran = cohort(dir, &["agent", "--config", "missing.toml"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("missing.toml"), "{}", ran.err);
    let ran = cohort(dir, &["mirror", "--repository-dir", "."]);
    assert_eq!(ran.code, 2);
}

#[test]
fn a_repository_is_pushed_into_a_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert_eq!(cohort(dir, &["init", "--dir", "fleet"]).code, 0);
    let push = |url: &str, more: &[&str]| {
        cohort(dir, &[&["--context", "fleet", "repository", "push", url], more].concat())
    };
    let mounted = format!("file://{}", dir.join("mounted").display());
    let early = push(&mounted, &[]);
    assert_eq!(early.code, 2, "{}", early.err);
    fs::create_dir(dir.join("mounted")).unwrap();
    let first = push(&mounted, &["-o", "json"]);
    assert_eq!(first.code, 0, "{}", first.err);
    let first = json(&first.out);
    assert!(first["files"].as_u64() > Some(3), "{first}");
    assert_eq!(first["timestamp"], 1);
    assert!(dir.join("mounted/metadata/timestamp.json").exists());
    let again = json(&push(&mounted, &["-o", "json"]).out);
    assert_eq!(again["files"], 0, "{again}");
    let ran = push("s3://key:secret@bucket/x", &[]);
    assert_eq!(ran.code, 2);
    // Judged in the same way as an origin of a mirror.
    let ran = cohort(dir, &["mirror", "--origin", "s3://bucket/a b", "--cache-dir", "cache"]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("hint: "), "{}", ran.err);
}

#[test]
fn completions_know_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let ran = cohort(dir.path(), &["completions", shell]);
        assert_eq!(ran.code, 0);
        assert!(ran.out.contains("COHORT_COMPLETE"), "{shell}");
    }
    // As the shell's function calls it.
    let asked = Command::new(env!("CARGO_BIN_EXE_cohort"))
        .args(["--", "cohort", "group", ""])
        .env("COHORT_COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", "2")
        .env("_CLAP_IFS", "\n")
        .output()
        .unwrap();
    let told = String::from_utf8(asked.stdout).unwrap();
    assert!(told.lines().any(|line| line.trim() == "transfer-leader"), "{told}");
}
