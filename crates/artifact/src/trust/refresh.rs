//! Verifies a mirror's metadata on a copy of the trusted state, and makes it the trusted one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use cohort_core::refused::WhyRefused;
use jiff::Timestamp;
use parking_lot::Mutex;
use tough::schema::RoleType;
use tough::{ExpirationEnforcement, Limits, RepositoryLoader};

use super::{Loaded, TrustedRepository};
use crate::checks::{expiry, expiry_in, store_error};
use crate::client::{FetchError, Mirror};
use crate::key_change::ROOTS_MAX;
use crate::layout::METADATA_DIR;
use crate::lifetimes::Expiries;
use crate::metadata::METADATA_BYTES_MAX;
use crate::metadata_transport::{MetadataTransport, SMALL_METADATA_BYTES_MAX, Source, base_url};
use crate::trust_error::TrustError;
use crate::trust_state::{Bundle, State, version_in};
use cohort_base::durable::UNFINISHED_PREFIX;

impl TrustedRepository {
    /// Newer metadata from a mirror; `None` if it serves exactly the known one.
    pub(super) async fn refresh_from(
        &self,
        mirror: &Mirror,
        state: Option<&State>,
    ) -> Result<Option<Loaded>, TrustError> {
        if self.serves_what_is_known(mirror).await {
            return Ok(None);
        }
        let source = || Source::Mirror(self.client.clone(), mirror.clone());
        // Versioned files never change, so local ones are not fetched again, unless they differ
        // from those that the mirror's timestamp names.
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
            Err(TrustError { why: WhyRefused::Mixed { .. }, .. }) if !nothing_held => {
                self.attempt(source(), BTreeMap::new(), state, ExpirationEnforcement::Safe).await
            }
            result => result,
        }
        .map(Some)
    }

    /// Whether a mirror has no newer root and the same timestamp, and all of it is fresh. Almost
    /// every refresh ends here, without cryptography or disk access.
    async fn serves_what_is_known(&self, mirror: &Mirror) -> bool {
        let Ok(loaded) = self.known() else { return false };
        if loaded.expiries.nearest().1 <= Timestamp::now() {
            return false;
        }
        let root = format!("{METADATA_DIR}/{}.root.json", loaded.root_version + 1);
        let timestamp = format!("{METADATA_DIR}/timestamp.json");
        let fetch = |path: String| async move {
            self.client.fetch(mirror, &path, SMALL_METADATA_BYTES_MAX).await
        };
        matches!(fetch(root).await, Err(FetchError::Absent))
            && fetch(timestamp).await.is_ok_and(|bytes| bytes == loaded.bundle.timestamp)
    }

    /// One run of TUF's workflow on a copy of the state.
    pub(super) async fn attempt(
        &self,
        source: Source,
        held: BTreeMap<String, Bytes>,
        state: Option<&State>,
        enforcement: ExpirationEnforcement,
    ) -> Result<Loaded, TrustError> {
        let io = |error: std::io::Error| store_error(&self.store, error);
        let scratch = tempfile::Builder::new()
            .prefix(UNFINISHED_PREFIX)
            .tempdir_in(&self.store)
            .map_err(io)?;
        // A new root from the operator starts over from that root, but versions seen still count if
        // the new root's keys signed them.
        let same_anchor = |state: &&State| state.anchor_sha256 == self.anchor_sha256;
        let roots = match state.filter(same_anchor) {
            Some(state) => state.bundle.roots.clone(),
            None => {
                let anchor = String::from_utf8(self.anchor.clone());
                vec![anchor.map_err(|error| TrustError::because(WhyRefused::BadRoot, error))?]
            }
        };
        let root = roots.last().map(|root| root.as_bytes().to_vec()).unwrap_or_default();
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
                max_root_updates: ROOTS_MAX,
            })
            .expiration_enforcement(enforcement)
            .load();
        let result = Box::pin(load).await;
        let taken = std::mem::take(&mut *taken.lock());
        let found = result.map_err(|error| {
            TrustError::of_tough(error, Timestamp::now(), |role| {
                expiry_in(&taken, role)
                    .or_else(|| (role == RoleType::Root).then(|| expiry(&root))?)
            })
        })?;
        loaded(&found, &taken, roots)
    }

    /// Makes verified metadata the trusted one: first on disk, then in memory.
    pub(super) fn accept(
        &self,
        on_disk: &mut Option<State>,
        loaded: Loaded,
    ) -> Result<bool, TrustError> {
        let same_bundle = on_disk.as_ref().is_some_and(|state| {
            state.bundle == loaded.bundle && state.anchor_sha256 == self.anchor_sha256
        });
        if !same_bundle {
            let state = State::new(self.anchor_sha256.clone(), loaded.bundle.clone());
            state.save(&self.store)?;
            *on_disk = Some(state);
            self.prune_cache(&loaded);
        }
        self.set_loaded(loaded);
        Ok(!same_bundle)
    }
}

/// The metadata that the library verified, with the bytes that it read. `roots`: the chain that it
/// started from.
fn loaded(
    found: &tough::Repository,
    taken: &BTreeMap<String, Bytes>,
    mut roots: Vec<String>,
) -> Result<Loaded, TrustError> {
    let text = |name: String| {
        let bytes = taken.get(&name).map(|bytes| bytes.to_vec());
        bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| {
            TrustError::because(WhyRefused::Malformed { file: name }, "not UTF-8 text")
        })
    };
    let root_version = found.root().signed.version;
    // One that was taken and is newer was verified: the library follows them one by one.
    let known = roots.last().map_or(0, |root| version_in(root));
    for version in known + 1..=root_version.get() {
        roots.push(text(format!("{version}.root.json"))?);
    }
    let bundle = Bundle {
        roots,
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
    let targets = found.targets().signed.targets.clone();
    Ok(Loaded { bundle, root_version: root_version.get(), targets, expiries })
}
