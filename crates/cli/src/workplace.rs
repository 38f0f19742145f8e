//! Where releases are published: a repository here, or the hub's, over the network.
//!
//! The signing keys stay on this machine in either case.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use cohort_artifact::client::{AddressError, ClientLimits};
use cohort_artifact::{
    AppId, Digest, Keys, Lifetimes, Mirror, Platform, Repository, Told, TrustOptions,
    TrustedRepository, Version, WorkingCopy,
};
use cohort_hub::UploadError;
use tempfile::TempDir;

use crate::args::Global;
use crate::connect::{Hub, is_away};
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::layers::absolute;

/// A repository and the keys to sign for it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Place {
    /// The repository's folder [default: the context's; without one, the hub's, over the network]
    #[arg(long, value_name = "DIR")]
    pub(crate) repository: Option<PathBuf>,
    /// The folder of signing keys [default: the context's]
    #[arg(long, value_name = "DIR")]
    pub(crate) keys: Option<PathBuf>,
}

/// A repository that can be changed.
#[derive(Debug)]
pub(crate) enum Workplace {
    /// In a folder of this machine.
    Here(Repository),
    /// The hub's: a working copy, which is uploaded in the end.
    Hub {
        /// The copy.
        copy: WorkingCopy,
        /// Its folder; removed with it.
        folder: TempDir,
        /// Where it goes.
        hub: Hub,
        /// What it was read by.
        reader: Box<TrustedRepository>,
        /// The folder of artifacts that deltas start from.
        bases: PathBuf,
    },
}

impl Place {
    /// Opens the repository and reads the keys. With both folders given, no context is needed.
    /// `release` is what is about to be published.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub(crate) async fn open(
        &self,
        global: &Global,
        release: Option<(&AppId, &Version)>,
    ) -> Result<(Workplace, Keys), Failure> {
        // The keys first: without them, nothing need be fetched.
        let keys = match &self.keys {
            Some(dir) => Keys::load(dir).map_err(|error| Failure::of("keys", &error))?,
            None => Context::load(global)?.keys()?,
        };
        Ok((self.open_to_read(global, release).await?, keys))
    }

    /// Opens the repository, without keys.
    ///
    /// # Errors
    /// When it cannot be used.
    pub(crate) async fn open_to_read(
        &self,
        global: &Global,
        release: Option<(&AppId, &Version)>,
    ) -> Result<Workplace, Failure> {
        let here = |dir: &Path| {
            Repository::open(dir).map(Workplace::Here).map_err(|error| {
                Failure::of("repository", &error).hint("cohort init --dir DIR makes one")
            })
        };
        if let Some(dir) = &self.repository {
            return here(dir);
        }
        let context = Context::load(global)?;
        match context.repository_dir() {
            Some(dir) => here(&dir),
            None => Workplace::pull(&context, release).await,
        }
    }
}

impl Workplace {
    async fn pull(context: &Context, release: Option<(&AppId, &Version)>) -> Result<Self, Failure> {
        let hub = Hub::of(context)?;
        let cache = context.cache_dir();
        let folder = fs::create_dir_all(&cache)
            .and_then(|()| TempDir::with_prefix_in("publishing-", &cache))
            .map_err(|error| {
                Failure::new("file", format!("{} cannot be used: {error}", cache.display()))
            })?;
        let reader = reader(context).await?;
        let copy = WorkingCopy::pull(folder.path(), &reader, release, Lifetimes::default())
            .await
            .map_err(|error| Failure::of("repository", &error))?;
        let (reader, bases) = (Box::new(reader), cache.join("bases"));
        Ok(Workplace::Hub { copy, folder, hub, reader, bases })
    }

    /// The artifacts that a new release gets deltas from, as far as they are not in the repository.
    ///
    /// # Errors
    /// When they cannot be kept here.
    pub(crate) async fn bases(
        &self,
        app: &AppId,
        platform: &Platform,
        told: &Told,
    ) -> Result<BTreeMap<Digest, PathBuf>, Failure> {
        match self {
            Workplace::Here(_) => Ok(BTreeMap::new()),
            Workplace::Hub { copy, reader, bases, .. } => copy
                .fetch_bases(reader, app, platform, bases, told)
                .await
                .map_err(|error| Failure::of("repository", &error)),
        }
    }

    /// Keeps what was published for the next release's delta.
    pub(crate) fn keep_base(&self, artifact: &Digest) {
        if let Workplace::Hub { copy, bases, .. } = self
            && let Err(error) = copy.keep_base(artifact, bases)
        {
            tracing::debug!(%error, "the artifact is not kept; the next publishing fetches it");
        }
    }

    /// The repository to change.
    pub(crate) fn repository(&self) -> &Repository {
        match self {
            Workplace::Here(repository) => repository,
            Workplace::Hub { copy, .. } => copy.repository(),
        }
    }

    /// Brings what was changed to where readers find it.
    ///
    /// # Errors
    /// When the hub does not take it. Readers then see the repository as it was.
    pub(crate) async fn finish(self) -> Result<(), Failure> {
        let Workplace::Hub { copy, folder, hub, .. } = self else { return Ok(()) };
        let files = copy.new_files().map_err(|error| Failure::of("repository", &error))?;
        let mut last = None;
        for target in hub.targets() {
            let sent = cohort_hub::upload(hub.client(), target, folder.path(), &files, |_| {});
            match sent.await {
                Ok(()) => return Ok(()),
                Err(UploadError::Send { file, source }) => {
                    let away = is_away(&source);
                    let failure = Failure::from(source);
                    let error = format!("{file} was not uploaded: {}", failure.error);
                    let failure = Failure { error, ..failure };
                    if !away {
                        return Err(failure);
                    }
                    last = Some(failure);
                }
                Err(error) => return Err(Failure::of("upload", &error)),
            }
        }
        Err(last.unwrap_or_else(|| Failure::new("upload", "no address of the hub is known")))
    }
}

/// A reader of the context's repository: the folder, if it is here, else its mirrors. It believes
/// nothing that the trusted root does not vouch for.
///
/// # Errors
/// When the context names no root to trust, or the root or its store cannot be used.
pub(crate) async fn reader(context: &Context) -> Result<TrustedRepository, Failure> {
    let root = context.trusted_root().ok_or_else(|| {
        Failure::new("configuration", "your context names no trusted_root of the repository")
            .exit(Exit::Usage)
    })?;
    let bytes = fs::read(&root).map_err(|error| {
        Failure::new("file", format!("{} cannot be read: {error}", root.display()))
    })?;
    let mut mirrors = Vec::new();
    if let Some(dir) = context.repository_dir() {
        mirrors.push(Mirror::Folder(absolute(&dir)));
    } else {
        for mirror in context.mirrors() {
            mirrors.push(
                mirror.parse().map_err(|error: AddressError| Failure::usage(error.to_string()))?,
            );
        }
    }
    let options = TrustOptions {
        root: bytes,
        store: context.cache_dir().join("repository"),
        mirrors,
        limits: ClientLimits::default(),
    };
    TrustedRepository::open(options).await.map_err(|error| Failure::of("repository", &error))
}
