//! The real binary with a real hub, without any agent: what operators do there.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A hub that stops when dropped.
struct Hub {
    child: Child,
    dir: PathBuf,
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cohort"));
    command.current_dir(dir).env_clear().env("HOME", dir);
    command
}

fn replace(path: &Path, old: &str, new: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(old), "{text}");
    fs::write(path, text.replace(old, new)).unwrap();
}

/// Creates a fleet on ports chosen by the system, and starts its hub.
fn hub(dir: &Path) -> Hub {
    let any = "127.0.0.1:0";
    let args = ["init", "--dir", "fleet", "--listen", any, "--repository-listen", any];
    assert!(command(dir).args(args).output().unwrap().status.success());
    // Without addresses, join tokens contain the one that the hub is listening on.
    replace(&dir.join("fleet/hub.toml"), "addresses = [\"127.0.0.1:0\"]", "");
    let mut child = command(dir)
        .args(["hub", "--config", "fleet/hub.toml", "--log-format", "json"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let mut lines = log.lines().map(|line| line.unwrap());
    let address = lines
        .find_map(|line| {
            let line: Value = serde_json::from_str(&line).ok()?;
            Some(line["fields"]["api_address"].as_str()?.to_owned())
        })
        .expect("the hub tells where it listens, or ends");
    // A full pipe must not block the hub: read what it prints.
    std::thread::spawn(move || lines.for_each(drop));
    let path = dir.join("fleet/context.toml");
    replace(&path, "[\"127.0.0.1:0\"]", &format!("[\"{address}\"]"));
    Hub { child, dir: dir.to_owned() }
}

impl Hub {
    fn run(&self, context: &str, args: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } =
            command(&self.dir).args(["--context", context]).args(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code().unwrap(), text(stdout), text(stderr))
    }

    fn json(&self, context: &str, args: &[&str]) -> (i32, Value) {
        let (code, out, err) = self.run(context, &[args, &["-o", "json"]].concat());
        let text = if out.is_empty() { &err } else { &out };
        (code, serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
    }
}

#[test]
fn policies_are_applied_compared_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let policy = |max: u32| {
        let text = format!("app = \"web\"\nchannel = \"stable\"\n[update]\nmax_parallel = {max}\n");
        fs::write(dir.path().join("web.toml"), text).unwrap();
    };
    policy(1);
    assert_eq!(hub.run("fleet", &["app", "diff", "-f", "web.toml"]).0, 10, "nothing is there yet");
    let (code, first) = hub.json("fleet", &["app", "apply", "-f", "web.toml"]);
    assert_eq!((code, &first["changed"]), (0, &Value::Bool(true)), "{first}");
    let (_, again) = hub.json("fleet", &["app", "apply", "-f", "web.toml"]);
    assert_eq!((&again["changed"], &again["revision"]), (&Value::Bool(false), &first["revision"]));
    policy(2);
    let (code, out, err) = hub.run("fleet", &["app", "diff", "-f", "web.toml"]);
    assert_eq!((code, out.as_str()), (10, "~ update.max_parallel = 1 -> 2\n"), "{err}");
    let (code, out, err) = hub.run("fleet", &["app", "show", "web"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("max_parallel = 1\n"), "{out}");
    // The output of `show` can be applied.
    fs::write(dir.path().join("shown.toml"), out).unwrap();
    assert_eq!(hub.run("fleet", &["app", "diff", "-f", "shown.toml"]).0, 0);
    let (code, error) = hub.json("fleet", &["app", "show", "api"]);
    assert_eq!((code, &error["kind"]), (1, &"no_such_app".into()));
}

#[test]
fn two_apps_do_not_check_one_port() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let apply = |app: &str, port: &str| {
        let text = format!(
            "app = \"{app}\"\nchannel = \"stable\"\n[[check]]\ntype = \"tcp\"\nport = {port}\n"
        );
        fs::write(dir.path().join("app.toml"), text).unwrap();
        hub.json("fleet", &["app", "apply", "-f", "app.toml"])
    };
    for (app, port) in [("web", "8080"), ("web", "8081"), ("api", "8080"), ("old", "\"old\"")] {
        let (code, answer) = apply(app, port);
        assert_eq!(code, 0, "{app} {port}: {answer}");
    }
    for (app, port) in [("api", "8081"), ("api", "\"old\"")] {
        let (code, error) = apply(app, port);
        assert_eq!((code, &error["kind"]), (2, &"shared_port".into()), "{app} {port}");
    }
}

/// The owner of the hub, who has its files, makes it hand out a root of its own.
#[test]
fn a_token_for_another_root_than_the_operators_is_not_given_out() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let root = dir.path().join("fleet/repository/metadata/1.root.json");
    fs::copy(&root, dir.path().join("root.json")).unwrap();
    let context = dir.path().join("fleet/context.toml");
    replace(&context, "repository/metadata/1.root.json", "../root.json");
    assert_eq!(hub.json("fleet", &["token", "create"]).0, 0);
    fs::write(root, "{}").unwrap();
    let (code, refused) = hub.json("fleet", &["token", "create"]);
    assert_eq!((code, &refused["kind"]), (1, &"token".into()), "{refused}");
    assert!(refused["token"].is_null());
}

#[test]
fn a_release_without_a_check_of_its_policy_is_published_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let hub = hub(dir);
    let policy =
        "app = \"web\"\nchannel = \"stable\"\n[[check]]\ntype = \"exec\"\nname = \"smoke\"\n";
    fs::write(dir.join("web.toml"), policy).unwrap();
    assert_eq!(hub.run("fleet", &["app", "apply", "-f", "web.toml"]).0, 0);
    fs::create_dir(dir.join("dist")).unwrap();
    fs::write(dir.join("dist/smoke"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(dir.join("dist/smoke"), fs::Permissions::from_mode(0o755)).unwrap();
    let publish = |file: &str, version: &str| {
        fs::write(dir.join("dist/cohort.toml"), file).unwrap();
        hub.run("fleet", &["publish", "dist", "--app", "web", "--version", version])
    };
    let (code, _, err) = publish("", "1.0.0");
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("[checks.smoke]"), "{err}");
    let (code, _, err) = publish("[checks.smoke]\ncommand = [\"./smoke\"]\n", "1.1.0");
    assert_eq!(code, 0, "{err}");
    assert!(!err.contains("smoke"), "{err}");
}

#[test]
fn the_kill_switch_is_thrown_and_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    assert_eq!(hub.run("fleet", &["kill", "status"]).0, 0);
    let (code, off) = hub.json("fleet", &["kill", "off"]);
    assert_eq!((code, &off["on"]), (0, &Value::Bool(false)), "signed, although none is on");
    assert_eq!(hub.json("fleet", &["kill", "status"]).1["switches"][0]["on"], false);
    let (code, on) = hub.json("fleet", &["kill", "on", "--reason", "bad night"]);
    assert_eq!((code, &on["on"]), (0, &Value::Bool(true)), "{on}");
    let (code, _, _) = hub.run("fleet", &["kill", "on", "--scope", "intel.zone-a"]);
    assert_eq!(code, 0);
    let (code, status) = hub.json("fleet", &["kill", "status"]);
    assert_eq!((code, &status["on"]), (3, &Value::Bool(true)));
    assert_eq!(status["switches"][0]["reason"], "bad night");
    assert_eq!(status["switches"][1]["scope"], "intel.zone-a");
    assert_eq!(hub.run("fleet", &["kill", "off"]).0, 0);
    assert_eq!(hub.run("fleet", &["kill", "status"]).0, 3, "the group's own is on");
    assert_eq!(hub.run("fleet", &["kill", "off", "--scope", "intel.zone-a"]).0, 0);
    assert_eq!(hub.run("fleet", &["kill", "off", "--scope", "intel.zone-b"]).0, 2, "none is known");
    assert_eq!(hub.run("fleet", &["kill", "status"]).0, 0);
}

#[test]
fn people_come_in_by_token_and_may_do_what_their_role_says() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let (code, token, err) =
        hub.run("fleet", &["token", "create", "--role", "viewer", "--name", "ann"]);
    assert_eq!(code, 0, "{err}");
    fs::write(dir.path().join("token"), &token).unwrap();
    let join = ["context", "join", "token", "--name", "ann", "--role"];
    let (code, refused) = hub.json("wrong", &[&join[..], &["operator"]].concat());
    assert_eq!(code, 1, "a viewer's token makes no operator: {refused}");
    let (code, _, err) = hub.run("ann", &[&join[..], &["viewer"]].concat());
    assert_eq!(code, 0, "{err}");
    let (_, you) = hub.json("ann", &["context", "show"]);
    assert_eq!(you["you"]["role"], "viewer");
    let (code, status) = hub.json("ann", &["status"]);
    assert_eq!((code, &status["groups"]), (0, &Value::Array(Vec::new())), "{status}");
    let (code, refused) = hub.json("ann", &["token", "create"]);
    assert_eq!((code, &refused["kind"]), (1, &"forbidden".into()), "{refused}");
    let (code, refused) = hub.json("ann", &["kill", "on"]);
    assert_eq!((code, &refused["kind"]), (1, &"forbidden".into()), "{refused}");
    let (code, _, err) = hub.run("bob", &["context", "join", "token", "--name", "bob"]);
    assert_eq!(code, 1, "a token is good once: {err}");
    let (_, token) = hub.json("fleet", &["token", "create"]);
    let id = token["id"].as_str().unwrap();
    assert_eq!(hub.run("fleet", &["token", "revoke", id]).0, 0);
    assert_eq!(hub.run("ann", &["context", "renew"]).0, 0);
}

#[test]
fn an_unknown_name_is_refused_and_the_last_answer_serves_while_the_hub_is_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let (code, error) = hub.json("fleet", &["status", "intel.zone-a"]);
    assert_eq!((code, &error["kind"]), (1, &"no_such_name".into()), "{error}");
    let (code, error) = hub.json("fleet", &["why", "web-1"]);
    assert_eq!((code, &error["kind"]), (1, &"no_such_name".into()), "{error}");
    let mut hub = hub;
    hub.child.kill().unwrap();
    hub.child.wait().unwrap();
    let (code, _, err) = hub.run("fleet", &["status"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("warning: "), "{err}");
}

#[test]
fn a_publisher_elsewhere_signs_there_and_uploads() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let hub = hub(dir);
    let (_, token, _) =
        hub.run("fleet", &["token", "create", "--role", "publisher", "--name", "ci"]);
    fs::write(dir.join("token"), token).unwrap();
    let join = ["context", "join", "token", "--name", "ci", "--role", "publisher"];
    let (code, _, err) = hub.run("ci", &join);
    assert_eq!(code, 0, "{err}");
    // The publisher has the keys, but not the repository.
    fs::rename(dir.join("fleet/keys/targets.pem"), dir.join("targets.pem")).unwrap();
    fs::create_dir(dir.join("ci/keys")).unwrap();
    fs::rename(dir.join("targets.pem"), dir.join("ci/keys/targets.pem")).unwrap();
    for key in ["snapshot.pem", "timestamp.pem"] {
        fs::copy(dir.join("fleet/keys").join(key), dir.join("ci/keys").join(key)).unwrap();
    }
    fs::create_dir(dir.join("dist")).unwrap();
    fs::write(dir.join("dist/file"), "x").unwrap();
    let publish = |version: &str| {
        let keys = dir.join("ci/keys");
        let args = ["publish", "dist", "--app", "web", "--version", version, "--keys"];
        hub.json("ci", &[&args[..], &[keys.to_str().unwrap()]].concat())
    };
    let (code, first) = publish("1.0.0");
    assert_eq!((code, &first["already_there"]), (0, &Value::Bool(false)), "{first}");
    let (code, again) = publish("1.0.0");
    assert_eq!((code, &again["already_there"]), (0, &Value::Bool(true)), "{again}");
    let (code, _) = publish("1.1.0");
    assert_eq!(code, 0);
    // Keys change from there, too: in one request.
    let root_key = dir.join("fleet/keys/root.pem");
    let keys = dir.join("ci/keys");
    let rotate = |role: &str| {
        let flags = ["--root-key", root_key.to_str().unwrap(), "--keys", keys.to_str().unwrap()];
        hub.json("ci", &[&["repository", "rotate-key", role][..], &flags].concat())
    };
    for (nth, role) in ["targets", "root", "snapshot", "timestamp"].into_iter().enumerate() {
        let (code, answer) = rotate(role);
        assert_eq!((code, &answer["root"]), (0, &Value::from(nth + 2)), "{role}: {answer}");
        let (code, answer) = publish(&format!("1.2.{nth}"));
        assert_eq!(code, 0, "{role}: {answer}");
    }
    assert_eq!(hub.json("fleet", &["repository", "keys"]).1["root"], 5, "the hub has them");
    let set =
        ["channel", "set", "web", "stable", "1.1.0", "--create", "--keys", keys.to_str().unwrap()];
    let (code, pointer) = hub.json("ci", &set);
    assert_eq!((code, &pointer["serial"]), (0, &Value::from(1)), "{pointer}");
    let (_, there) = hub.json("fleet", &["channel", "list"]);
    assert_eq!(there[0]["version"], "1.1.0", "the hub's own repository has it");
    // Builds of several apps end at once.
    for name in ["ci-1", "ci-2", "ci-3"] {
        let copied = Command::new("cp").args(["-r", "ci", name]).current_dir(dir).status();
        assert!(copied.unwrap().success());
    }
    let hub = &hub;
    std::thread::scope(|scope| {
        for name in ["ci-1", "ci-2", "ci-3"] {
            scope.spawn(move || {
                for version in ["1.0.0", "2.0.0", "3.0.0"] {
                    let keys = dir.join("ci/keys");
                    let publish = ["publish", "dist", "--app", name, "--version", version];
                    let flags = ["--channel", "stable", "--keys", keys.to_str().unwrap()];
                    let (code, answer) = hub.json(name, &[&publish[..], &flags].concat());
                    assert_eq!(code, 0, "{name} {version}: {answer}");
                }
            });
        }
    });
    let (_, there) = hub.json("fleet", &["channel", "list"]);
    let newest = there.as_array().unwrap().iter().filter(|it| it["version"] == "3.0.0");
    assert_eq!(newest.count(), 3, "{there}");
    assert!(
        !fs::read_dir(dir.join("ci/cache")).unwrap().any(|entry| {
            entry.unwrap().file_name().to_string_lossy().starts_with("publishing-")
        }),
        "the working copy is gone"
    );
}

/// *A stolen hub*: its authority is replaced, and people follow by renewing.
#[test]
fn the_authority_is_replaced_by_two_commands() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let token = ["token", "create", "--role", "viewer", "--name"];
    for name in ["ann", "bob"] {
        let (_, token, _) = hub.run("fleet", &[&token[..], &[name]].concat());
        fs::write(dir.path().join("token"), token).unwrap();
        let join = ["context", "join", "token", "--role", "viewer", "--name", name];
        let (code, _, err) = hub.run(name, &join);
        assert_eq!(code, 0, "{err}");
    }
    fs::write(dir.path().join("web.toml"), "app = \"web\"\nchannel = \"stable\"\n").unwrap();
    let apply = ["app", "apply", "-f", "web.toml"];
    assert_eq!(hub.run("fleet", &apply).0, 0);
    let (_, before) = hub.json("fleet", &["authority", "show"]);
    assert_eq!(hub.run("fleet", &["authority", "finish"]).0, 1, "nothing to finish");
    assert_eq!(hub.run("ann", &["authority", "rotate"]).0, 1, "operators only");
    let (code, during) = hub.json("fleet", &["authority", "rotate"]);
    assert_eq!(code, 0, "{during}");
    assert_ne!(during["issuer"], before["issuer"]);
    assert_eq!(during["trusts"][1], before["issuer"]);
    assert_eq!(hub.run("fleet", &["authority", "rotate"]).0, 1, "one at a time");
    assert_eq!(hub.run("ann", &["context", "renew"]).0, 0);
    assert_eq!(hub.run("bob", &["status"]).0, 0, "the old certificate is still good");
    let refused = |by: &str| {
        let (code, refused) = hub.json("fleet", &["authority", "finish"]);
        assert_eq!((code, &refused["kind"]), (1, &"conflict".into()), "{refused}");
        assert!(refused["hints"].to_string().contains(by), "{refused}");
    };
    refused("app apply");
    assert_eq!(hub.json("fleet", &apply).1["changed"], true, "signed again");
    assert_eq!(hub.json("fleet", &apply).1["changed"], false);
    assert_eq!(hub.run("fleet", &["kill", "on"]).0, 0);
    refused("kill off");
    assert_eq!(hub.run("fleet", &["kill", "off"]).0, 0);
    let (code, after) = hub.json("fleet", &["authority", "finish"]);
    assert_eq!(code, 0, "{after}");
    assert_eq!(after["trusts"], serde_json::json!([during["issuer"]]));
    assert_eq!(hub.run("ann", &["context", "renew"]).0, 0);
    assert_eq!(hub.run("fleet", &["token", "create"]).0, 0, "by what the operator trusts now");
    let (code, _, _) = hub.run("bob", &["context", "renew"]);
    assert_eq!(code, 1, "whoever has not followed joins again");
}

/// *A leaver among the operators*.
#[test]
fn an_operator_who_has_left_is_refused_and_what_she_signed_is_signed_again() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let token = ["token", "create", "--role", "operator", "--name", "eve"];
    let (_, token, _) = hub.run("fleet", &token);
    fs::write(dir.path().join("token"), token).unwrap();
    let join = ["context", "join", "token", "--role", "operator", "--name", "eve"];
    assert_eq!(hub.run("eve", &join).0, 0);
    fs::write(dir.path().join("web.toml"), "app = \"web\"\nchannel = \"stable\"\n").unwrap();
    let apply = ["app", "apply", "-f", "web.toml"];
    assert_eq!(hub.run("eve", &apply).0, 0);
    let wrong = ["person", "revoke", "eve", "--role", "viewer"];
    assert_eq!(hub.run("fleet", &wrong).0, 2, "the right one would stay valid");
    assert_eq!(hub.run("fleet", &["server", "revoke", "web-9"]).0, 2, "there is none");
    assert_eq!(hub.json("fleet", &["person", "revoked"]).1, serde_json::json!([]));
    let (code, _, err) = hub.run("fleet", &["person", "revoke", "eve", "--reason", "left"]);
    assert_eq!(code, 0, "{err}");
    let (_, told) = hub.json("eve", &["status"]);
    assert_eq!(told["kind"], "revoked", "{told}");
    for args in [&["token", "create"][..], &["context", "renew"], &["kill", "on"], &apply] {
        assert_eq!(hub.run("eve", args).0, 1, "{args:?}");
    }
    let (_, again) = hub.json("fleet", &apply);
    assert_eq!(again["changed"], true, "the same policy, now signed by one who stays: {again}");
    let (_, revoked) = hub.json("fleet", &["person", "revoked"]);
    assert_eq!(
        (&revoked[0]["peer"], &revoked[0]["reason"]),
        (&"operator/eve".into(), &"left".into())
    );
}

/// Who, proven how, what, from where; and what somebody with the hub's disk cannot hide.
#[test]
fn changes_are_audited_and_the_trail_cannot_be_changed_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut hub = hub(dir.path());
    let token = ["token", "create", "--role", "viewer", "--name", "ann"];
    let (_, token, _) = hub.run("fleet", &token);
    fs::write(dir.path().join("token"), token).unwrap();
    let join = ["context", "join", "token", "--role", "viewer", "--name", "ann"];
    assert_eq!(hub.run("ann", &join).0, 0);
    assert_eq!(hub.run("fleet", &["kill", "on", "--reason", "bad night"]).0, 0);
    assert_eq!(hub.run("fleet", &["kill", "off"]).0, 0);
    assert_eq!(hub.run("fleet", &["person", "revoke", "ann", "--role", "viewer"]).0, 0);
    assert_eq!(hub.run("fleet", &["status"]).0, 0, "reading is no change");
    let (code, shown) = hub.json("fleet", &["audit", "show"]);
    assert_eq!(code, 0, "{shown}");
    let shown = shown.as_array().unwrap();
    assert_eq!(shown.len(), 5, "{shown:?}");
    for (entry, (by, what)) in shown.iter().zip([
        ("operator `operator`", "join token"),
        ("nobody", "viewer `ann` joined"),
        ("operator `operator`", "bad night"),
        ("operator `operator`", "kill switch of fleet off"),
        ("operator `operator`", "viewer/ann"),
    ]) {
        assert_eq!((&entry["by"], &entry["from"]), (&by.into(), &"127.0.0.1".into()));
        assert!(entry["what"].as_str().unwrap().contains(what), "{entry}");
    }
    assert_eq!(hub.json("fleet", &["audit", "show", "--last", "2"]).1.as_array().unwrap().len(), 2);
    let (code, export, _) = hub.run("fleet", &["audit", "export"]);
    assert_eq!((code, export.lines().count()), (0, 5));
    fs::write(dir.path().join("export"), &export).unwrap();
    let verify = ["audit", "verify", "--export", "export"];
    assert_eq!(hub.json("fleet", &verify).1["last"], 5);
    fs::write(dir.path().join("export"), "").unwrap();
    assert_eq!(hub.run("fleet", &verify).0, 2, "an empty export shows nothing");
    fs::write(dir.path().join("export"), &export).unwrap();

    let path = dir.path().join("fleet/audit/00000000000000000001.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.replace("bad night", "all well!")).unwrap();
    assert_eq!(hub.json("fleet", &["audit", "verify"]).1["kind"], "broken");
    let without_second: String = whole
        .lines()
        .enumerate()
        .filter(|(nth, _)| *nth != 1)
        .map(|(_, it)| format!("{it}\n"))
        .collect();
    fs::write(&path, without_second).unwrap();
    assert_eq!(hub.json("fleet", &["audit", "verify"]).1["kind"], "broken");
    // Rewritten as a whole: only an earlier export shows it.
    fs::remove_file(&path).unwrap();
    hub.child.kill().unwrap();
    hub.child.wait().unwrap();
    let again = ["hub", "--config", "fleet/hub.toml"];
    let listen = fs::read_to_string(dir.path().join("fleet/context.toml")).unwrap();
    let address = listen.split('"').find(|part| part.starts_with("127.0.0.1:")).unwrap();
    hub.child = command(dir.path())
        .args(again)
        .args(["--listen", address])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while hub.run("fleet", &["token", "create"]).0 != 0 {
        assert!(hub.child.try_wait().unwrap().is_none(), "the hub runs");
    }
    assert_eq!(hub.run("fleet", &["audit", "verify"]).0, 0);
    assert_eq!(hub.json("fleet", &verify).1["kind"], "broken");
}
