//! Reading a repository over HTTP, and every attack that a mirror can try.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::io::Read as _;
use std::time::{Duration, SystemTime};

use cohort_artifact::client::{ClientLimits, FetchError, MirrorClient};
use cohort_artifact::{
    Keys, Lifetimes, Mirror, Repository, RepositoryError, TrustedRepository, UnitHashes, blob_path,
    units_path,
};
use cohort_core::refused::{Role, WhyRefused};
use common::{Answer, Fixture, Server, app, bytes_below, folder, intel, stable, version};
use std::error::Error as _;

#[tokio::test]
async fn a_release_arrives_over_http_and_outlives_its_mirrors() {
    let fixture = Fixture::new().await;
    let server = Server::start(fixture.repository.dir());
    let reader = fixture.reader("store", vec![server.mirror.clone()]).await;
    let latest = reader.latest(&app(), &stable(), &intel()).await.unwrap();
    assert_eq!(latest.version.as_str(), "1.0.0");
    assert_eq!(fixture.repository.channels().unwrap()[0].serial, 1);
    let read = |path: String| fs::read(fixture.repository.dir().join(path)).unwrap();
    let (units, blob) = (read(units_path(&latest.root)), read(blob_path(&latest.root)));
    let units = UnitHashes::parse_for(&units, &latest.root, latest.length).unwrap();
    assert_eq!(units.count(), 5, "300 kB");
    assert!(units.verified_units(&mut blob.as_slice()).unwrap().into_iter().all(|right| right));
    let release = latest.release();
    assert_eq!(release.manifest, *latest.digest());

    // A round without news requests only a newer root and the timestamp.
    server.take_log();
    assert!(!reader.refresh().await.unwrap());
    assert_eq!(server.take_log(), ["metadata/2.root.json", "metadata/timestamp.json"]);

    // The mirror dies and the agent restarts: what it runs is verified again from its own disk.
    drop(server);
    let before = bytes_below(&fixture.path("store"));
    let reader = fixture.reader("store", vec!["http://127.0.0.1:9/".parse().unwrap()]).await;
    let manifest = reader.manifest(&app(), &version("1.0.0"), &intel()).await.unwrap();
    assert_eq!(manifest, latest);
    assert!(reader.offer(&app(), &stable(), &intel()).await.is_ok(), "still fresh");
    let error = fixture.latest(&reader).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert_eq!(bytes_below(&fixture.path("store")), before);
}

#[tokio::test]
async fn a_stranger_s_repository_is_refused() {
    let (ours, strange) = (Fixture::new().await, Fixture::new().await);
    strange.publish("6.6.6").await;
    let reader = ours.reader("store", vec![folder(strange.repository.dir())]).await;
    let refused = async |reader: &TrustedRepository| match ours.latest(reader).await {
        Err(WhyRefused::WrongSignature { role }) => role,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&reader).await, Role::Timestamp);
    assert!(bytes_below(&ours.path("store")).is_empty());

    // Also if it comes after the right one, and if it brings its own root.
    let mirror = ours.copy("mirror");
    let reader = ours.reader("store", vec![folder(&mirror)]).await;
    assert_eq!(ours.latest(&reader).await.unwrap(), "1.0.0");
    let before = bytes_below(&ours.path("store"));
    fs::remove_dir_all(&mirror).unwrap();
    common::copy_folder(strange.repository.dir(), &mirror);
    assert_eq!(refused(&reader).await, Role::Timestamp);
    fs::copy(mirror.join("metadata/1.root.json"), mirror.join("metadata/2.root.json")).unwrap();
    assert_eq!(refused(&reader).await, Role::Root);
    assert_eq!(bytes_below(&ours.path("store")), before);
    let refusal = &reader.refusals()[&mirror.display().to_string()];
    assert!(matches!(refusal.why, WhyRefused::WrongSignature { role: Role::Root }));

    // A reader with the other fleet's root rejects ours in turn.
    let mut options = ours.options("other", vec![folder(ours.repository.dir())]);
    options.root = std::fs::read(strange.repository.dir().join("metadata/root.json")).unwrap();
    let reader = TrustedRepository::open(options).await.unwrap();
    assert_eq!(refused(&reader).await, Role::Timestamp);
}

#[tokio::test]
async fn a_single_role_signed_by_a_stranger_is_refused() {
    let fixture = Fixture::new().await;
    let stranger = Keys::generate().unwrap();
    // The publisher itself refuses to sign with a key that the root does not name.
    let error = fixture.repository.renew_timestamp(&stranger.timestamp).await.unwrap_err();
    let foreign =
        matches!(&error, RepositoryError::MissingKey { role, have: 0, .. } if role == "timestamp");
    assert!(foreign, "{error}");
    let mut keys = fixture.keys.clone();
    keys.targets = stranger.targets;
    let request = fixture.request("1.1.0");
    assert!(fixture.repository.publish(&keys, &request).await.is_err());
    let reader = fixture.reader("store", vec![folder(fixture.repository.dir())]).await;
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.0.0");
}

#[tokio::test]
async fn expired_metadata_is_refused_and_names_the_role() {
    type Change = (Role, fn(&mut Lifetimes));
    let changes: [Change; 3] = [
        (Role::Timestamp, |lifetimes| lifetimes.timestamp_s = 0),
        (Role::Snapshot, |lifetimes| lifetimes.snapshot_s = 0),
        (Role::Targets, |lifetimes| lifetimes.targets_s = 0),
    ];
    for (role, change) in changes {
        let fixture = Fixture::new().await;
        let reader = fixture.reader("store", vec![folder(fixture.repository.dir())]).await;
        assert_eq!(fixture.latest(&reader).await.unwrap(), "1.0.0");
        let before = bytes_below(&fixture.path("store"));
        let short = fixture.with_new_lifetimes(change);
        let request = fixture.request("1.1.0");
        short.publish(&fixture.keys, &request).await.unwrap();
        match fixture.latest(&reader).await {
            Err(WhyRefused::Expired { role: found, ago_s: 0..60 }) => assert_eq!(found, role),
            other => panic!("{role}: {other:?}"),
        }
        assert_eq!(bytes_below(&fixture.path("store")), before);
        // What was fresh when it was decided is still usable.
        assert!(reader.manifest(&app(), &version("1.0.0"), &intel()).await.is_ok());
    }
    let lifetimes = Lifetimes { root_s: 0, ..Lifetimes::default() };
    let fixture = Fixture::with_lifetimes(lifetimes).await;
    let reader = fixture.reader("store", vec![folder(fixture.repository.dir())]).await;
    let error = fixture.latest(&reader).await.unwrap_err();
    assert!(matches!(error, WhyRefused::Expired { role: Role::Root, .. }), "{error}");
}

#[tokio::test]
async fn the_timestamp_that_the_hub_renews_keeps_a_fleet_fresh() {
    let fixture = Fixture::new().await;
    let fresh = fixture.repository.expiries().unwrap();
    let same = fixture.repository.renew_timestamp_if_due(&fixture.keys.timestamp).await.unwrap();
    assert_eq!(same, fresh, "it is not a day old");
    let short = fixture.with_new_lifetimes(|lifetimes| lifetimes.timestamp_s = 0);
    short.renew_timestamp(&fixture.keys.timestamp).await.unwrap();
    let reader = fixture.reader("store", vec![folder(fixture.repository.dir())]).await;
    assert!(fixture.latest(&reader).await.is_err());
    let long = fixture.with_new_lifetimes(|lifetimes| lifetimes.timestamp_s = 35 * 86_400);
    let renewed = long.renew_timestamp_if_due(&fixture.keys.timestamp).await.unwrap();
    assert!(renewed.timestamp >= fresh.timestamp);
    assert_eq!(renewed.targets, fresh.targets);
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.0.0");

    // Nothing published for a year: the next publish signs everything again.
    let short = fixture.with_new_lifetimes(|lifetimes| lifetimes.targets_s = 0);
    fixture.point_new_channel(&short).await;
    let error = fixture.latest(&reader).await.unwrap_err();
    assert!(matches!(error, WhyRefused::Expired { role: Role::Targets, .. }), "{error}");
    let long = fixture.with_new_lifetimes(|lifetimes| lifetimes.targets_s = 365 * 86_400);
    fixture.point_new_channel(&long).await;
    assert!(long.expiries().unwrap().targets >= fresh.targets);
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.0.0");
}

#[tokio::test]
async fn an_older_repository_replayed_is_refused() {
    let fixture = Fixture::new().await;
    let old = fixture.copy("old");
    fixture.publish("1.1.0").await;
    let mirror = fixture.copy("mirror");
    let reader = fixture.reader("store", vec![folder(&mirror)]).await;
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.1.0");
    let before = bytes_below(&fixture.path("store"));

    fs::remove_dir_all(&mirror).unwrap();
    common::copy_folder(&old, &mirror);
    match fixture.latest(&reader).await {
        Err(WhyRefused::Older { role: Role::Timestamp, trusted, offered }) => {
            assert!(offered < trusted);
        }
        other => panic!("{other:?}"),
    }
    // Even with the hub's timestamp key, the older snapshot reveals it.
    let stolen = Repository::open(&mirror).unwrap();
    for _ in 0..3 {
        stolen.renew_timestamp(&fixture.keys.timestamp).await.unwrap();
    }
    let error = fixture.latest(&reader).await.unwrap_err();
    assert!(matches!(error, WhyRefused::Older { role: Role::Snapshot, .. }), "{error}");
    // A restart forgets nothing.
    let reader = fixture.reader("store", vec![folder(&mirror)]).await;
    let error = fixture.latest(&reader).await.unwrap_err();
    assert!(matches!(error, WhyRefused::Older { .. }), "{error}");
    assert_eq!(bytes_below(&fixture.path("store")), before);
}

#[tokio::test]
async fn a_hub_restored_from_a_backup_serves_again_after_its_next_signature() {
    let fixture = Fixture::new().await;
    let backup = fixture.copy("backup");
    fixture.publish("1.1.0").await;
    fixture.repository.renew_timestamp(&fixture.keys.timestamp).await.unwrap();
    let reader = fixture.reader("store", vec![folder(&backup)]).await;
    let current = fixture.reader("store", vec![folder(fixture.repository.dir())]).await;
    assert_eq!(fixture.latest(&current).await.unwrap(), "1.1.0");
    drop((current, reader));

    // Versions follow the clock, so one publish is ahead of all that was lost.
    let reader = fixture.reader("store", vec![folder(&backup)]).await;
    assert!(matches!(fixture.latest(&reader).await, Err(WhyRefused::Older { .. })));
    let restored = Repository::open(&backup).unwrap();
    let ahead = async {
        // The clock counts in seconds; the lost versions were from this second or the next ones.
        while fixture.latest(&reader).await.is_err() {
            restored.publish(&fixture.keys, &fixture.request("1.2.0")).await.unwrap();
            fixture.point_new_channel(&restored).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), ahead).await.unwrap();
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.2.0");
}

#[tokio::test]
async fn metadata_of_different_states_is_refused() {
    let fixture = Fixture::new().await;
    let of_old = ["snapshot", "targets"].map(|role| (role, fixture.newest(role)));
    let of_old = std::collections::BTreeMap::from(of_old);
    let old = fixture.copy("old");
    fixture.publish("1.1.0").await;
    for role in ["snapshot", "targets"] {
        let mirror = fixture.copy(&format!("mixed-{role}"));
        let name = fixture.newest(role);
        fs::copy(old.join(&of_old[role]), mirror.join(&name)).unwrap();
        let reader = fixture.reader(&format!("store-{role}"), vec![folder(&mirror)]).await;
        let error = fixture.latest(&reader).await.unwrap_err();
        assert!(matches!(error, WhyRefused::Mixed { .. }), "{role}: {error}");
        assert!(bytes_below(&fixture.path(&format!("store-{role}"))).is_empty());
        // Longer than announced is distinguished from endless.
        let longer = vec![b' '; 100_000];
        fs::write(mirror.join(&name), longer).unwrap();
        let error = fixture.latest(&reader).await.unwrap_err();
        assert!(matches!(error, WhyRefused::Mixed { .. }), "{role}: {error}");
    }
}

#[tokio::test]
async fn a_bit_flipped_in_any_signed_file_is_refused() {
    let fixture = Fixture::new().await;
    let mirror = fixture.copy("mirror");
    // Readers that start now do not read those of the previous state.
    let read = |path: &str| {
        path.ends_with(".json")
            && !path.ends_with("root.json")
            && !path.ends_with("repository.json")
            && !path.contains("/metadata/1.")
    };
    let files = bytes_below(&mirror).into_iter().filter(|(path, _)| read(path.to_str().unwrap()));
    let mut tried = 0;
    for (path, bytes) in files {
        for at in (0..bytes.len()).step_by(bytes.len() / 12) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            fs::write(&path, &flipped).unwrap();
            // With an empty store, so that nothing comes from a cache.
            let reader = fixture.reader(&format!("store-{tried}"), vec![folder(&mirror)]).await;
            let result = fixture.latest(&reader).await;
            assert!(result.is_err(), "{} at {at}: {result:?}", path.display());
            tried += 1;
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert!(tried >= 5 * 12, "timestamp, snapshot, targets, manifest, channel");
    let reader = fixture.reader("store", vec![folder(&mirror)]).await;
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.0.0");
}

#[tokio::test]
async fn too_much_data_is_refused() {
    let fixture = Fixture::new().await;
    let server = Server::start(fixture.repository.dir());
    let reader = fixture.reader("store", vec![server.mirror.clone()]).await;
    let current = "metadata/timestamp.json";
    for (path, answer) in [
        (current.to_owned(), Answer::Endless),
        (current.to_owned(), Answer::Huge),
        ("metadata/2.root.json".to_owned(), Answer::Endless),
        (fixture.newest("snapshot"), Answer::Endless),
        (fixture.newest("targets"), Answer::Endless),
    ] {
        server.answer(&path, answer);
        let error = fixture.latest(&reader).await.unwrap_err();
        assert!(matches!(error, WhyRefused::TooLarge { .. }), "{path}: {error}");
        assert!(bytes_below(&fixture.path("store")).is_empty(), "{path}");
        server.behave();
    }
    server.take_log();
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.0.0");
    for target in server.take_log().into_iter().filter(|path| path.starts_with("targets/")) {
        fs::remove_dir_all(fixture.path("store/targets")).unwrap();
        server.answer(&target, Answer::Endless);
        let error = fixture.latest(&reader).await.unwrap_err();
        assert!(matches!(error, WhyRefused::TooLarge { .. }), "{target}: {error}");
        server.behave();
        assert_eq!(fixture.latest(&reader).await.unwrap(), "1.0.0");
    }
}

#[tokio::test]
async fn bad_mirrors_are_passed_over_and_named() {
    let fixture = Fixture::new().await;
    let old = fixture.copy("old");
    fixture.publish("1.1.0").await;
    let reader = fixture.reader("store", vec![folder(fixture.repository.dir())]).await;
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.1.0");

    let good = Server::start(fixture.repository.dir());
    let failing = Server::start(fixture.repository.dir());
    failing.answer("metadata/timestamp.json", Answer::Status(500));
    let cutting = Server::start(fixture.repository.dir());
    cutting.answer("metadata/timestamp.json", Answer::Cut);
    let dead: Mirror = "http://127.0.0.1:9/".parse().unwrap();
    let mirrors =
        [dead, folder(&old), failing.mirror.clone(), cutting.mirror.clone(), good.mirror.clone()];
    let reader = fixture.reader("store", mirrors.to_vec()).await;
    for _ in 0..mirrors.len() {
        reader.refresh().await.unwrap();
    }
    let refusals = reader.refusals();
    assert_eq!(refusals.len(), 4);
    assert!(!refusals.contains_key(&good.url));
    let replayed = &refusals[&old.display().to_string()].why;
    assert!(matches!(replayed, WhyRefused::Older { .. }));
    let others = refusals.values().filter(|error| error.why.is_unreachable());
    assert_eq!(others.count(), 3);

    // With the good one gone, the replay is reported before unreachable ones.
    let bad = mirrors[..4].to_vec();
    let reader = fixture.reader("store", bad).await;
    let error = reader.refresh().await.unwrap_err();
    assert!(matches!(error.why, WhyRefused::Older { .. }), "{error}");
    assert_eq!(error.mirror, Some(old.display().to_string()));
}

#[tokio::test]
async fn a_silent_mirror_is_given_up_in_time() {
    let fixture = Fixture::new().await;
    let silent = Server::start(fixture.repository.dir());
    silent.answer("metadata/timestamp.json", Answer::Silence);
    let mut options = fixture.options("store", vec![silent.mirror.clone()]);
    let limits = ClientLimits { file: Duration::from_millis(200), ..ClientLimits::default() };
    options.client = MirrorClient::new(limits).unwrap();
    let reader = TrustedRepository::open(options).await.unwrap();
    let error = reader.refresh().await.unwrap_err();
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    assert!(matches!(cause, Some(FetchError::TimedOut { .. })), "{error:?}");
}

#[tokio::test]
async fn another_platform_s_manifest_is_refused() {
    let fixture = Fixture::new().await;
    let reader = fixture.reader("store", vec![folder(fixture.repository.dir())]).await;
    let amd = "linux/amd".parse().unwrap();
    let error = reader.latest(&app(), &stable(), &amd).await.unwrap_err();
    assert!(
        matches!(&error.why, WhyRefused::NotPublished { only, .. } if *only == [intel()]),
        "{error}"
    );
    let mut request = fixture.request("1.0.0");
    request.platform = amd.clone();
    fixture.repository.publish(&fixture.keys, &request).await.unwrap();
    assert!(reader.latest(&app(), &stable(), &amd).await.is_ok());
    // The bytes of one signed manifest under the name of the other, from a peer or a mirror.
    assert!(fixture.latest(&reader).await.is_ok());
    let for_intel = reader.cached_manifest_bytes(&app(), &version("1.0.0"), &intel()).unwrap();
    let error = reader.accept_manifest(&app(), &version("1.0.0"), &amd, &for_intel).unwrap_err();
    assert!(matches!(error.why, WhyRefused::WrongBytes { .. }), "{error}");
    assert!(reader.accept_manifest(&app(), &version("1.0.0"), &intel(), &for_intel).is_ok());
}

#[tokio::test]
async fn what_a_reader_stores_holds_no_time_of_its_own_clock() {
    // A clock that was wrong for a moment would keep the reader from every later release.
    let fixture = Fixture::new().await;
    let reader = fixture.reader("store", vec![folder(fixture.repository.dir())]).await;
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.0.0");
    let bytes = fs::read(fixture.path("store/trusted.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let fields: Vec<&String> = state.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["anchor_sha256", "bundle", "schema"]);
}

#[tokio::test]
async fn the_age_of_metadata_counts_from_when_it_was_first_seen() {
    let fixture = Fixture::new().await;
    let reader = fixture.reader("store", vec![folder(fixture.repository.dir())]).await;
    assert_eq!(reader.age_ms(), None);
    reader.refresh().await.unwrap();
    let week = Duration::from_secs(8 * 86_400);
    let store = fs::File::options().append(true).open(fixture.path("store/trusted.json")).unwrap();
    store.set_modified(SystemTime::now() - week).unwrap();
    assert!(!reader.refresh().await.unwrap(), "nothing newer: a mirror that hides it looks so");
    let is_old = |reader: &TrustedRepository| reader.age_ms().unwrap() >= 8 * 86_400_000;
    assert!(is_old(&reader) && is_old(&fixture.reader("store", Vec::new()).await));
    fixture.publish("1.1.0").await;
    assert!(reader.refresh().await.unwrap());
    assert!(!is_old(&reader));
}

#[tokio::test]
async fn metadata_travels_from_peer_to_peer() {
    let fixture = Fixture::new().await;
    let near = fixture.reader("near", vec![folder(fixture.repository.dir())]).await;
    assert_eq!(fixture.latest(&near).await.unwrap(), "1.0.0");
    let old = near.bundle().unwrap();
    fixture.publish("1.1.0").await;
    assert_eq!(fixture.latest(&near).await.unwrap(), "1.1.0");
    let new = near.bundle().unwrap();

    let far = fixture.reader("far", Vec::new()).await;
    assert_eq!(far.refresh().await.unwrap_err().why, WhyRefused::NoMirror);
    assert!(far.accept_bundle(&new).await.unwrap());
    assert!(!far.accept_bundle(&new).await.unwrap(), "nothing new");
    let bytes = near.cached_manifest_bytes(&app(), &version("1.1.0"), &intel()).unwrap();
    far.accept_manifest(&app(), &version("1.1.0"), &intel(), &bytes).unwrap();
    assert!(far.manifest(&app(), &version("1.1.0"), &intel()).await.is_ok());

    let before = bytes_below(&fixture.path("far"));
    let error = far.accept_bundle(&old).await.unwrap_err();
    assert!(matches!(error.why, WhyRefused::Older { .. }), "{error}");
    let stranger = Fixture::new().await;
    let strange = stranger.reader("x", vec![folder(stranger.repository.dir())]).await;
    strange.refresh().await.unwrap();
    assert!(far.accept_bundle(&strange.bundle().unwrap()).await.is_err());
    assert!(far.accept_bundle(b"{}").await.is_err());
    assert_eq!(bytes_below(&fixture.path("far")), before);
}

#[tokio::test]
async fn a_damaged_store_says_so() {
    let fixture = Fixture::new().await;
    let reader = fixture.reader("store", vec![folder(fixture.repository.dir())]).await;
    reader.refresh().await.unwrap();
    let path = fixture.path("store/trusted.json");
    let mut text = String::new();
    fs::File::open(&path).unwrap().read_to_string(&mut text).unwrap();
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    let options = fixture.options("store", Vec::new());
    let error = TrustedRepository::open(options.clone()).await.unwrap_err();
    assert!(matches!(error.why, WhyRefused::StoreDamaged { .. }), "{error}");
    let next = text.replacen("{\"schema\":1,", "{\"schema\":2,\"more\":3,", 1);
    assert_ne!(next, text);
    fs::write(&path, &next).unwrap();
    let error = TrustedRepository::open(options.clone()).await.unwrap_err();
    assert!(matches!(error.why, WhyRefused::StoreOfVersion { found: 2, .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), next, "it stays");
    // Signed by others: trusted no more than from a mirror.
    fs::write(&path, text.replace("1.0.0/linux~intel", "1.0.0/linux~amd00")).unwrap();
    let error = TrustedRepository::open(options.clone()).await.unwrap_err();
    assert!(matches!(error.why, WhyRefused::Mixed { .. }), "{error}");
    let mut no_root = options;
    no_root.root = b"{}".to_vec();
    let error = TrustedRepository::open(no_root).await.unwrap_err();
    assert!(matches!(error.why, WhyRefused::BadRoot), "{error}");
}
