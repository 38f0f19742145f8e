//! Publishing: from a directory or tarball to signed metadata.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cohort_core::ids::{AppId, Channel, Digest, Platform, ProgramName, Version};
use cohort_core::release::Rollback;
use tempfile::NamedTempFile;
use tough::schema::Targets;

use crate::channel::ChannelPointer;
use crate::digest::digest_of_bytes;
use crate::keys::Keys;
use crate::layout::{BLOBS_DIR, blob_path, manifest_target, units_path};
use crate::manifest::{
    ARTIFACT_BYTES_MAX, Delta, MANIFEST_SCHEMA, Manifest, Protocols, UNIT_BYTES,
};
use crate::metadata::{self, now};
use crate::pack::{Inspection, PackError, inspect_tarball, pack_folder};
use crate::package_file::{PackageFile, PackageFileError, merge};
use crate::publish_deltas::NoDelta;
use crate::repository::{ReleaseName, Repository, RepositoryError};
use crate::steps::Step;
use crate::units::{UnitHashes, hash_file};
use cohort_base::OnPath as _;
use cohort_base::durable::{create_folders, unfinished};

/// How long deltas may take unless the publisher says otherwise: most are made in seconds.
pub const DELTA_BUDGET: Duration = Duration::from_secs(60);

/// A release to publish.
#[derive(Clone)]
pub struct PublishRequest {
    /// A directory, packed as `tar.zst`, or a tarball (plain, gzip or zstd), stored unchanged.
    pub path: PathBuf,
    pub app: AppId,
    pub version: Version,
    pub platform: Platform,
    /// Whether it can be rolled back; default: its `cohort.toml`, then [`Rollback::Revert`].
    pub rollback: Option<Rollback>,
    /// Protocols it reads and writes; default: its `cohort.toml`, then none.
    pub protocols: Option<Protocols>,
    /// Schemas it needs; default: its `cohort.toml`, then none.
    pub schemas: Option<BTreeSet<String>>,
    /// A channel to point to this version in the same step.
    pub channel: Option<Channel>,
    /// How long deltas from earlier versions may take, all together; `None`: none are made. See
    /// [`crate::DeltaMaker`].
    pub delta_budget: Option<Duration>,
    /// Artifacts of earlier versions outside the repository, by root.
    pub bases: BTreeMap<Digest, PathBuf>,
    pub told: Told,
    /// What servers will say of the release.
    pub judge: Judge,
}

/// Judges a release as the host does, which knows what it runs. Says what is probably wrong, or why
/// it is refused, for people.
pub type Judge = Arc<dyn Fn(&Inspection) -> Result<Vec<String>, String> + Send + Sync>;

/// Receives human-readable progress messages.
pub type Told = Arc<dyn Fn(&str) + Send + Sync>;

impl PublishRequest {
    /// A request with every option at its default.
    #[must_use]
    pub fn new(path: &Path, app: AppId, version: Version, platform: Platform) -> Self {
        Self {
            path: path.to_owned(),
            app,
            version,
            platform,
            rollback: None,
            protocols: None,
            schemas: None,
            channel: None,
            delta_budget: Some(DELTA_BUDGET),
            bases: BTreeMap::new(),
            told: Arc::new(|_| ()),
            judge: Arc::new(|_| Ok(Vec::new())),
        }
    }
}

/// A release as published, and what was done for it.
#[derive(Debug)]
pub struct Published {
    /// The signed manifest; `length` and `root` in it are the artifact's.
    pub manifest: Manifest,
    /// BLAKE3 of the manifest, which names it in a group's log.
    pub manifest_digest: Digest,
    pub channel: Option<ChannelPointer>,
    /// Whether this release existed before, so that nothing new was stored.
    pub already_there: bool,
    /// The checks that it declares in its `cohort.toml`.
    pub checks: BTreeSet<ProgramName>,
    /// What is probably wrong with it, for people.
    pub warnings: Vec<String>,
    /// Outcome for each earlier version from which a delta was tried, latest first.
    pub deltas: Vec<DeltaTried>,
}

/// A delta that was tried.
#[derive(Debug)]
pub struct DeltaTried {
    pub from: Version,
    /// The signed delta, or the reason why there is none.
    pub outcome: Result<Delta, NoDelta>,
}

impl Repository {
    /// Packs, hashes, signs and stores a release. Idempotent; other bytes or another manifest under
    /// the same version are refused.
    ///
    /// # Errors
    /// If the artifact cannot be packed, contradicts its flags, exists with other content, the keys
    /// are not this repository's, or a file cannot be written.
    pub async fn publish(
        &self,
        keys: &Keys,
        request: &PublishRequest,
    ) -> Result<Published, RepositoryError> {
        let lock = self.lock().await?;
        let (source, blobs) = (request.path.clone(), self.dir().join(BLOBS_DIR));
        let held = lock.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            let _held = held;
            prepare(&source, &blobs)
        });
        let (file, hashes, inspection) = prepared.await.map_err(|_| RepositoryError::Stopped)??;
        let Judged { manifest, checks, warnings } = judge(request, &hashes, &inspection)?;

        let current = metadata::read_current(self.dir())?;
        let targets = &current.targets.signed;
        let name = manifest_target(&request.app, &request.version, &request.platform);
        let existing = self.read_manifest(targets, &name)?;
        let already_there = existing.is_some();
        let (mut deltas, mut delta_files) = (Vec::new(), Vec::new());
        let (manifest, mut changed) = match existing {
            Some(existing) => (same_or_refused(existing, manifest)?, BTreeMap::new()),
            None => {
                self.not_removed(targets, &manifest)?;
                let mut manifest = manifest;
                if request.delta_budget.is_some() {
                    let earlier = self.earlier(targets, &request.app, &request.platform)?;
                    let artifact = file.path().to_owned();
                    (deltas, delta_files) =
                        self.make_deltas(&lock, request, earlier, &manifest, artifact).await?;
                    let made = deltas.iter().filter_map(|tried| tried.outcome.as_ref().ok());
                    manifest.deltas = made.cloned().collect();
                    manifest.check()?;
                }
                let changed = BTreeMap::from([(name, manifest.to_bytes())]);
                (manifest, changed)
            }
        };
        let channel = match &request.channel {
            None => None,
            Some(channel) => {
                Some(self.point(targets, &mut changed, &request.app, channel, &request.version)?)
            }
        };
        // Also stored if the manifest exists: repairs a missing blob.
        let mut blobs = vec![
            Step::file(PathBuf::from(blob_path(&manifest.root)), file),
            Step::bytes(PathBuf::from(units_path(&manifest.root)), hashes.to_bytes()),
        ];
        blobs.extend(delta_files);
        if changed.is_empty() {
            self.write(&lock, blobs).await?;
        } else {
            self.commit(&lock, keys, current, blobs, changed).await?;
        }
        let manifest_digest = digest_of_bytes(&manifest.to_bytes());
        Ok(Published {
            manifest,
            manifest_digest,
            channel,
            already_there,
            checks,
            warnings,
            deltas,
        })
    }
}

impl Repository {
    /// Signs what was published into a copy of this repository that was outdated. Its artifacts
    /// must be where it is uploaded to: they go before the metadata.
    ///
    /// # Errors
    /// As [`Repository::publish`].
    pub async fn publish_again(
        &self,
        keys: &Keys,
        published: &Published,
    ) -> Result<(), RepositoryError> {
        let lock = self.lock().await?;
        let current = metadata::read_current(self.dir())?;
        let targets = &current.targets.signed;
        let Manifest { app, version, platform, .. } = &published.manifest;
        let name = manifest_target(app, version, platform);
        let mut changed = BTreeMap::new();
        match self.read_manifest(targets, &name)? {
            Some(existing) => {
                same_or_refused(existing, published.manifest.clone())?;
            }
            None => {
                self.not_removed(targets, &published.manifest)?;
                changed.insert(name, published.manifest.to_bytes());
            }
        }
        if let Some(pointer) = &published.channel {
            self.point(targets, &mut changed, app, &pointer.channel, version)?;
        }
        if !changed.is_empty() {
            self.commit(&lock, keys, current, Vec::new(), changed).await?;
        }
        Ok(())
    }
}

impl Repository {
    fn not_removed(&self, targets: &Targets, manifest: &Manifest) -> Result<(), RepositoryError> {
        let Manifest { app, version, platform, .. } = manifest.clone();
        let release = ReleaseName { app, version, platform };
        if self.removed(targets, &release.app)?.is_some_and(|list| list.has(&release)) {
            let ReleaseName { app, version, platform } = release;
            return Err(RepositoryError::WasRemoved { app, version, platform });
        }
        Ok(())
    }
}

/// The manifest of a release, without deltas.
fn new_manifest(
    request: &PublishRequest,
    hashes: &UnitHashes,
    inspection: &Inspection,
    package_file: PackageFile,
) -> Result<Manifest, RepositoryError> {
    let protocols = merge("protocols", request.protocols.clone(), package_file.protocols)?;
    let schemas = merge("schemas", request.schemas.clone(), package_file.schemas)?;
    let rollback = merge("rollback", request.rollback, package_file.rollback)?;
    let manifest = Manifest {
        schema: MANIFEST_SCHEMA,
        app: request.app.clone(),
        version: request.version.clone(),
        platform: request.platform.clone(),
        format: inspection.format,
        length: hashes.length(),
        unit_bytes: UNIT_BYTES,
        root: hashes.root().clone(),
        unpacked_bytes: inspection.unpacked_bytes,
        entries: inspection.entries,
        deltas: Vec::new(),
        protocols: protocols.unwrap_or_default(),
        schemas: schemas.unwrap_or_default(),
        rollback: rollback.unwrap_or(Rollback::Revert),
        created_at: now(),
    };
    manifest.check()?;
    Ok(manifest)
}

/// The published manifest, if the new one differs only in its time and its deltas, which depend on
/// the versions published before.
fn same_or_refused(existing: Manifest, new: Manifest) -> Result<Manifest, RepositoryError> {
    let new = Manifest { created_at: existing.created_at, deltas: existing.deltas.clone(), ..new };
    if new == existing {
        return Ok(existing);
    }
    let difference = if new.root == existing.root { "manifest" } else { "content" };
    let Manifest { app, version, platform, .. } = new;
    Err(RepositoryError::AlreadyPublished { app, version, platform, difference })
}

/// What would be published, and what is probably wrong with it; keeps nothing. Blocking.
///
/// # Errors
/// As [`Repository::publish`], for what is about the artifact alone.
pub fn try_out(request: &PublishRequest) -> Result<(Manifest, Vec<String>), RepositoryError> {
    let folder = tempfile::tempdir().on_path("write to", &std::env::temp_dir())?;
    let (_, hashes, inspection) = prepare(&request.path, folder.path())?;
    let Judged { manifest, warnings, .. } = judge(request, &hashes, &inspection)?;
    Ok((manifest, warnings))
}

/// A release that may be published.
struct Judged {
    /// Without deltas.
    manifest: Manifest,
    checks: BTreeSet<ProgramName>,
    warnings: Vec<String>,
}

fn judge(
    request: &PublishRequest,
    hashes: &UnitHashes,
    inspection: &Inspection,
) -> Result<Judged, RepositoryError> {
    let package_file = match &inspection.package_file {
        Some(bytes) => PackageFile::parse(bytes)?,
        None => PackageFile::default(),
    };
    let warnings = (request.judge)(inspection).map_err(PackageFileError::Refused)?;
    let checks = package_file.checks.keys().cloned().collect();
    let manifest = new_manifest(request, hashes, inspection, package_file)?;
    Ok(Judged { manifest, checks, warnings })
}

/// Copies or packs the artifact into the repository's directory, where nothing names it yet. So the
/// bytes hashed are the bytes stored, even if the source changes meanwhile.
fn prepare(
    source: &Path,
    blobs: &Path,
) -> Result<(NamedTempFile, UnitHashes, Inspection), RepositoryError> {
    let file = create_folders(blobs).and_then(|()| unfinished(blobs));
    let mut file = file.on_path("write to", blobs)?;
    let mut lost = Vec::new();
    if source.metadata().on_path("read", source)?.is_dir() {
        lost = pack_folder(source, &mut file)?;
    } else {
        let input = File::open(source).on_path("read", source)?;
        // One byte over the limit makes `hash_file` fail.
        io::copy(&mut input.take(ARTIFACT_BYTES_MAX + 1), &mut file).on_path("write to", blobs)?;
    }
    let mut inspection = inspect_tarball(file.path()).map_err(|error| match error {
        // Name the source, not the copy.
        PackError::NotATarball { source: error, .. } => {
            PackError::NotATarball { path: source.to_owned(), source: error }
        }
        PackError::Empty { .. } => PackError::Empty { path: source.to_owned() },
        other => other,
    })?;
    for (path, lost) in lost {
        inspection.contents.loses(path, lost);
    }
    let hashes = hash_file(file.path()).on_path("read", source)?;
    Ok((file, hashes, inspection))
}
