//! Signed, but not what was requested.

use std::collections::BTreeMap;
use std::sync::Arc;

use cohort_core::refused::{Field, WhyRefused};

use crate::client::{ClientLimits, MirrorClient};
use crate::metadata::read_current;
use crate::{
    Keys, Lifetimes, Manifest, Mirror, PublishRequest, Repository, TrustOptions, TrustedRepository,
    channel_target, manifest_target,
};

/// The holder of the keys, by mistake or under duress, signs one thing under the name of another.
#[tokio::test]
async fn a_file_signed_under_another_name_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys::generate().unwrap();
    let dir = folder.path().join("repository");
    let repository = Repository::create(&dir, &keys, Lifetimes::default()).await.unwrap();
    let source = folder.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("app"), "app").unwrap();
    let (app, version) = ("web".parse().unwrap(), "1.0.0".parse().unwrap());
    let (intel, amd) = ("linux/intel".parse().unwrap(), "linux/amd".parse().unwrap());
    let (stable, edge) = ("stable".parse().unwrap(), "edge".parse().unwrap());
    let mut request = PublishRequest::new(&source, app, version, intel);
    request.channel = Some(stable);
    let published = repository.publish(&keys, &request).await.unwrap();
    let PublishRequest { app, version, platform: intel, channel, .. } = request;
    let stable = channel.unwrap();

    let manifest = published.manifest.to_bytes();
    let other_app = Manifest { app: "other".parse().unwrap(), ..published.manifest };
    let changed = BTreeMap::from([
        (manifest_target(&app, &version, &amd), manifest),
        (manifest_target(&app, &"2.0.0".parse().unwrap(), &intel), other_app.to_bytes()),
        (channel_target(&app, &edge), published.channel.unwrap().to_bytes()),
    ]);
    let current = read_current(&dir).unwrap();
    let lock = repository.lock().await.unwrap();
    repository.commit(&lock, &keys, current, Vec::new(), changed).await.unwrap();

    let reader = TrustedRepository::open(TrustOptions {
        root: std::fs::read(repository.dir().join("metadata/root.json")).unwrap(),
        store: folder.path().join("store"),
        mirrors: vec![Mirror::Folder(dir)],
        client: MirrorClient::new(ClientLimits::default()).unwrap(),
    })
    .await
    .unwrap();
    // On another thread, as agents do, so the futures have to be `Send`.
    let reader = Arc::new(reader);
    let shared = Arc::clone(&reader);
    let (asked_app, asked_stable, asked_intel) = (app.clone(), stable.clone(), intel.clone());
    let task =
        async move { shared.latest(&asked_app, &asked_stable, &asked_intel).await.map(|_| ()) };
    tokio::spawn(task).await.unwrap().unwrap();

    let wrong = |error: WhyRefused| match error {
        WhyRefused::WrongContent { field, wanted, found } => (field, wanted, found),
        other => panic!("{other}"),
    };
    let texts = |field, wanted: &str, found: &str| (field, wanted.to_owned(), found.to_owned());
    let error = reader.latest(&app, &stable, &amd).await.unwrap_err();
    assert_eq!(wrong(error.why), texts(Field::Platform, "linux/amd", "linux/intel"));
    let error = reader.latest(&app, &edge, &intel).await.unwrap_err();
    assert_eq!(wrong(error.why), texts(Field::Channel, "edge", "stable"));
    let error = reader.manifest(&app, &"2.0.0".parse().unwrap(), &intel).await.unwrap_err();
    assert_eq!(wrong(error.why), texts(Field::App, "web", "other"));
}
