//! Another implementation reads our repository: python-tuf, from the Python package index.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Fixture, Server};

/// The version that was tested; python-tuf keeps its reading API within a major version.
const PYTHON_TUF: &str = "tuf==7.0.1";

/// A virtual environment with python-tuf in cargo's directory for tests, created once; `None` on a
/// machine without Python.
fn python_with_tuf() -> Option<PathBuf> {
    let version = Command::new("python3").arg("--version").output();
    if !version.is_ok_and(|output| output.status.success()) {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!ci, "python3 is missing, and with CI=true no test may be skipped");
        eprintln!("SKIPPED: python3 is missing, so python-tuf cannot read our repository");
        return None;
    }
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-tuf-7.0.1");
    let python = home.join("bin/python");
    let works = |python: &Path| {
        let output = Command::new(python).args(["-c", "import tuf.ngclient"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !works(&python) {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home));
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        run(Command::new(&python).args(install).arg(PYTHON_TUF));
        assert!(works(&python), "python-tuf was installed but cannot be imported");
    }
    Some(python)
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}{error}",
        String::from_utf8_lossy(&output.stdout)
    );
    output
}

/// Reads the channel, follows it to the manifest, prints both. `root` is the trusted root.
const SCRIPT: &str = r#"
import json, sys
from tuf.ngclient import Updater
url, store, root = sys.argv[1:4]
updater = Updater(metadata_dir=store, metadata_base_url=url + "metadata/", target_dir=store,
                  target_base_url=url + "targets/", bootstrap=open(root, "rb").read())
updater.refresh()
def read(name):
    info = updater.get_targetinfo(name)
    return None if info is None else json.load(open(updater.download_target(info, store + "/file")))
channel = read("channels/web/stable.json")
manifest = read("apps/web/%s/linux~intel/manifest.json" % channel["version"])
print(json.dumps([channel, manifest, read("channels/web/missing.json")]))
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_tuf_reads_our_repository() {
    let Some(python) = tokio::task::spawn_blocking(python_with_tuf).await.unwrap() else { return };
    let fixture = Fixture::new().await;
    // With a delta in its manifest, which TUF does not care about.
    for earlier in ["1.0.8", "1.0.9"] {
        let request = fixture.similar(earlier);
        fixture.repository.publish(&fixture.keys, &request).await.unwrap();
    }
    let request = fixture.similar("1.1.0+build.7");
    let published = fixture.repository.publish(&fixture.keys, &request).await.unwrap();
    assert_eq!(published.manifest.deltas.len(), 2);
    fixture.repository.renew_timestamp(&fixture.keys.timestamp).await.unwrap();
    let root = fixture.path("root.json");
    std::fs::write(
        &root,
        std::fs::read(fixture.repository.dir().join("metadata/root.json")).unwrap(),
    )
    .unwrap();
    let store = fixture.path("python-store");
    std::fs::create_dir_all(&store).unwrap();
    let read = |server: &Server| {
        let mut command = Command::new(&python);
        command.arg("-c").arg(SCRIPT).arg(&server.url).arg(&store).arg(&root);
        command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
        command
    };

    let server = Server::start(fixture.repository.dir());
    let output = run(&mut read(&server));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found[0], serde_json::to_value(published.channel).unwrap());
    assert_eq!(found[1], serde_json::to_value(published.manifest).unwrap());
    assert!(found[2].is_null());

    // And it rejects what we reject: a replayed repository, by the same rules.
    let old = fixture.copy("old");
    fixture.publish("1.2.0").await;
    run(&mut read(&server));
    let replaying = Server::start(&old);
    let output = read(&replaying).output().unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("BadVersionNumberError") || error.contains("version"), "{error}");
}
