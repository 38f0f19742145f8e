//! Removing releases and channels, and the files that nothing names any more.
//!
//! Removals are signed, in one list per app: so whoever receives a publisher's list of targets can
//! tell what was removed from what that publisher had not seen yet, and a version never comes back
//! with other content.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use cohort_base::OnPath as _;
use cohort_core::ids::{AppId, Channel, Platform, Version};
use serde::{Deserialize, Serialize};
use tough::TargetName;
use tough::schema::Targets;

use crate::channel::ChannelPointer;
use crate::keys::Keys;
use crate::layout::{
    blob_path, channel_target, is_channel, is_removed_list, removed_target, target_path, units_path,
};
use crate::manifest::{MANIFEST_BYTES_MAX, Manifest, ManifestError, parse_schema, to_json};
use crate::metadata::{self, Current};
use crate::publish_deltas::newest_first;
use crate::repository::{ReleaseName, Repository, RepositoryError, release_of_target};
use crate::repository_file::{RepositoryFile, repository_files};

pub(crate) const REMOVED_SCHEMA: u32 = 1;

/// How long files stay that nothing names: a day, for the slowest upload.
pub const UNUSED_AGE_MIN: Duration = Duration::from_secs(24 * 60 * 60);

/// What was removed of one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemovedList {
    /// Schema version; 1. First in the file.
    pub(crate) schema: u32,
    pub(crate) app: AppId,
    /// In order of removal. When the file is full (some 6,000 versions), the first are forgotten.
    pub(crate) releases: BTreeMap<Platform, Vec<Version>>,
    /// Each with its last serial, where a channel of this name goes on.
    pub(crate) channels: BTreeMap<Channel, u64>,
}

impl RemovedList {
    fn of(app: &AppId) -> Self {
        let (releases, channels) = (BTreeMap::new(), BTreeMap::new());
        Self { schema: REMOVED_SCHEMA, app: app.clone(), releases, channels }
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        parse_schema(bytes, MANIFEST_BYTES_MAX, REMOVED_SCHEMA)
    }

    pub(crate) fn has(&self, release: &ReleaseName) -> bool {
        let of_platform = self.releases.get(&release.platform);
        self.app == release.app
            && of_platform.is_some_and(|versions| versions.contains(&release.version))
    }

    fn into_bytes(mut self) -> Vec<u8> {
        loop {
            let bytes = to_json(&self);
            let longest = self.releases.values_mut().max_by_key(|versions| versions.len());
            match longest {
                Some(versions) if bytes.len() as u64 > MANIFEST_BYTES_MAX => {
                    versions.drain(..versions.len().div_ceil(10));
                }
                _ => return bytes,
            }
        }
    }
}

/// Files that nothing named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    pub files: u64,
    pub bytes: u64,
}

impl Repository {
    /// The names of all releases: by app, newest version first.
    ///
    /// # Errors
    /// If the repository cannot be read or is not signed by its root.
    pub fn releases(&self) -> Result<Vec<ReleaseName>, RepositoryError> {
        let targets = metadata::read_current(self.dir())?.targets.signed;
        let names = targets.targets.keys().map(TargetName::raw);
        let mut releases: Vec<ReleaseName> = names.filter_map(release_of_target).collect();
        releases.sort_by(|a, b| {
            let by_version = || newest_first(&a.version, &b.version);
            a.app.cmp(&b.app).then_with(by_version).then_with(|| a.platform.cmp(&b.platform))
        });
        Ok(releases)
    }

    /// The manifest of a release that is published. In a working copy, it must have been pulled.
    ///
    /// # Errors
    /// If the repository cannot be read or is not signed by its root, or has no such release.
    pub fn manifest_of(&self, release: &ReleaseName) -> Result<Manifest, RepositoryError> {
        let targets = metadata::read_current(self.dir())?.targets.signed;
        self.read_manifest(&targets, &release.target())?.ok_or_else(|| no_such(release))
    }

    /// Removes releases: nobody can fetch them any more, and their versions cannot be published
    /// again. Their files stay until [`Repository::collect`].
    ///
    /// # Errors
    /// If one does not exist, or is the last of the version that a channel points to; the keys are
    /// not this repository's; or a file cannot be written.
    pub async fn remove_releases(
        &self,
        keys: &Keys,
        releases: &[ReleaseName],
    ) -> Result<(), RepositoryError> {
        self.remove(keys, releases, None).await
    }

    /// Removes a channel.
    ///
    /// # Errors
    /// If it does not exist, the keys are not this repository's, or a file cannot be written.
    pub async fn remove_channel(
        &self,
        keys: &Keys,
        app: &AppId,
        channel: &Channel,
    ) -> Result<(), RepositoryError> {
        self.remove(keys, &[], Some((app, channel))).await
    }

    async fn remove(
        &self,
        keys: &Keys,
        releases: &[ReleaseName],
        channel: Option<(&AppId, &Channel)>,
    ) -> Result<(), RepositoryError> {
        let lock = self.lock().await?;
        let mut current = metadata::read_current(self.dir())?;
        let mut lists = BTreeMap::new();
        let targets = &mut current.targets.signed;
        for release in releases {
            if !take(targets, &release.target()) {
                return Err(no_such(release));
            }
            let list = self.list_of(targets, &mut lists, &release.app)?;
            let versions = list.releases.entry(release.platform.clone()).or_default();
            versions.push(release.version.clone());
        }
        if let Some((app, channel)) = channel {
            let name = channel_target(app, channel);
            let Some(bytes) = self.read_target(targets, &name)? else {
                let (app, channel) = (app.clone(), channel.clone());
                return Err(RepositoryError::NoSuchChannel { app, channel });
            };
            take(targets, &name);
            let serial = ChannelPointer::parse(&bytes)?.serial;
            self.list_of(targets, &mut lists, app)?.channels.insert(channel.clone(), serial);
        }
        let apps: BTreeSet<AppId> = releases.iter().map(|release| release.app.clone()).collect();
        self.channels_lead_somewhere(targets, &apps)?;
        let changed =
            lists.into_iter().map(|(app, list)| (removed_target(&app), list.into_bytes()));
        let changed: BTreeMap<String, Vec<u8>> = changed.collect();
        if changed.is_empty() {
            return Ok(());
        }
        self.commit(&lock, keys, current, Vec::new(), changed).await
    }

    fn list_of<'a>(
        &self,
        targets: &Targets,
        lists: &'a mut BTreeMap<AppId, RemovedList>,
        app: &AppId,
    ) -> Result<&'a mut RemovedList, RepositoryError> {
        if !lists.contains_key(app) {
            let known = self.removed(targets, app)?.unwrap_or_else(|| RemovedList::of(app));
            lists.insert(app.clone(), known);
        }
        Ok(lists.get_mut(app).expect("just inserted"))
    }

    /// What was removed of an app.
    pub(crate) fn removed(
        &self,
        targets: &Targets,
        app: &AppId,
    ) -> Result<Option<RemovedList>, RepositoryError> {
        let bytes = self.read_target(targets, &removed_target(app))?;
        Ok(bytes.map(|bytes| RemovedList::parse(&bytes)).transpose()?)
    }

    /// Checks that the channels of these apps point to versions that there are.
    fn channels_lead_somewhere(
        &self,
        targets: &Targets,
        apps: &BTreeSet<AppId>,
    ) -> Result<(), RepositoryError> {
        let names = || targets.targets.keys().map(TargetName::raw);
        for name in names().filter(|name| is_channel(name)) {
            let Some(bytes) = self.read_target(targets, name)? else { continue };
            let ChannelPointer { app, channel, version, .. } = ChannelPointer::parse(&bytes)?;
            let is_it = |it: &ReleaseName| it.app == app && it.version == version;
            if apps.contains(&app) && !names().filter_map(release_of_target).any(|it| is_it(&it)) {
                return Err(RepositoryError::OnChannel { app, version, channel });
            }
        }
        Ok(())
    }

    /// Removes files that no release and no channel needs, and old lists, if they are older than
    /// `min_age`: an upload puts its files in place before the list that names them.
    ///
    /// # Errors
    /// If the repository cannot be read, or a file cannot be removed. Then nothing that is needed
    /// is missing.
    pub async fn collect(&self, min_age: Duration) -> Result<Collected, RepositoryError> {
        let lock = self.lock().await?;
        let repository = self.clone();
        let collected = tokio::task::spawn_blocking(move || {
            let _held = lock;
            repository.collect_locked(min_age)
        });
        collected.await.map_err(|_| RepositoryError::Stopped)?
    }

    fn collect_locked(&self, min_age: Duration) -> Result<Collected, RepositoryError> {
        let Current { snapshot, targets, interrupted, .. } = metadata::read_current(self.dir())?;
        let mut collected = Collected::default();
        if interrupted {
            return Ok(collected);
        }
        let needed = self.needed(&targets.signed)?;
        let (snapshot, list) = (snapshot.signed.version.get(), targets.signed.version.get());
        for (relative, bytes) in repository_files(self.dir())? {
            let is_left = match RepositoryFile::of(&relative) {
                Some(
                    RepositoryFile::Blob(_) | RepositoryFile::Units(_) | RepositoryFile::Target(_),
                ) => !needed.contains(&relative),
                Some(RepositoryFile::Targets(version)) => version < list,
                Some(RepositoryFile::Snapshot(version)) => version < snapshot,
                Some(RepositoryFile::Root(_) | RepositoryFile::Timestamp) | None => false,
            };
            let path = self.dir().join(&relative);
            if is_left && age(&path).on_path("read", &path)? >= min_age {
                fs::remove_file(&path).on_path("remove", &path)?;
                collected.files += 1;
                collected.bytes += bytes;
            }
        }
        Ok(collected)
    }

    /// The paths of all files that the targets lead to, and of their own.
    fn needed(&self, targets: &Targets) -> Result<BTreeSet<String>, RepositoryError> {
        let mut needed = BTreeSet::new();
        for (name, target) in &targets.targets {
            let name = name.raw();
            needed.insert(target_path(name, &hex::encode(&target.hashes.sha256)));
            if is_channel(name) || is_removed_list(name) {
                continue;
            }
            let Some(manifest) = self.read_manifest(targets, name)? else { continue };
            let deltas = manifest.deltas.iter().map(|delta| &delta.root);
            for root in std::iter::once(&manifest.root).chain(deltas) {
                needed.extend([blob_path(root), units_path(root)]);
            }
        }
        Ok(needed)
    }
}

/// Makes a file count as new for [`Repository::collect`].
pub(crate) fn touch(path: &Path) -> io::Result<()> {
    File::open(path)?.set_modified(SystemTime::now())
}

fn age(path: &Path) -> io::Result<Duration> {
    let modified = fs::metadata(path)?.modified()?;
    Ok(SystemTime::now().duration_since(modified).unwrap_or_default())
}

fn take(targets: &mut Targets, name: &str) -> bool {
    TargetName::new(name).is_ok_and(|name| targets.targets.remove(&name).is_some())
}

fn no_such(release: &ReleaseName) -> RepositoryError {
    let ReleaseName { app, version, .. } = release.clone();
    RepositoryError::NoSuchRelease { app, version }
}
