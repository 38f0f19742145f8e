//! What a publisher can and cannot do.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::sync::Arc;

use cohort_artifact::{
    Format, Keys, Lifetimes, PackageFileError, Protocols, PublishRequest, Repository,
    RepositoryError, Rollback, blob_path,
};
use common::{Fixture, app, bytes_below, folder, intel, releases, stable, version};

#[tokio::test]
async fn what_servers_would_refuse_is_not_published() {
    let fixture = Fixture::new().await;
    fixture.publish("1.0.0").await;
    let before = bytes_below(fixture.repository.dir().join("metadata").as_path());
    let mut request = fixture.request("1.1.0");
    fs::write(request.path.join("cohort.toml"), "[service]\n").unwrap();
    request.judge = Arc::new(|release| {
        let bytes = release.package_file.as_ref().map_or(0, Vec::len);
        Err(format!("{bytes} bytes"))
    });
    let error = fixture.repository.publish(&fixture.keys, &request).await.unwrap_err();
    let refused = PackageFileError::Refused("10 bytes".to_owned()).to_string();
    assert!(matches!(&error, RepositoryError::PackageFile(it) if it.to_string() == refused));
    assert_eq!(bytes_below(fixture.repository.dir().join("metadata").as_path()), before);
}

#[tokio::test]
async fn repeating_is_harmless_and_changing_is_refused() {
    let fixture = Fixture::new().await;
    let first = fixture.publish("1.1.0").await;
    let before = bytes_below(fixture.repository.dir());
    let again = fixture.publish("1.1.0").await;
    assert!(again.already_there && !first.already_there);
    assert_eq!((again.manifest, again.manifest_digest), (first.manifest, first.manifest_digest));
    assert_eq!(bytes_below(fixture.repository.dir()), before);

    let request = fixture.request("1.1.0");
    let promises = PublishRequest { rollback: Some(Rollback::Freeze), ..request.clone() };
    let error = fixture.repository.publish(&fixture.keys, &promises).await.unwrap_err();
    assert!(matches!(error, RepositoryError::AlreadyPublished { difference: "manifest", .. }));
    fs::write(request.path.join("bin/app"), "other bytes").unwrap();
    let error = fixture.repository.publish(&fixture.keys, &request).await.unwrap_err();
    assert!(matches!(error, RepositoryError::AlreadyPublished { difference: "content", .. }));
    assert_eq!(bytes_below(fixture.repository.dir()), before);

    // The same version for another platform is another release.
    let other = PublishRequest { platform: "linux/amd".parse().unwrap(), ..request };
    fixture.repository.publish(&fixture.keys, &other).await.unwrap();
    let names = ["1.0.0/linux~intel", "1.1.0/linux~amd", "1.1.0/linux~intel"];
    let names = names.map(|name| format!("apps/web/{name}/manifest.json"));
    assert_eq!(releases(&fixture.repository), names);
}

#[tokio::test]
async fn what_the_artifact_says_of_itself_is_signed() {
    let fixture = Fixture::new().await;
    let request = fixture.request("2.0.0");
    let text = "schemas = [\"orders-db/7\"]\nrollback = \"forward-only\"\n\
                [protocols]\nreads = [\"a/1\", \"a/2\"]\nwrites = [\"a/2\"]\n\
                [service]\ncommand = [\"bin/app\"]\n";
    fs::write(request.path.join("cohort.toml"), text).unwrap();
    let flag = PublishRequest { rollback: Some(Rollback::Revert), ..request.clone() };
    let error = fixture.repository.publish(&fixture.keys, &flag).await.unwrap_err();
    assert!(error.to_string().contains("`rollback` is Revert outside"), "{error}");
    let flag = PublishRequest { protocols: Some(Protocols::default()), ..request.clone() };
    assert!(fixture.repository.publish(&fixture.keys, &flag).await.is_err());
    let agreeing = PublishRequest { rollback: Some(Rollback::ForwardOnly), ..request.clone() };
    let manifest = fixture.repository.publish(&fixture.keys, &agreeing).await.unwrap().manifest;
    assert_eq!(manifest.rollback, Rollback::ForwardOnly);
    assert_eq!(manifest.protocols.reads.len(), 2);
    assert!(manifest.schemas.contains("orders-db/7"));

    let request = fixture.request("2.0.1");
    fs::write(request.path.join("cohort.toml"), "rollback = \"perhaps\"").unwrap();
    let error = fixture.repository.publish(&fixture.keys, &request).await.unwrap_err();
    assert!(error.to_string().contains("cohort.toml"), "{error}");
}

#[tokio::test]
async fn a_tarball_is_taken_as_it_is() {
    let fixture = Fixture::new().await;
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o755);
    builder.append_data(&mut header, "./bin/app", b"hello".as_slice()).unwrap();
    let plain = builder.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &plain).unwrap();
    let forms = [
        ("3.0.0", Format::Tar, plain.clone()),
        ("3.0.1", Format::TarGz, gzip.finish().unwrap()),
        ("3.0.2", Format::TarZst, zstd::encode_all(plain.as_slice(), 1).unwrap()),
    ];
    for (number, format, bytes) in forms {
        let path = fixture.path(&format!("{number}.tarball"));
        fs::write(&path, &bytes).unwrap();
        let request = PublishRequest::new(&path, app(), version(number), intel());
        let manifest = fixture.repository.publish(&fixture.keys, &request).await.unwrap().manifest;
        assert_eq!((manifest.format, manifest.unpacked_bytes, manifest.entries), (format, 5, 1));
        let blob = fixture.repository.dir().join(blob_path(&manifest.root));
        assert_eq!(fs::read(blob).unwrap(), bytes);
    }
    for (name, bytes) in [("text", b"not a tarball".as_slice()), ("empty", b"")] {
        let path = fixture.path(name);
        fs::write(&path, bytes).unwrap();
        let request = PublishRequest::new(&path, app(), version("3.1.0"), intel());
        let error = fixture.repository.publish(&fixture.keys, &request).await.unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    let request = PublishRequest::new(&fixture.path("no"), app(), version("3.1.0"), intel());
    assert!(fixture.repository.publish(&fixture.keys, &request).await.is_err());
}

#[tokio::test]
async fn channels_move_forward_also_when_versions_go_back() {
    let fixture = Fixture::new().await;
    fixture.publish("1.1.0").await;
    let (repository, keys) = (&fixture.repository, &fixture.keys);
    let set = |text| {
        let wanted = version(text);
        async move { repository.set_channel(keys, &app(), &stable(), &wanted).await }
    };
    let back = set("1.0.0").await.unwrap();
    assert_eq!((back.version.as_str(), back.serial), ("1.0.0", 3));
    assert_eq!(set("1.0.0").await.unwrap(), back, "nothing to do");
    let error = set("9.9.9").await.unwrap_err();
    assert!(matches!(error, RepositoryError::NoSuchRelease { .. }), "{error}");
    assert_eq!(repository.channels().unwrap(), [back]);
    let reader = fixture.reader("store", vec![folder(repository.dir())]).await;
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.0.0");
}

#[tokio::test]
async fn publishers_at_once_take_turns() {
    let fixture = Fixture::new().await;
    let requests = ["2.0.0", "2.0.1", "2.0.2"].map(|version| fixture.request(version));
    let publish = |request: PublishRequest| {
        let repository = Repository::open(fixture.repository.dir()).unwrap();
        let keys = fixture.keys.clone();
        tokio::spawn(async move { repository.publish(&keys, &request).await })
    };
    for publishing in requests.map(publish) {
        publishing.await.unwrap().unwrap();
    }
    fixture.repository.renew_timestamp(&fixture.keys.timestamp).await.unwrap();
    assert_eq!(releases(&fixture.repository).len(), 4);
}

#[tokio::test]
async fn nothing_is_signed_on_top_of_what_somebody_slipped_in() {
    let fixture = Fixture::new().await;
    let request = fixture.request("1.1.0");
    let targets = fixture.repository.dir().join(fixture.newest("targets"));
    let text = fs::read_to_string(&targets).unwrap();
    fs::write(&targets, text.replace("1.0.0/linux~intel", "6.6.6/linux~intel")).unwrap();
    let error = fixture.repository.publish(&fixture.keys, &request).await.unwrap_err();
    assert!(matches!(error, RepositoryError::BadSignature { .. }), "{error}");
    let error = fixture.repository.renew_timestamp(&fixture.keys.timestamp).await.unwrap_err();
    assert!(matches!(error, RepositoryError::BadSignature { .. }), "{error}");
    fs::write(&targets, text).unwrap();
    let mut strange = fixture.keys.clone();
    strange.snapshot = Keys::generate().unwrap().snapshot;
    let error = fixture.repository.publish(&strange, &request).await.unwrap_err();
    assert!(matches!(error, RepositoryError::MissingKey { have: 0, .. }), "{error}");
    assert!(fixture.repository.publish(&fixture.keys, &request).await.is_ok());
}

#[tokio::test]
async fn a_folder_without_a_repository_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let error = Repository::open(folder.path()).unwrap_err();
    assert!(matches!(error, RepositoryError::NotARepository { .. }), "{error}");
    let mut keys = Keys::generate().unwrap();
    keys.root.clear();
    let dir = folder.path().join("new");
    let error = Repository::create(&dir, &keys, Lifetimes::default()).await.unwrap_err();
    assert!(matches!(error, RepositoryError::MissingKey { have: 0, need: 1, .. }), "{error}");
}
