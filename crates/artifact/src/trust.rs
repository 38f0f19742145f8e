//! The reader's side: every server verifies on its own, trusting neither mirrors nor peers.
//!
//! A refresh runs TUF's client workflow against one mirror at a time, on a *copy* of the trusted
//! state. The result replaces what is on disk, in one rename, only if all of it succeeds; a refusal
//! leaves nothing but its reason.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cohort_core::ids::{AppId, Channel, Platform, Version};
use cohort_core::refused::{Field, WhyRefused};
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use tough::schema::Target;
use tough::{ExpirationEnforcement, TargetName};

use crate::channel::{CHANNEL_BYTES_MAX, ChannelPointer};
use crate::checks::{
    check_manifest, check_root, is_target, malformed, most_telling, same, store_error,
};
use crate::client::{Mirror, MirrorClient};
use crate::digest::sha256;
use crate::layout::{channel_target, manifest_target};
use crate::lifetimes::Expiries;
use crate::metadata_transport::Source;
use crate::repository::release_of_target;
use crate::trust_error::{TrustError, expired};
use crate::trust_state::{BUNDLE_BYTES_MAX, Bundle, State};
use crate::verified::VerifiedManifest;
use cohort_base::durable::{create_folders, sweep};

mod refresh;
mod targets;

/// Configuration of a reader.
#[derive(Debug, Clone)]
pub struct TrustOptions {
    pub root: Vec<u8>,
    /// Directory for the metadata seen; created if missing. Used by one process at a time.
    pub store: PathBuf,
    /// Mirrors to read from. Each refresh starts with the next one, so that a mirror can hold back
    /// news for one round only.
    pub mirrors: Vec<Mirror>,
    pub client: MirrorClient,
}

/// Verified metadata in memory.
#[derive(Debug)]
struct Loaded {
    bundle: Bundle,
    root_version: u64,
    targets: HashMap<TargetName, Target>,
    expiries: Expiries,
}

/// A reader of a repository, which remembers on disk what it has seen.
pub struct TrustedRepository {
    store: PathBuf,
    anchor: Vec<u8>,
    anchor_sha256: String,
    mirrors: Vec<Mirror>,
    client: MirrorClient,
    /// Index of the mirror to ask first next time.
    turn: AtomicUsize,
    /// Index of the mirror that last succeeded.
    good: AtomicUsize,
    loaded: RwLock<Option<Arc<Loaded>>>,
    refusals: Mutex<BTreeMap<String, TrustError>>,
    /// The state on disk; locked during a refresh, so that only one runs at a time.
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
    /// Opens the store and verifies its content again. Needs no mirror and no freshness: what was
    /// accepted while fresh stays usable.
    ///
    /// # Errors
    /// If the store is unusable, or the given root is invalid.
    pub async fn open(options: TrustOptions) -> Result<Self, TrustError> {
        let TrustOptions { root, store, mirrors, client } = options;
        create_folders(&store)
            .and_then(|()| sweep(&store))
            .map_err(|error| store_error(&store, error))?;
        let state = State::load(&store)?;
        let repository = Self {
            store,
            anchor_sha256: hex::encode(sha256(&root)),
            anchor: root,
            mirrors,
            client,
            turn: AtomicUsize::new(0),
            good: AtomicUsize::new(0),
            loaded: RwLock::new(None),
            refusals: Mutex::new(BTreeMap::new()),
            on_disk: tokio::sync::Mutex::new(None),
        };
        check_root(&repository.anchor)?;
        if let Some(state) = state {
            if state.anchor_sha256 == repository.anchor_sha256 {
                let files = Source::Memory(state.bundle.files()?);
                let loaded = repository
                    .attempt(files, BTreeMap::new(), Some(&state), ExpirationEnforcement::Unsafe)
                    .await?;
                repository.set_loaded(loaded);
            }
            *repository.on_disk.lock().await = Some(state);
        }
        Ok(repository)
    }

    /// Asks the mirrors for newer metadata and verifies it. Returns whether there was any.
    ///
    /// # Errors
    /// If no mirror has trustworthy metadata: the most informative refusal. The disk is then
    /// unchanged.
    pub async fn refresh(&self) -> Result<bool, TrustError> {
        let mut on_disk = self.on_disk.lock().await;
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut refused = Vec::new();
        for step in 0..self.mirrors.len() {
            let index = start.wrapping_add(step) % self.mirrors.len();
            let mirror = &self.mirrors[index];
            match self.refresh_from(mirror, on_disk.as_ref()).await {
                Ok(newer) => {
                    let changed = match newer {
                        Some(loaded) => self.accept(&mut on_disk, loaded)?,
                        None => false,
                    };
                    self.refusals.lock().remove(&mirror.to_string());
                    self.good.store(index, Ordering::Relaxed);
                    return Ok(changed);
                }
                Err(error) => {
                    let error = error.at(mirror);
                    tracing::debug!(%mirror, error = cohort_base::chain(&error), "refusing mirror");
                    self.note(&error);
                    refused.push(error);
                }
            }
        }
        Err(most_telling(refused))
    }

    /// The manifest of the channel's release for the platform, after a refresh.
    ///
    /// # Errors
    /// As [`TrustedRepository::refresh`] and [`TrustedRepository::offer`].
    pub async fn latest(
        &self,
        app: &AppId,
        channel: &Channel,
        platform: &Platform,
    ) -> Result<VerifiedManifest, TrustError> {
        self.refresh().await?;
        self.offer(app, channel, platform).await
    }

    /// The manifest of the channel's release for the platform, by the local metadata, if that is
    /// still fresh.
    ///
    /// # Errors
    /// If there is no metadata yet or it has expired, the channel or release does not exist for the
    /// platform, or a file does not match its signature.
    pub async fn offer(
        &self,
        app: &AppId,
        channel: &Channel,
        platform: &Platform,
    ) -> Result<VerifiedManifest, TrustError> {
        let loaded = self.known()?;
        let now = Timestamp::now();
        let (role, expired_at) = loaded.expiries.nearest();
        if expired_at < now {
            return Err(expired(role, expired_at, now).into());
        }
        let name = channel_target(app, channel);
        let Some(target) = loaded.target(&name) else {
            let (app, channel) = (app.clone(), channel.clone());
            return Err(WhyRefused::NoChannel { app, channel }.into());
        };
        let bytes = self.target_bytes(&name, target, CHANNEL_BYTES_MAX).await?;
        let pointer = ChannelPointer::parse(&bytes).map_err(|error| malformed(&name, error))?;
        same(Field::App, app, &pointer.app)?;
        same(Field::Channel, channel, &pointer.channel)?;
        self.manifest_in(&loaded, app, &pointer.version, platform).await
    }

    /// The signed manifest of a release whose rollout was already decided: freshness was checked
    /// then, so mirrors are asked only if the manifest is not on this disk.
    ///
    /// # Errors
    /// If the release does not exist for the platform, or a file does not match its signature.
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

    /// A manifest whose bytes came from a peer, checked against the metadata verified here.
    ///
    /// # Errors
    /// If the release is unknown here, or the bytes are not the signed ones.
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
            return Err(WhyRefused::WrongBytes { file: name }.into());
        }
        let manifest = check_manifest(&name, bytes, app, version, platform)?;
        self.cache(target, bytes)?;
        Ok(manifest)
    }

    /// The signed bytes of a manifest on this disk, for a peer.
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

    /// The newest verified metadata, for a peer that cannot reach a mirror.
    #[must_use]
    pub fn bundle(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(&self.known().ok()?.bundle).ok()
    }

    /// Accepts metadata from a peer, verified as if it came from a mirror. Returns whether it was
    /// newer.
    ///
    /// # Errors
    /// If it cannot be trusted. The disk is then unchanged.
    pub async fn accept_bundle(&self, bytes: &[u8]) -> Result<bool, TrustError> {
        let file = "metadata from a peer".to_owned();
        if bytes.len() as u64 > BUNDLE_BYTES_MAX {
            let limit_bytes = BUNDLE_BYTES_MAX;
            return Err(WhyRefused::TooLarge { file, limit_bytes }.into());
        }
        let bundle: Bundle = serde_json::from_slice(bytes)
            .map_err(|error| TrustError::because(WhyRefused::Malformed { file }, error))?;
        let source = Source::Memory(bundle.files()?);
        let mut on_disk = self.on_disk.lock().await;
        let loaded = self
            .attempt(source, BTreeMap::new(), on_disk.as_ref(), ExpirationEnforcement::Safe)
            .await?;
        self.accept(&mut on_disk, loaded)
    }

    /// The SHA-256 hashes of the roots from the operator's to the newest, in hexadecimal; of the
    /// operator's alone before the first refresh.
    #[must_use]
    pub fn root_hashes(&self) -> Vec<String> {
        match self.known() {
            Ok(loaded) => {
                let roots = loaded.bundle.roots.iter();
                roots.map(|root| hex::encode(sha256(root.as_bytes()))).collect()
            }
            Err(_) => vec![self.anchor_sha256.clone()],
        }
    }

    /// When the signatures expire; `None` before the first refresh.
    #[must_use]
    pub fn expiries(&self) -> Option<Expiries> {
        self.known().ok().map(|loaded| loaded.expiries)
    }

    /// For how long nothing newer than the verified metadata was seen, in milliseconds by this
    /// server's clock; `None` before the first refresh. Metadata says when it expires, not when it
    /// was signed: what counts is when this server first saw it.
    ///
    /// The hub signs every day, so a mirror that shows nothing newer for much longer hides it. A
    /// hub that signs the same list again and again is not found out by this.
    #[must_use]
    pub fn age_ms(&self) -> Option<u64> {
        self.known().ok()?;
        State::age_ms(&self.store)
    }

    /// Why mirrors are currently refused, by name.
    #[must_use]
    pub fn refusals(&self) -> BTreeMap<String, TrustError> {
        self.refusals.lock().clone()
    }

    fn known(&self) -> Result<Arc<Loaded>, TrustError> {
        let loaded = self.loaded.read();
        loaded.clone().ok_or_else(|| WhyRefused::NotRead.into())
    }

    fn set_loaded(&self, loaded: Loaded) {
        *self.loaded.write() = Some(Arc::new(loaded));
    }

    /// Remembers a refusal until the mirror's next success.
    fn note(&self, error: &TrustError) {
        if let Some(mirror) = &error.mirror {
            self.refusals.lock().insert(mirror.clone(), error.clone());
        }
    }
}

impl Loaded {
    fn target(&self, name: &str) -> Option<&Target> {
        self.targets.get(&TargetName::new(name).ok()?)
    }

    /// Lists the platforms that exist: "not found" alone leaves operators guessing.
    fn missing(&self, app: &AppId, version: &Version, platform: &Platform) -> TrustError {
        let mut only: Vec<Platform> = self
            .targets
            .keys()
            .filter_map(|name| release_of_target(name.raw()))
            .filter(|release| release.app == *app && release.version == *version)
            .map(|release| release.platform)
            .collect();
        only.sort();
        let (app, version, platform) = (app.clone(), version.clone(), platform.clone());
        WhyRefused::NotPublished { app, version, platform, only }.into()
    }
}
