//! The reader's side: what every server does by itself, trusting neither mirror nor peer.
//!
//! A refresh runs TUF's client workflow against one mirror at a time, on a *copy* of what is
//! trusted. Only when all of it succeeded does the result replace what is on disk, in one rename;
//! a refusal leaves no trace but its reason.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use cohort_core::ids::{AppId, Channel, Platform, Version};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tough::schema::Target;
use tough::{
    ExpirationEnforcement, Limits, RepositoryLoader, TargetName, Transport,
    TransportError as ToughTransportError, TransportErrorKind, TransportStream,
};
use url::Url;

use crate::channel::{CHANNEL_BYTES_MAX, ChannelPointer};
use crate::digest::{digest_of_bytes, hex, sha256};
use crate::durable::{UNFINISHED_PREFIX, sweep_unfinished, write_atomic};
use crate::fetch::{FetchError, Fetcher, Mirror};
use crate::layout::{METADATA_DIR, channel_target, manifest_target, target_path};
use crate::manifest::{MANIFEST_BYTES_MAX, Manifest, ManifestError};
use crate::metadata::METADATA_BYTES_MAX;
use crate::repository::{Expiries, release_of_target};
use crate::trust_error::{Role, TrustError, TrustErrorKind};
use crate::trust_state::{BUNDLE_BYTES_MAX, Bundle, State};
use crate::units::UnitHashes;
use crate::verified::{ReleaseOffer, Verified, VerifiedManifest};

/// Longest root, timestamp and snapshot: ours are 3 KiB, 1 KiB and 1 KiB.
const SMALL_METADATA_BYTES_MAX: u64 = 256 << 10;

/// Most new roots in one refresh: one a year for longer than anybody will run this.
const ROOT_UPDATES_MAX: u64 = 256;

/// How far a clock may step back without being called wrong: more than a time service corrects at
/// once, less than matters to signatures that last for weeks.
const CLOCK_STEP_BACK_MAX: SignedDuration = SignedDuration::from_secs(60);

/// How often the clock alone is written to disk.
const CLOCK_SAVE_EVERY: SignedDuration = SignedDuration::from_hours(1);

/// Folder of cached manifests and channels, by SHA-256, below the store.
const TARGETS_CACHE: &str = "targets";

/// What a reader is given.
#[derive(Debug, Clone)]
pub struct TrustOptions {
    /// The root metadata that an operator trusts, as bytes.
    pub root: Vec<u8>,
    /// A folder of this server for what it has seen; created when missing. One process at a time.
    pub store: PathBuf,
    /// Where to read from. Asked in turn, beginning with another one every time, so that one that
    /// holds news back does so for one round only.
    pub mirrors: Vec<Mirror>,
    /// How to fetch; a fetcher of its own when missing.
    pub fetcher: Option<Fetcher>,
}

/// What a refresh brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refreshed {
    /// Whether there was anything new.
    pub changed: bool,
    /// The mirror that answered well.
    pub mirror: String,
    /// The mirrors that were refused on the way there.
    pub refused: Vec<TrustError>,
}

/// What is wrong with a mirror, since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Why it was refused the last time.
    pub error: TrustError,
    /// Since when it is refused without a success between.
    pub since: Timestamp,
}

/// Verified metadata in memory.
#[derive(Debug)]
struct Loaded {
    bundle: Bundle,
    targets: HashMap<TargetName, Target>,
    expiries: Expiries,
}

/// A reader of a repository, with what it has seen on disk.
pub struct TrustedRepository {
    store: PathBuf,
    anchor: Vec<u8>,
    anchor_sha256: String,
    mirrors: Vec<Mirror>,
    fetcher: Fetcher,
    /// Which mirror is asked first next time.
    turn: AtomicUsize,
    loaded: RwLock<Option<Arc<Loaded>>>,
    refusals: Mutex<BTreeMap<String, Refusal>>,
    /// The state as it is on disk; held for the length of a refresh, so that there is one at a time.
    on_disk: tokio::sync::Mutex<Option<State>>,
}

impl fmt::Debug for TrustedRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustedRepository")
            .field("store", &self.store)
            .field("mirrors", &self.mirrors)
            .finish_non_exhaustive()
    }
}

impl TrustedRepository {
    /// Opens the store and verifies again what is in it; needs no mirror, and no freshness: what
    /// was accepted while it was fresh may be used further.
    ///
    /// # Errors
    /// When the store cannot be used, or the root that was given is not one.
    pub async fn open(options: TrustOptions) -> Result<Self, TrustError> {
        let TrustOptions { root, store, mirrors, fetcher } = options;
        let here = |kind| TrustError { kind, mirror: None };
        let fetcher = match fetcher {
            Some(fetcher) => fetcher,
            None => Fetcher::new()
                .map_err(|error| here(TrustErrorKind::of_fetch("anything", &error)))?,
        };
        std::fs::create_dir_all(&store)
            .and_then(|()| sweep_unfinished(&store))
            .map_err(|error| here(store_error(&store, &error)))?;
        let state = State::load(&store).map_err(here)?;
        let repository = Self {
            store,
            anchor_sha256: hex(&sha256(&root)),
            anchor: root,
            mirrors,
            fetcher,
            turn: AtomicUsize::new(0),
            loaded: RwLock::new(None),
            refusals: Mutex::new(BTreeMap::new()),
            on_disk: tokio::sync::Mutex::new(None),
        };
        check_root(&repository.anchor).map_err(here)?;
        if let Some(state) = state {
            if state.anchor_sha256 == repository.anchor_sha256 {
                let files = Source::Memory(state.bundle.files().map_err(here)?);
                let loaded = repository
                    .attempt(files, BTreeMap::new(), Some(&state), ExpirationEnforcement::Unsafe)
                    .await
                    .map_err(here)?;
                repository.set_loaded(loaded);
            }
            *repository.on_disk.lock().await = Some(state);
        }
        Ok(repository)
    }

    /// Asks the mirrors for newer metadata and verifies it.
    ///
    /// # Errors
    /// When no mirror gave anything that can be trusted: the most telling refusal. Nothing on disk
    /// has changed then.
    pub async fn refresh(&self) -> Result<Refreshed, TrustError> {
        let mut on_disk = self.on_disk.lock().await;
        let now = Timestamp::now();
        check_clock(now, on_disk.as_ref()).map_err(|kind| TrustError { kind, mirror: None })?;
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut refused = Vec::new();
        for step in 0..self.mirrors.len() {
            let mirror = &self.mirrors[start.wrapping_add(step) % self.mirrors.len()];
            match self.refresh_from(mirror, on_disk.as_ref()).await {
                Ok(loaded) => {
                    let changed = self
                        .accept(&mut on_disk, loaded, now)
                        .map_err(|kind| TrustError { kind, mirror: None })?;
                    self.note(mirror, None, now);
                    return Ok(Refreshed { changed, mirror: mirror.to_string(), refused });
                }
                Err(kind) => {
                    let error = kind.at(mirror);
                    tracing::debug!(%mirror, error = %error, "a mirror was refused");
                    self.note(mirror, Some(error.clone()), now);
                    refused.push(error);
                }
            }
        }
        Err(most_telling(refused))
    }

    /// What the channel offers for the platform, after a refresh.
    ///
    /// # Errors
    /// As [`TrustedRepository::refresh`] and [`TrustedRepository::offer`].
    pub async fn latest(
        &self,
        app: &AppId,
        channel: &Channel,
        platform: &Platform,
    ) -> Result<Verified<ReleaseOffer>, TrustError> {
        self.refresh().await?;
        self.offer(app, channel, platform).await
    }

    /// What the channel offers for the platform, as far as is known, if that is still fresh.
    ///
    /// # Errors
    /// When nothing is known yet, what is known has expired, the channel or release does not exist
    /// for the platform, or a file is not what was signed.
    pub async fn offer(
        &self,
        app: &AppId,
        channel: &Channel,
        platform: &Platform,
    ) -> Result<Verified<ReleaseOffer>, TrustError> {
        let loaded = self.known()?;
        let now = Timestamp::now();
        let (role, expired_at) = loaded.expiries.nearest();
        if expired_at < now {
            return Err(TrustErrorKind::Expired { role, expired_at, now }.here());
        }
        let name = channel_target(app, channel);
        let Some(target) = loaded.target(&name) else {
            let what = format!("{app} has no channel `{channel}`");
            return Err(TrustErrorKind::NotFound { what }.here());
        };
        let bytes = self.target_bytes(&name, target, CHANNEL_BYTES_MAX).await?;
        let pointer = ChannelPointer::parse(&bytes).map_err(|error| malformed(&name, &error))?;
        same("app", app, &pointer.app)?;
        same("channel", channel, &pointer.channel)?;
        let manifest = self.manifest_in(&loaded, app, &pointer.version, platform).await?;
        let offer = ReleaseOffer {
            app: app.clone(),
            channel: channel.clone(),
            platform: platform.clone(),
            version: pointer.version,
            serial: pointer.serial,
            set_at: pointer.set_at,
            manifest,
        };
        Ok(Verified::of(offer, &bytes))
    }

    /// The signed manifest of a release, for a rollout that was decided already: freshness was
    /// judged then, so the network is asked only when the manifest is not on this disk.
    ///
    /// # Errors
    /// When the release does not exist for the platform, or a file is not what was signed.
    pub async fn manifest(
        &self,
        app: &AppId,
        version: &Version,
        platform: &Platform,
    ) -> Result<VerifiedManifest, TrustError> {
        if let Ok(loaded) = self.known()
            && loaded.target(&manifest_target(app, version, platform)).is_some()
        {
            return self.manifest_in(&loaded, app, version, platform).await;
        }
        self.refresh().await?;
        self.manifest_in(&*self.known()?, app, version, platform).await
    }

    /// A manifest whose bytes came from a peer, checked against what is signed here.
    ///
    /// # Errors
    /// When the release is not known here, or the bytes are not the signed ones.
    pub fn accept_manifest(
        &self,
        app: &AppId,
        version: &Version,
        platform: &Platform,
        bytes: &[u8],
    ) -> Result<VerifiedManifest, TrustError> {
        let name = manifest_target(app, version, platform);
        let loaded = self.known()?;
        let target = loaded.target(&name).ok_or_else(|| loaded.missing(app, version, platform))?;
        if !is_target(target, bytes) {
            return Err(TrustErrorKind::WrongBytes { what: name }.here());
        }
        let manifest = check_manifest(&name, bytes, app, version, platform)?;
        self.cache(target, bytes)?;
        Ok(manifest)
    }

    /// The signed bytes of a manifest that is on this disk, to be given to a peer.
    #[must_use]
    pub fn cached_manifest_bytes(
        &self,
        app: &AppId,
        version: &Version,
        platform: &Platform,
    ) -> Option<Vec<u8>> {
        let loaded = self.known().ok()?;
        self.cached(loaded.target(&manifest_target(app, version, platform))?)
    }

    /// The unit hashes of an artifact, from the mirrors, verified against the manifest's root.
    ///
    /// # Errors
    /// When no mirror has them, or none has the right ones.
    pub async fn unit_hashes(&self, manifest: &VerifiedManifest) -> Result<UnitHashes, TrustError> {
        let path = &manifest.units.name;
        self.from_mirrors(path, manifest.units.length, |bytes| {
            if digest_of_bytes(bytes) != manifest.units.blake3 {
                return Err(TrustErrorKind::WrongBytes { what: path.clone() });
            }
            UnitHashes::parse(bytes, manifest)
                .map_err(|_| TrustErrorKind::WrongBytes { what: path.clone() })
        })
        .await
    }

    /// The newest verified metadata, to be given to a peer that cannot reach a mirror.
    #[must_use]
    pub fn bundle(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(&self.known().ok()?.bundle).ok()
    }

    /// Takes metadata from a peer, verified as if it came from a mirror. Returns whether it was
    /// newer.
    ///
    /// # Errors
    /// When it cannot be trusted. Nothing on disk has changed then.
    pub async fn accept_bundle(&self, bytes: &[u8]) -> Result<bool, TrustError> {
        let what = "metadata from a peer".to_owned();
        if bytes.len() as u64 > BUNDLE_BYTES_MAX {
            let limit_bytes = BUNDLE_BYTES_MAX;
            return Err(TrustErrorKind::TooLarge { what, limit_bytes }.here());
        }
        let bundle: Bundle = serde_json::from_slice(bytes).map_err(|error| {
            TrustErrorKind::Malformed { what, reason: error.to_string() }.here()
        })?;
        let source = Source::Memory(bundle.files().map_err(TrustErrorKind::here)?);
        let mut on_disk = self.on_disk.lock().await;
        let now = Timestamp::now();
        check_clock(now, on_disk.as_ref()).map_err(TrustErrorKind::here)?;
        let loaded = self
            .attempt(source, BTreeMap::new(), on_disk.as_ref(), ExpirationEnforcement::Safe)
            .await
            .map_err(TrustErrorKind::here)?;
        self.accept(&mut on_disk, loaded, now).map_err(TrustErrorKind::here)
    }

    /// When the signatures of what is known end; nothing before the first refresh.
    #[must_use]
    pub fn expiries(&self) -> Option<Expiries> {
        self.known().ok().map(|loaded| loaded.expiries)
    }

    /// The mirrors that were refused when they were asked last, by name.
    #[must_use]
    pub fn refusals(&self) -> BTreeMap<String, Refusal> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The mirrors, in the order given.
    #[must_use]
    pub fn mirrors(&self) -> &[Mirror] {
        &self.mirrors
    }

    async fn refresh_from(
        &self,
        mirror: &Mirror,
        state: Option<&State>,
    ) -> Result<Loaded, TrustErrorKind> {
        let source = || Source::Mirror(self.fetcher.clone(), mirror.clone());
        // Versioned files never change, so those at hand need not be fetched again; should they
        // not be what the mirror's timestamp announces, the mirror's own are looked at.
        let held = match self.known() {
            Ok(loaded) => {
                let mut files = loaded.bundle.files()?;
                files.remove("timestamp.json");
                files
            }
            Err(_) => BTreeMap::new(),
        };
        let nothing_held = held.is_empty();
        match self.attempt(source(), held, state, ExpirationEnforcement::Safe).await {
            Err(TrustErrorKind::Mixed { .. }) if !nothing_held => {
                self.attempt(source(), BTreeMap::new(), state, ExpirationEnforcement::Safe).await
            }
            result => result,
        }
    }

    /// One run of TUF's workflow on a copy of the state.
    async fn attempt(
        &self,
        source: Source,
        held: BTreeMap<String, Bytes>,
        state: Option<&State>,
        enforcement: ExpirationEnforcement,
    ) -> Result<Loaded, TrustErrorKind> {
        let io = |error: std::io::Error| store_error(&self.store, &error);
        let scratch = tempfile::Builder::new()
            .prefix(UNFINISHED_PREFIX)
            .tempdir_in(&self.store)
            .map_err(io)?;
        // Another root given by the operator begins anew from that root, but what was seen still
        // counts as seen where the new root's keys had signed it.
        let same_anchor = |state: &&State| state.anchor_sha256 == self.anchor_sha256;
        let root = match state.filter(same_anchor) {
            Some(state) => state.bundle.root.clone().into_bytes(),
            None => self.anchor.clone(),
        };
        if let Some(State { bundle, .. }) = state {
            let put = |name: &str, text: &str| std::fs::write(scratch.path().join(name), text);
            put("timestamp.json", &bundle.timestamp).map_err(io)?;
            put("snapshot.json", &bundle.snapshot).map_err(io)?;
        }
        let taken = Arc::new(Mutex::new(BTreeMap::new()));
        let transport = MetadataTransport { source, held, taken: Arc::clone(&taken) };
        let base = base_url();
        let load = RepositoryLoader::new(&root, base.clone(), base)
            .transport(transport)
            .datastore(scratch.path())
            .limits(Limits {
                max_root_size: SMALL_METADATA_BYTES_MAX,
                max_targets_size: METADATA_BYTES_MAX,
                max_timestamp_size: SMALL_METADATA_BYTES_MAX,
                max_snapshot_size: SMALL_METADATA_BYTES_MAX,
                max_root_updates: ROOT_UPDATES_MAX,
            })
            .expiration_enforcement(enforcement)
            .load();
        let result = Box::pin(load).await;
        let taken = std::mem::take(&mut *taken.lock().unwrap_or_else(PoisonError::into_inner));
        let found = result.map_err(|error| {
            TrustErrorKind::of_tough(&error, Timestamp::now(), |role| {
                expiry_in(&taken, role).or_else(|| (role == Role::Root).then(|| expiry(&root))?)
            })
        })?;
        let text = |name: String| {
            let bytes = taken.get(&name).map(|bytes| bytes.to_vec());
            bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| {
                TrustErrorKind::Malformed { what: name, reason: "it is not text".to_owned() }
            })
        };
        let root_version = found.root().signed.version;
        let bundle = Bundle {
            root: text(format!("{root_version}.root.json"))
                .or_else(|_| String::from_utf8(root.clone()))
                .map_err(|_| TrustErrorKind::BadRoot { reason: "it is not text".to_owned() })?,
            timestamp: text("timestamp.json".to_owned())?,
            snapshot: text(format!("{}.snapshot.json", found.snapshot().signed.version))?,
            targets: text(format!("{}.targets.json", found.targets().signed.version))?,
        };
        let expiries = Expiries {
            root: found.root().signed.expires,
            targets: found.targets().signed.expires,
            snapshot: found.snapshot().signed.expires,
            timestamp: found.timestamp().signed.expires,
        };
        Ok(Loaded { bundle, targets: found.targets().signed.targets.clone(), expiries })
    }

    /// Makes verified metadata the trusted one: on disk first, then in memory.
    fn accept(
        &self,
        on_disk: &mut Option<State>,
        loaded: Loaded,
        now: Timestamp,
    ) -> Result<bool, TrustErrorKind> {
        let same_bundle = on_disk.as_ref().is_some_and(|state| {
            state.bundle == loaded.bundle && state.anchor_sha256 == self.anchor_sha256
        });
        let seen = on_disk.as_ref().map_or(Timestamp::MIN, |state| state.clock_seen);
        if !same_bundle || now.duration_since(seen) > CLOCK_SAVE_EVERY {
            let state =
                State::new(self.anchor_sha256.clone(), seen.max(now), loaded.bundle.clone());
            state.save(&self.store)?;
            *on_disk = Some(state);
        }
        if !same_bundle {
            self.prune_cache(&loaded);
        }
        self.set_loaded(loaded);
        Ok(!same_bundle)
    }

    async fn manifest_in(
        &self,
        loaded: &Loaded,
        app: &AppId,
        version: &Version,
        platform: &Platform,
    ) -> Result<VerifiedManifest, TrustError> {
        let name = manifest_target(app, version, platform);
        let target = loaded.target(&name).ok_or_else(|| loaded.missing(app, version, platform))?;
        let bytes = self.target_bytes(&name, target, MANIFEST_BYTES_MAX).await?;
        check_manifest(&name, &bytes, app, version, platform)
    }

    /// The bytes of a signed target: from this disk, else from the first mirror that has the right
    /// ones, which are then kept.
    async fn target_bytes(
        &self,
        name: &str,
        target: &Target,
        bytes_max: u64,
    ) -> Result<Vec<u8>, TrustError> {
        if let Some(bytes) = self.cached(target) {
            return Ok(bytes);
        }
        if target.length > bytes_max {
            let what = name.to_owned();
            return Err(TrustErrorKind::TooLarge { what, limit_bytes: bytes_max }.here());
        }
        let path = target_path(name, &hex(&target.hashes.sha256));
        let bytes = self
            .from_mirrors(&path, target.length, |bytes| {
                if is_target(target, bytes) {
                    Ok(bytes.to_vec())
                } else {
                    Err(TrustErrorKind::WrongBytes { what: name.to_owned() })
                }
            })
            .await?;
        self.cache(target, &bytes)?;
        Ok(bytes)
    }

    /// The first answer that `check` accepts.
    async fn from_mirrors<T>(
        &self,
        path: &str,
        bytes_max: u64,
        check: impl Fn(&[u8]) -> Result<T, TrustErrorKind>,
    ) -> Result<T, TrustError> {
        let mut refused = Vec::new();
        for mirror in &self.mirrors {
            let fetched = self.fetcher.fetch(mirror, path, bytes_max).await;
            let checked = fetched
                .map_err(|error| TrustErrorKind::of_fetch(path, &error))
                .and_then(|bytes| check(&bytes));
            match checked {
                Ok(value) => return Ok(value),
                Err(kind) => {
                    let error = kind.at(mirror);
                    self.note(mirror, Some(error.clone()), Timestamp::now());
                    refused.push(error);
                }
            }
        }
        Err(most_telling(refused))
    }

    fn cache_path(&self, target: &Target) -> PathBuf {
        self.store.join(TARGETS_CACHE).join(hex(&target.hashes.sha256))
    }

    fn cached(&self, target: &Target) -> Option<Vec<u8>> {
        std::fs::read(self.cache_path(target)).ok().filter(|bytes| is_target(target, bytes))
    }

    fn cache(&self, target: &Target, bytes: &[u8]) -> Result<(), TrustError> {
        let path = self.cache_path(target);
        write_atomic(&path, bytes, 0o600).map_err(|error| store_error(&path, &error).here())
    }

    /// Removes what no signed target names any more (channels that moved on). What cannot be
    /// removed stays; it is never used without being checked.
    fn prune_cache(&self, loaded: &Loaded) {
        let Ok(entries) = std::fs::read_dir(self.store.join(TARGETS_CACHE)) else { return };
        let named: std::collections::HashSet<String> =
            loaded.targets.values().map(|target| hex(&target.hashes.sha256)).collect();
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_none_or(|name| !named.contains(name)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn known(&self) -> Result<Arc<Loaded>, TrustError> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.clone().ok_or_else(|| {
            let what = "no repository metadata was verified yet".to_owned();
            TrustErrorKind::NotFound { what }.here()
        })
    }

    fn set_loaded(&self, loaded: Loaded) {
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(loaded));
    }

    fn note(&self, mirror: &Mirror, error: Option<TrustError>, now: Timestamp) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            None => {
                refusals.remove(&mirror.to_string());
            }
            Some(error) => {
                refusals
                    .entry(mirror.to_string())
                    .and_modify(|refusal| refusal.error = error.clone())
                    .or_insert(Refusal { error, since: now });
            }
        }
    }
}

impl Loaded {
    fn target(&self, name: &str) -> Option<&Target> {
        self.targets.get(&TargetName::new(name).ok()?)
    }

    /// Names the platforms that there are, because "not found" alone sends people searching.
    fn missing(&self, app: &AppId, version: &Version, platform: &Platform) -> TrustError {
        let mut platforms: Vec<String> = self
            .targets
            .keys()
            .filter_map(|name| release_of_target(name.raw()))
            .filter(|release| release.app == *app && release.version == *version)
            .map(|release| release.platform.to_string())
            .collect();
        platforms.sort();
        let what = if platforms.is_empty() {
            format!("{app} {version} is not published")
        } else {
            let platforms = platforms.join(", ");
            format!("{app} {version} is not published for {platform}, only for {platforms}")
        };
        TrustErrorKind::NotFound { what }.here()
    }
}

impl TrustErrorKind {
    fn here(self) -> TrustError {
        TrustError { kind: self, mirror: None }
    }
}

/// Where metadata comes from in one attempt.
#[derive(Debug, Clone)]
enum Source {
    Mirror(Fetcher, Mirror),
    Memory(BTreeMap<String, Bytes>),
}

/// The TUF library's way to files: one source, whole files, hard limits, and a record of all bytes.
#[derive(Debug, Clone)]
struct MetadataTransport {
    source: Source,
    /// Versioned files at hand, by name.
    held: BTreeMap<String, Bytes>,
    /// What was handed out, by name.
    taken: Arc<Mutex<BTreeMap<String, Bytes>>>,
}

#[tough::async_trait]
impl Transport for MetadataTransport {
    async fn fetch(&self, url: Url) -> Result<TransportStream, ToughTransportError> {
        let name = url.path_segments().and_then(Iterator::last).unwrap_or_default().to_owned();
        let bytes_max = if name.ends_with("targets.json") {
            METADATA_BYTES_MAX
        } else {
            SMALL_METADATA_BYTES_MAX
        };
        let fetched = match (self.held.get(&name), &self.source) {
            (Some(held), _) => Ok(held.clone()),
            (None, Source::Memory(files)) => files.get(&name).cloned().ok_or(FetchError::NotFound),
            (None, Source::Mirror(fetcher, mirror)) => {
                fetcher.fetch(mirror, &format!("{METADATA_DIR}/{name}"), bytes_max).await
            }
        };
        let item = match fetched {
            Ok(bytes) => {
                let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
                taken.insert(name, bytes.clone());
                Ok(bytes)
            }
            Err(error @ FetchError::NotFound) => {
                let kind = TransportErrorKind::FileNotFound;
                return Err(ToughTransportError::new_with_cause(kind, url, error));
            }
            // In the stream, not as the call's result: of a new root the library would otherwise
            // take any failure for "there is none".
            Err(error) => {
                Err(ToughTransportError::new_with_cause(TransportErrorKind::Other, url, error))
            }
        };
        Ok(Box::pin(futures_util::stream::iter([item])))
    }
}

/// A stand-in: the transport looks at file names only.
fn base_url() -> Url {
    Url::parse("http://repository.invalid/metadata/").expect("a constant URL that parses")
}

fn check_root(bytes: &[u8]) -> Result<(), TrustErrorKind> {
    let bad = |reason: String| TrustErrorKind::BadRoot { reason };
    if bytes.len() as u64 > SMALL_METADATA_BYTES_MAX {
        return Err(bad(format!("longer than {SMALL_METADATA_BYTES_MAX} bytes")));
    }
    let root: tough::schema::Signed<tough::schema::Root> =
        serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
    root.signed.verify_role(&root).map_err(|error| bad(error.to_string()))
}

fn check_clock(now: Timestamp, state: Option<&State>) -> Result<(), TrustErrorKind> {
    match state.map(|state| state.clock_seen) {
        Some(seen) if seen.duration_since(now) > CLOCK_STEP_BACK_MAX => {
            Err(TrustErrorKind::ClockWentBack { now, seen })
        }
        _ => Ok(()),
    }
}

fn check_manifest(
    name: &str,
    bytes: &[u8],
    app: &AppId,
    version: &Version,
    platform: &Platform,
) -> Result<VerifiedManifest, TrustError> {
    let manifest = Manifest::parse(bytes).map_err(|error| malformed(name, &error))?;
    same("app", app, &manifest.app)?;
    same("version", version, &manifest.version)?;
    same("platform", platform, &manifest.platform)?;
    Ok(Verified::of(manifest, bytes))
}

fn same<T: PartialEq + fmt::Display>(
    field: &'static str,
    wanted: &T,
    found: &T,
) -> Result<(), TrustError> {
    if wanted == found {
        return Ok(());
    }
    let (wanted, found) = (wanted.to_string(), found.to_string());
    Err(TrustErrorKind::WrongContent { field, wanted, found }.here())
}

fn malformed(name: &str, error: &ManifestError) -> TrustError {
    let reason = crate::fetch::chain(error);
    TrustErrorKind::Malformed { what: name.to_owned(), reason }.here()
}

fn is_target(target: &Target, bytes: &[u8]) -> bool {
    bytes.len() as u64 == target.length && sha256(bytes) == *target.hashes.sha256
}

fn store_error(path: &Path, error: &std::io::Error) -> TrustErrorKind {
    TrustErrorKind::Store { path: path.display().to_string(), reason: error.to_string() }
}

/// The refusal to show when every mirror was refused: a lie is more telling than silence.
fn most_telling(refused: Vec<TrustError>) -> TrustError {
    let mut refused = refused.into_iter();
    let Some(first) = refused.next() else {
        let (what, reason) = ("repository".to_owned(), "no mirror is configured".to_owned());
        return TrustErrorKind::Unreachable { what, reason }.here();
    };
    if !first.kind.is_unreachable() {
        return first;
    }
    refused.find(|error| !error.kind.is_unreachable()).unwrap_or(first)
}

/// When the offered file of a role expires, of the newest version that was looked at.
fn expiry_in(files: &BTreeMap<String, Bytes>, role: Role) -> Option<Timestamp> {
    let suffix = format!("{role}.json");
    let of_role = files.iter().filter(|(name, _)| name.ends_with(&suffix));
    of_role.filter_map(|(_, bytes)| expiry(bytes)).max()
}

fn expiry(bytes: &[u8]) -> Option<Timestamp> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    value.get("signed")?.get("expires")?.as_str()?.parse().ok()
}
