//! Deltas, from `publish` to the artifact that a server builds with them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs::{self, File};
use std::io::Write as _;
use std::sync::Arc;

use cohort_artifact::{
    Delta, DeltaInput, Lifetimes, Manifest, Method, Needs, NoDelta, PublishRequest, Published,
    RepositoryError, Told, WorkingCopy, apply_delta, blob_path, units_path,
};
use common::{Fixture, Server, app, bytes_below, folder, intel, stable, version};
use parking_lot::Mutex;

async fn publish(fixture: &Fixture, text: &str) -> Published {
    fixture.repository.publish(&fixture.keys, &fixture.similar(text)).await.unwrap()
}

/// Builds the artifact from the repository's blobs, as a server does.
fn build(fixture: &Fixture, manifest: &Manifest, delta: &Delta) -> Vec<u8> {
    let dir = fixture.repository.dir();
    let input = DeltaInput {
        base: &dir.join(blob_path(&delta.from)),
        delta: &File::open(dir.join(blob_path(&delta.root))).unwrap(),
        method: Method::known(&delta.method).unwrap(),
        root: &manifest.root,
        length: manifest.length,
        scratch: fixture.folder.path(),
        scratch_bytes_max: 1 << 30,
        stopped: &|| false,
    };
    let mut made = Vec::new();
    apply_delta(&input, &mut made).unwrap();
    made
}

#[tokio::test]
async fn the_last_three_versions_get_deltas() {
    let fixture = Fixture::new().await;
    let mut roots = Vec::new();
    for text in ["1.1.0", "1.2.0", "1.3.0", "1.4.0"] {
        roots.push(publish(&fixture, text).await.manifest.root);
    }
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let mut request = fixture.similar("1.10.0");
    request.told = Arc::new(move |what: &str| heard.lock().push(what.to_owned()));
    let published = fixture.repository.publish(&fixture.keys, &request).await.unwrap();
    assert_eq!(told.lock().len(), 3, "{told:?}");
    let manifest = &published.manifest;
    let from: Vec<_> = published.deltas.iter().map(|tried| tried.from.as_str()).collect();
    assert_eq!(from, ["1.4.0", "1.3.0", "1.2.0"]);
    assert_eq!(manifest.deltas.len(), 3, "{:?}", published.deltas);
    let dir = fixture.repository.dir();
    let whole = fs::read(dir.join(blob_path(&manifest.root))).unwrap();
    for delta in &manifest.deltas {
        assert!(roots.contains(&delta.from));
        assert!(delta.length * 100 < manifest.length, "{} bytes", delta.length);
        assert!(dir.join(units_path(&delta.root)).is_file());
        let blob = fs::metadata(dir.join(blob_path(&delta.root))).unwrap();
        assert_eq!(blob.len(), delta.length);
        assert!(build(&fixture, manifest, delta) == whole, "another artifact");
    }
    // Repeating it creates nothing new.
    let before = bytes_below(dir);
    let again = fixture.repository.publish(&fixture.keys, &request).await.unwrap();
    assert!(again.already_there && again.deltas.is_empty());
    assert_eq!(again.manifest, published.manifest);
    assert_eq!(bytes_below(dir), before);
    // Readers get them together with the signature.
    let reader = fixture.reader("store", vec![folder(dir)]).await;
    let read = reader.latest(&app(), &stable(), &intel()).await.unwrap();
    assert_eq!(read.deltas, manifest.deltas);
}

#[tokio::test]
async fn deltas_that_are_not_worth_it_or_not_wanted() {
    let fixture = Fixture::new().await;
    // 1.0.0 has nothing in common with it.
    let published = publish(&fixture, "1.1.0").await;
    assert_eq!(published.deltas.len(), 1);
    assert!(matches!(published.deltas[0].outcome, Err(NoDelta::TooLarge)));
    assert!(published.manifest.deltas.is_empty());
    let at_once = Some(std::time::Duration::ZERO);
    let request = PublishRequest { delta_budget: at_once, ..fixture.similar("1.1.5") };
    let published = fixture.repository.publish(&fixture.keys, &request).await.unwrap();
    assert!(!published.deltas.is_empty());
    for tried in &published.deltas {
        assert!(matches!(tried.outcome, Err(NoDelta::Budget | NoDelta::TooLarge)), "{tried:?}");
    }
    let request = PublishRequest { delta_budget: None, ..fixture.similar("1.2.0") };
    let published = fixture.repository.publish(&fixture.keys, &request).await.unwrap();
    assert!(published.deltas.is_empty() && published.manifest.deltas.is_empty());
    // Another platform starts without deltas.
    let platform = "linux/amd".parse().unwrap();
    let request = PublishRequest { platform, ..fixture.similar("1.3.0") };
    let published = fixture.repository.publish(&fixture.keys, &request).await.unwrap();
    assert!(published.deltas.is_empty());
    // A missing blob costs only its delta.
    let published = publish(&fixture, "1.3.0").await;
    let last = blob_path(&published.manifest.root);
    fs::remove_file(fixture.repository.dir().join(last)).unwrap();
    let published = publish(&fixture, "1.4.0").await;
    let made = published.deltas.iter().filter(|tried| tried.outcome.is_ok()).count();
    assert_eq!((made, published.deltas.len()), (2, 3), "{:?}", published.deltas);
}

async fn pull(
    fixture: &Fixture,
    server: &Server,
    name: &str,
    text: &str,
) -> (WorkingCopy, PublishRequest) {
    let reader = fixture.reader(&format!("store-{name}"), vec![server.mirror.clone()]).await;
    let (app, release, to) = (app(), version(text), fixture.path(name));
    let needs = Needs::Release(app.clone(), release.clone());
    let pulling = WorkingCopy::pull(&to, &reader, &needs, Lifetimes::default());
    let copy = pulling.await.unwrap();
    let cache = fixture.path("cache");
    let told: Told = Arc::new(|_| ());
    let mut request = fixture.similar(text);
    request.bases = copy.fetch_bases(&reader, &app, &intel(), &cache, &told).await.unwrap();
    (copy, request)
}

#[tokio::test]
async fn a_publisher_far_away_makes_them_as_well() {
    let fixture = Fixture::new().await;
    publish(&fixture, "1.1.0").await;
    let hub = &fixture.repository;
    let server = Server::start(hub.dir());
    let (copy, request) = pull(&fixture, &server, "one", "1.2.0").await;
    assert_eq!(request.bases.len(), 2);
    assert!(copy.new_files().unwrap().is_empty());
    let published = copy.repository().publish(&fixture.keys, &request).await.unwrap();
    assert_eq!(published.manifest.deltas.len(), 1);
    copy.keep_base(&published.manifest.root, &fixture.path("cache")).unwrap();
    let files = copy.new_files().unwrap();
    assert_eq!(files.len(), 9, "two blobs with their hashes, manifest, channel, three roles");
    let delta = blob_path(&published.manifest.deltas[0].root);
    let upload = |path: &std::path::Path| {
        let bytes = fs::read(copy.repository().dir().join(path)).unwrap();
        let mut file = hub.incoming().unwrap();
        file.write_all(&bytes).unwrap();
        let relative = path.to_str().unwrap().to_owned();
        async move { hub.receive(&relative, file).await.map(|_| ()) }
    };
    // A manifest whose delta is not here is rejected.
    for path in files.iter().filter(|path| path.to_str() != Some(&delta)) {
        let received = upload(path).await;
        if path.ends_with("timestamp.json") {
            let error = received.unwrap_err();
            assert!(matches!(error, RepositoryError::Refused { .. }), "{error}");
            let reason = cohort_base::chain(&error);
            assert!(reason.contains(&delta), "{reason}");
        } else {
            received.unwrap();
        }
    }
    for path in &files {
        upload(path).await.unwrap();
    }
    let built = build(&fixture, &published.manifest, &published.manifest.deltas[0]);
    assert!(built == fs::read(hub.dir().join(blob_path(&published.manifest.root))).unwrap());

    // Artifacts published from here need not be fetched; a damaged copy costs a delta.
    server.take_log();
    let (copy, request) = pull(&fixture, &server, "two", "1.3.0").await;
    let blobs = server.take_log().into_iter().filter(|path| path.starts_with("blobs/")).count();
    assert_eq!((blobs, request.bases.len()), (0, 3));
    fs::write(&request.bases[&published.manifest.root], "damaged").unwrap();
    let published = copy.repository().publish(&fixture.keys, &request).await.unwrap();
    assert_eq!(published.manifest.deltas.len(), 1, "{:?}", published.deltas);
    let damaged = published.deltas.iter().find(|tried| tried.from.as_str() == "1.2.0").unwrap();
    assert!(matches!(damaged.outcome, Err(NoDelta::Damaged)));
}

#[test]
fn a_reader_passes_over_ways_that_it_does_not_know() {
    let root = "ab".repeat(32);
    let manifest = serde_json::json!({
        "schema": 1, "app": "web", "version": "1.0.0", "platform": "linux",
        "format": "tar.zst", "length": 10, "root": root, "unit_bytes": 65_536,
        "unpacked_bytes": 10, "entries": 1,
        "deltas": [{ "from": root, "method": "of-the-future/9", "length": 3, "root": root }],
        "protocols": {}, "schemas": [], "rollback": "revert",
        "created_at": "2026-01-02T03:04:05Z"
    });
    let manifest = Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap();
    assert_eq!(Method::known(&manifest.deltas[0].method), None);
}
