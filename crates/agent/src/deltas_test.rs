//! The way of an artifact: from the order to the bytes, without a network.

use std::fs::{self, File};
use std::path::Path;
use std::slice::from_ref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_artifact::client::{ClientLimits, MirrorClient};
use cohort_artifact::{Delta, DeltaMaker, UnitHashes, hash_file, pack_folder};
use cohort_core::ids::Digest;
use cohort_core::orders::{AppOrders, FetchOrder, Source};
use cohort_core::release::{Release, Rollback};
use cohort_distribute::{
    ArtifactStore, ByteCounters, Downloads, FetchContext, Limits, MirrorList, WirePeers,
};
use tokio_util::sync::CancellationToken;

use super::{Deltas, Way};

struct Artifact {
    bytes: Vec<u8>,
    hashes: UnitHashes,
}

/// A server with nothing on its disk, two releases and the delta between them.
struct Lab {
    _folder: tempfile::TempDir,
    deltas: Deltas,
    store: Arc<ArtifactStore>,
    old: Artifact,
    blob: Artifact,
    delta: Delta,
    release: Release,
}

fn artifact(path: &Path) -> Artifact {
    Artifact { bytes: fs::read(path).unwrap(), hashes: hash_file(path).unwrap() }
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let pack = |name: &str, byte: u8| {
            fs::create_dir_all(at(name)).unwrap();
            // Something that zstd cannot make small, from a plain sequence.
            let mut state = 1_u64;
            let mut program: Vec<u8> = (0..400_000)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            program[200_000] = byte;
            fs::write(at(name).join("app"), program).unwrap();
            let packed = at(&format!("{name}.tar.zst"));
            pack_folder(&at(name), &mut File::create(&packed).unwrap()).unwrap();
            packed
        };
        let (old, new) = (pack("old", 1), pack("new", 2));
        let whole = hash_file(&new).unwrap();
        let maker = DeltaMaker::new(&new, whole.root(), whole.length(), folder.path());
        let maker = maker.unwrap().unwrap();
        let file = File::options().read(true).write(true).create_new(true).open(at("delta"));
        let made = maker.delta_from(&old, &file.unwrap(), &|| false).unwrap().unwrap();
        let (old, blob) = (artifact(&old), artifact(&at("delta")));
        let delta = Delta {
            from: old.hashes.root().clone(),
            method: maker.method().to_string(),
            length: made.length(),
            root: made.root().clone(),
        };
        let release = Release {
            version: "2.0.0".parse().unwrap(),
            platform: "linux".parse().unwrap(),
            artifact: whole.root().clone(),
            manifest: "0".repeat(64).parse().unwrap(),
            length: whole.length(),
            unpacked_bytes: 64 << 30,
            entries: 250_000,
            rollback: Rollback::Revert,
        };
        let store = ArtifactStore::open(at("artifacts")).unwrap();
        let store = Arc::new(store);
        let downloads = Arc::new(Downloads::new(FetchContext {
            store: Arc::clone(&store),
            mirrors: Arc::new(
                MirrorList::new(Vec::new(), MirrorClient::new(ClientLimits::default()).unwrap())
                    .unwrap(),
            ),
            peers: WirePeers::none(),
            limits: Arc::new(Limits { reserve_bytes: 0, ..Limits::default() }),
            counters: Arc::new(ByteCounters::default()),
            download: Arc::default(),
            guides: Arc::default(),
        }));
        let deltas = Deltas::new(downloads, Arc::default(), CancellationToken::new());
        Self { _folder: folder, deltas, store, old, blob, delta, release }
    }

    fn hold(&self, artifact: &Artifact) {
        let hashes = &artifact.hashes;
        let claim = self.store.claim(hashes.root(), hashes.length()).unwrap();
        let part = claim.begin(claim.put_hashes(&hashes.to_bytes()).unwrap(), 0).unwrap();
        for (index, unit) in (0..).zip(artifact.bytes.chunks(65_536)) {
            part.write(index, unit).unwrap();
        }
        claim.finish(&part).unwrap();
    }

    async fn choose(&mut self, keep: &[Digest], offered: &[Delta]) {
        let app = AppOrders {
            app: "web".parse().unwrap(),
            fetch: Vec::new(),
            activation: None,
            run: None,
            owes: false,
            in_service: Some(false),
            checks: Vec::new(),
            keep: keep.to_vec(),
            trial: None,
            holds: Vec::new(),
        };
        assert!(!self.deltas.knows(&self.release.artifact));
        self.deltas.choose(&app, &self.release, offered).await;
        assert!(self.deltas.knows(&self.release.artifact));
    }

    fn fetch(&self, sources: &[&str]) -> FetchOrder {
        let source = |name: &&str| Source {
            server: name.parse().unwrap(),
            address: "127.0.0.1:1".to_owned(),
        };
        let sources = sources.iter().map(source).collect();
        FetchOrder { release: self.release.clone(), from_mirror: true, sources }
    }

    /// The artifact that is ordered now.
    fn ordered(&mut self, sources: &[&str]) -> Option<Digest> {
        let fetch = self.fetch(sources);
        self.deltas.order(&fetch).map(|order| {
            let of_delta = order.release.artifact != self.release.artifact;
            assert!(order.from_mirror && (order.sources.is_empty() || !of_delta));
            order.release.artifact
        })
    }

    async fn until_applied(&mut self) -> Option<Digest> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let ordered = self.ordered(&["b"]);
            let applies = self.deltas.ways.get(&self.release.artifact);
            if !matches!(applies, Some(Way::Applies { .. })) {
                return ordered;
            }
            assert!(Instant::now() < deadline, "it is never applied");
            self.deltas.changed().await;
        }
    }
}

#[tokio::test]
async fn the_delta_is_ordered_then_the_artifact_is_there() {
    let mut lab = Lab::new();
    lab.hold(&lab.old);
    let offered = [lab.delta.clone()];
    lab.choose(&[], &offered).await;
    let (delta, whole) = (Some(lab.delta.root.clone()), Some(lab.release.artifact.clone()));
    assert_eq!(lab.ordered(&["b"]), delta);
    lab.hold(&lab.blob);
    assert_eq!(lab.ordered(&["b"]), delta, "it stays ordered while it is applied");
    assert_eq!(lab.until_applied().await, whole);
    assert!(lab.store.is_whole(&lab.release.artifact));
    let metrics = lab.deltas.metrics.text();
    assert!(metrics.contains("cohort_deltas_total{result=\"applied\"} 1"), "{metrics}");
    // Others may still need the delta, also when the order is fulfilled.
    let served = lab.deltas.retain(&[].into());
    assert_eq!(served.len(), 1);
    assert_eq!(Some(served[0].release.artifact.clone()), delta);
    assert!(!lab.deltas.knows(&lab.release.artifact));
}

#[tokio::test]
async fn a_delta_that_fails_leads_to_the_whole_and_is_not_tried_again() {
    let mut lab = Lab::new();
    lab.hold(&lab.old);
    // Signed, and yet no delta.
    let odd = Delta { root: lab.old.hashes.root().clone(), length: 10, ..lab.delta.clone() };
    lab.choose(&[], &[odd.clone(), lab.delta.clone()]).await;
    let whole = Some(lab.release.artifact.clone());
    assert_eq!(lab.ordered(&["b"]), Some(odd.root));
    assert_eq!(lab.until_applied().await, whole);
    assert!(!lab.store.is_whole(&lab.release.artifact));
    assert!(lab.deltas.retain(&[].into()).is_empty(), "nothing to give to others");
    let offered = [lab.delta.clone()];
    lab.choose(&[], &offered).await;
    assert_eq!(lab.ordered(&["b"]), whole);
}

#[tokio::test]
async fn a_server_without_a_base_waits_for_one_that_has_built_it() {
    let mut lab = Lab::new();
    let (offered, base) = ([lab.delta.clone()], lab.delta.from.clone());
    let whole = Some(lab.release.artifact.clone());
    lab.choose(from_ref(&base), &offered).await;
    assert_eq!(lab.ordered(&[]), None);
    assert_eq!(lab.ordered(&["b"]), whole, "somebody has it");
    assert_eq!(lab.ordered(&[]), whole, "decided once");
    // Not for ever.
    lab.deltas.retain(&[].into());
    lab.choose(from_ref(&base), &offered).await;
    let until = Instant::now();
    lab.deltas.ways.insert(lab.release.artifact.clone(), Way::Awaits { until });
    assert_eq!(lab.ordered(&[]), whole);
    // Nobody of the group has a base, or there is no delta at all.
    for (keep, offered) in [(vec![], offered.to_vec()), (vec![base], vec![])] {
        lab.deltas.retain(&[].into());
        lab.choose(&keep, &offered).await;
        assert_eq!(lab.ordered(&[]), whole);
    }
}

#[tokio::test]
async fn a_delta_of_which_nothing_comes_is_given_up() {
    let mut lab = Lab::new();
    lab.hold(&lab.old);
    let offered = [lab.delta.clone()];
    lab.choose(&[], &offered).await;
    assert_eq!(lab.ordered(&[]), Some(lab.delta.root.clone()));
    let long_ago = Instant::now().checked_sub(super::PATIENCE + Duration::from_secs(1));
    let Some(since) = long_ago else { return };
    let way = Way::Fetches { delta: lab.delta.clone(), held: 0, since };
    lab.deltas.ways.insert(lab.release.artifact.clone(), way);
    assert_eq!(lab.ordered(&[]), Some(lab.release.artifact.clone()));
}
