//! `docs/keys.md`, walked with the real binary: what an operator types when a key is lost, stolen,
//! or has to change.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// A fleet whose root key is on a drive.
struct Fleet {
    dir: tempfile::TempDir,
    passphrase: Option<PathBuf>,
}

impl Fleet {
    fn new(more: &[&str], passphrase: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = passphrase.map(|passphrase| {
            let path = dir.path().join("passphrase");
            fs::write(&path, format!("{passphrase}\n")).unwrap();
            path
        });
        let fleet = Self { dir, passphrase: file };
        let init = ["init", "--dir", "fleet", "--offline-root", "drive"];
        // No drive is mounted there yet.
        fleet.fails(&init);
        fs::create_dir(fleet.path("drive")).unwrap();
        fleet.done(&[&init[..], more].concat());
        fs::create_dir(fleet.path("dist")).unwrap();
        fs::write(fleet.path("dist/file"), "x").unwrap();
        fleet
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cohort"));
        command.current_dir(self.dir.path()).env_clear().env("HOME", self.dir.path());
        if args[0] != "init" {
            command.args(["--context", "fleet"]);
        }
        if let Some(file) = &self.passphrase {
            command.env("COHORT_KEY_PASSPHRASE_FILE", file);
        }
        command.args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> (i32, Value) {
        let ran = self.command(&[args, &["-o", "json"]].concat()).output().unwrap();
        let (out, err) = (ran.stdout, String::from_utf8(ran.stderr).unwrap());
        // On standard error, notes come first.
        let failed = err.lines().last().unwrap_or_default().as_bytes().to_vec();
        let text = if out.is_empty() { failed } else { out };
        let code = ran.status.code().unwrap();
        (code, serde_json::from_slice(&text).unwrap_or(Value::String(err)))
    }

    fn done(&self, args: &[&str]) -> Value {
        let (code, answer) = self.run(args);
        assert_eq!(code, 0, "{args:?}: {answer}");
        answer
    }

    fn fails(&self, args: &[&str]) -> Value {
        let (code, answer) = self.run(args);
        assert_ne!(code, 0, "{args:?}: {answer}");
        answer
    }

    fn publish(&self, version: &str) -> (i32, Value) {
        self.run(&["publish", "dist", "--app", "web", "--version", version, "--channel", "stable"])
    }

    fn keys(&self, role: &str) -> Vec<String> {
        let answer = self.done(&["repository", "keys"]);
        let roles = answer["roles"].as_array().unwrap();
        let of_role = roles.iter().find(|of| of["role"] == role).unwrap();
        serde_json::from_value(of_role["keys"].clone()).unwrap()
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }
}

/// The command with the root key.
fn repository<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["repository"], args, &ROOT[..]].concat()
}

const ROOT: [&str; 2] = ["--root-key", "drive/root.pem"];

#[test]
fn the_root_key_of_the_first_day_is_only_on_the_drive() {
    let fleet = Fleet::new(&[], None);
    assert!(fleet.path("drive/root.pem").exists());
    assert!(!fleet.path("fleet/keys/root.pem").exists());
    assert_eq!(fleet.publish("1.0.0").0, 0, "publishing needs no root key");
    let before = fleet.keys("targets");
    let refused = fleet.fails(&["repository", "rotate-key", "targets"]);
    assert!(refused["error"].to_string().contains("fleet/keys/root.pem"), "{refused}");
    assert!(refused["hints"].to_string().contains("--root-key"), "{refused}");
    assert_eq!(fleet.keys("targets"), before);
    let again = ["init", "--dir", "other", "--offline-root", "drive"];
    assert_eq!(fleet.fails(&again)["kind"], "exists");
    assert!(!fleet.path("other").exists());
}

/// *A lost timestamp key*, *a lost targets key*, *a stolen targets key*, and the root's turn.
#[test]
fn every_role_gets_a_new_key_with_or_without_the_old_one() {
    let fleet = Fleet::new(&[], None);
    assert_eq!(fleet.publish("1.0.0").0, 0);
    for (nth, role) in ["timestamp", "snapshot", "targets", "root"].into_iter().enumerate() {
        let (file, is_root) = (format!("fleet/keys/{role}.pem"), role == "root");
        let old = fleet.keys(role);
        if !is_root {
            fs::rename(fleet.path(&file), fleet.path("stolen.pem")).unwrap();
            if role == "timestamp" {
                assert_ne!(fleet.publish("0.0.1").0, 0, "a release is not published half signed");
            }
        }
        let answer = fleet.done(&[&["repository", "rotate-key", role], &ROOT[..]].concat());
        assert_eq!(answer["root"], nth as u64 + 2);
        assert_ne!(fleet.keys(role), old, "{role}");
        let new = fleet.path(if is_root { "drive/root.pem" } else { &file });
        assert_eq!(fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!new.with_file_name(format!("{role}-new.pem")).exists());
        let (code, answer) = fleet.publish(&format!("1.{}.0", nth + 1));
        assert_eq!(code, 0, "{role}: {answer}");
        if !is_root {
            let kept = fs::read(fleet.path(&file)).unwrap();
            fs::rename(fleet.path("stolen.pem"), fleet.path(&file)).unwrap();
            let (code, refused) = fleet.publish("6.6.6");
            assert_eq!(code, 1, "{role}: a stolen key signs nothing more: {refused}");
            fs::write(fleet.path(&file), kept).unwrap();
        }
    }
    assert_eq!(fleet.done(&["channel", "list"])[0]["version"], "1.4.0");
}

/// The machine stops after the repository has changed, and before the file has its name.
#[test]
fn an_interrupted_rotation_is_finished_by_the_same_command() {
    let fleet = Fleet::new(&[], None);
    let rotate = [&["repository", "rotate-key", "targets"], &ROOT[..]].concat();
    fleet.done(&rotate);
    let (file, waiting) = ("fleet/keys/targets.pem", "fleet/keys/targets-new.pem");
    fs::rename(fleet.path(file), fleet.path(waiting)).unwrap();
    let named = fleet.keys("targets");
    let (code, answer) = fleet.run(&rotate);
    assert_eq!(code, 0, "{answer}");
    assert_eq!(fleet.keys("targets"), named);
    assert!(fleet.path(file).exists() && !fleet.path(waiting).exists());
    assert_eq!(fleet.publish("1.0.0").0, 0);
}

/// A key that waits was perhaps put there by a thief: it is not used unless somebody says so. None
/// is left by a rotation that could not be signed.
#[test]
fn a_new_key_that_waits_is_used_only_if_somebody_says_so() {
    let fleet = Fleet::new(&[], None);
    let waiting = fleet.path("fleet/keys/targets-new.pem");
    let wrong = ["repository", "rotate-key", "targets", "--root-key", "fleet/keys/targets.pem"];
    assert_eq!(fleet.fails(&wrong)["kind"], "keys");
    assert!(!waiting.exists());
    let rotate = [&["repository", "rotate-key", "targets"], &ROOT[..]].concat();
    let before = fleet.keys("targets");
    fs::copy(fleet.path("drive/root.pem"), &waiting).unwrap();
    fs::set_permissions(&waiting, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fleet.fails(&rotate)["kind"], "interrupted");
    assert_eq!(fleet.keys("targets"), before);
    fleet.done(&[&rotate[..], &["--resume"]].concat());
    assert_ne!(fleet.keys("targets"), before);
}

#[test]
fn two_of_three_keys_sign() {
    let fleet = Fleet::new(&[], None);
    for name in ["ann", "bob"] {
        let file = format!("fleet/keys/targets-{name}.pem");
        fleet.done(&repository(&["add-key", "targets", &file]));
    }
    assert_eq!(fleet.fails(&repository(&["threshold", "targets", "4"]))["kind"], "keys");
    assert_eq!(fleet.fails(&repository(&["threshold", "timestamp", "2"]))["kind"], "keys");
    fleet.done(&repository(&["threshold", "targets", "2"]));
    assert_eq!(fleet.publish("1.0.0").0, 0);
    fleet.remove("fleet/keys/targets-ann.pem");
    assert_eq!(fleet.publish("1.1.0").0, 0);
    let bob = fs::read(fleet.path("fleet/keys/targets-bob.pem")).unwrap();
    fleet.remove("fleet/keys/targets-bob.pem");
    let (code, refused) = fleet.publish("1.2.0");
    assert_eq!(code, 1, "one of two: {refused}");
    // A role with several keys: which one is named.
    let bobs = fleet.path("fleet/keys/targets-bob.pem");
    fs::write(&bobs, bob).unwrap();
    fs::set_permissions(&bobs, fs::Permissions::from_mode(0o600)).unwrap();
    fleet.fails(&repository(&["rotate-key", "targets"]));
    let lost = &fleet.keys("targets")[1][..12];
    fleet.fails(&repository(&["remove-key", "targets", "0123456789ab"]));
    fleet.done(&repository(&["remove-key", "targets", lost]));
    assert_eq!(fleet.keys("targets").len(), 2);
    fleet.done(&repository(&["threshold", "targets", "1"]));
}

#[test]
fn keys_with_a_passphrase_need_it_and_the_hubs_has_none() {
    let mut fleet = Fleet::new(&["--passphrase"], Some("open sesame"));
    for file in ["drive/root.pem", "fleet/keys/targets.pem", "fleet/keys/snapshot.pem"] {
        assert!(fs::read_to_string(fleet.path(file)).unwrap().contains("ENCRYPTED"), "{file}");
    }
    let timestamp = fs::read_to_string(fleet.path("fleet/keys/timestamp.pem")).unwrap();
    assert!(!timestamp.contains("ENCRYPTED"), "the hub signs unattended");
    assert_eq!(fleet.publish("1.0.0").0, 0);
    let rotate = [&["repository", "rotate-key", "targets", "--passphrase"], &ROOT[..]].concat();
    fleet.done(&rotate);
    assert!(
        fs::read_to_string(fleet.path("fleet/keys/targets.pem")).unwrap().contains("ENCRYPTED")
    );
    let passphrase = fleet.passphrase.take();
    let refused = fleet.publish("1.1.0").1;
    assert!(refused.to_string().contains("COHORT_KEY_PASSPHRASE_FILE"), "{refused}");
    fs::write(fleet.path("wrong"), "open, sesame\n").unwrap();
    fleet.passphrase = Some(fleet.path("wrong"));
    assert_eq!(fleet.publish("1.1.0").0, 1);
    fleet.passphrase = passphrase;
    for file in ["fleet/keys/targets.pem", "fleet/keys/snapshot.pem"] {
        let ran = fleet.command(&["repository", "passphrase", file, "--remove"]).status().unwrap();
        assert!(ran.success());
    }
    fleet.passphrase = None;
    assert_eq!(fleet.publish("1.1.0").0, 0);
}

/// The targets key stays with a program: here `cohort repository sign`, as on another machine.
#[test]
fn a_program_signs_and_a_wrong_signature_is_not_written() {
    let fleet = Fleet::new(&[], None);
    let vault = fleet.path("vault.pem");
    let openssl = |args: &[&str]| {
        let ran = Command::new("openssl").args(args).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    let vault_text = vault.to_str().unwrap();
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", vault_text]);
    fs::set_permissions(&vault, fs::Permissions::from_mode(0o600)).unwrap();
    let public = openssl(&["pkey", "-in", vault_text, "-pubout"]);
    let signer = fleet.path("fleet/keys/targets-vault.toml");
    let program = |program: &[&str]| {
        let command = serde_json::to_string(program).unwrap();
        let text = format!("public_key = \"\"\"\n{public}\"\"\"\ncommand = {command}\n");
        fs::write(&signer, text).unwrap();
        fs::set_permissions(&signer, fs::Permissions::from_mode(0o600)).unwrap();
    };
    program(&[env!("CARGO_BIN_EXE_cohort"), "repository", "sign", vault_text]);
    let rotate = ["repository", "rotate-key", "targets", "--new-key", signer.to_str().unwrap()];
    fleet.done(&[&rotate[..], &ROOT[..]].concat());
    fleet.remove("fleet/keys/targets.pem");
    assert_eq!(fleet.publish("1.0.0").0, 0);
    program(&["/bin/sh", "-c", "head -c 64 /dev/zero"]);
    let before = files(&fleet.path("fleet/repository/metadata"));
    let (code, refused) = fleet.publish("1.1.0");
    assert_eq!(code, 1, "{refused}");
    assert!(refused["error"].to_string().contains("/bin/sh"), "{refused}");
    assert_eq!(files(&fleet.path("fleet/repository/metadata")), before);
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn an_authority_of_ones_own_has_to_be_one() {
    let fleet = Fleet::new(&[], None);
    let init = |cert: &str, key: &str| {
        fleet.run(&["init", "--dir", "own", "--authority", cert, "--authority-key", key])
    };
    // The operator's certificate certifies nobody.
    let (code, refused) = init("fleet/operator/cert.pem", "fleet/operator/key.pem");
    assert_eq!((code, &refused["kind"]), (1, &"authority".into()), "{refused}");
    let (code, refused) = init("fleet/authority/ca.pem", "fleet/operator/key.pem");
    assert_eq!(code, 1, "{refused}");
    let (code, made) = init("fleet/authority/ca.pem", "fleet/authority/ca-key.pem");
    assert_eq!(code, 0, "{made}");
    fleet.fails(&["init", "--dir", "x", "--authority", "cert.pem"]);
}
