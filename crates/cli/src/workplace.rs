//! The repository to publish to: a directory on this machine, or the hub's over the network.
//!
//! Signing keys never leave this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use cohort_artifact::client::{AddressError, ClientLimits, MirrorClient};
use cohort_artifact::{
    AppId, Collected, Digest, Keys, Lifetimes, Mirror, Needs, Platform, Repository,
    RepositoryError, Told, TrustOptions, TrustedRepository, UNUSED_AGE_MIN, WorkingCopy,
};
use cohort_base::{OnPath as _, chain, durable};
use cohort_hub::UploadError;
use cohort_view::command::Command;
use cohort_view::hint::Hint;
use cohort_wire::hub::OUTDATED;
use cohort_wire::tls::{IdentitySlot, repository_reader};
use tempfile::TempDir;

use crate::args::Global;
use crate::connect::Hub;
use crate::context::Context;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::layers::absolute;
use crate::passphrase;

/// How often a change is made again because another publisher was faster. Of publishers at once,
/// one succeeds at each try.
const TRIES_MAX: u32 = 20;
/// The wait before the first of these; each is longer by as much.
const PAUSE: Duration = Duration::from_millis(100);

/// Flags for the repository and the keys to sign for it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Place {
    /// Repository directory [default: from the context, else the hub's repository over the network]
    #[arg(long, value_name = "DIR")]
    pub(crate) repository: Option<PathBuf>,
    /// Directory of signing keys [default: from the context]
    #[arg(long, value_name = "DIR")]
    pub(crate) keys: Option<PathBuf>,
}

#[derive(Debug)]
pub(crate) enum Workplace {
    Here(Repository),
    /// A working copy of the hub's, uploaded by [`Workplace::finish`].
    Hub {
        /// Metadata, and the published artifacts.
        copy: WorkingCopy,
        folder: TempDir,
        hub: Hub,
        /// The verified reader that it was fetched with.
        reader: Box<TrustedRepository>,
        /// Directory of artifacts to make deltas from.
        bases: PathBuf,
        /// What it was fetched with.
        context: Box<Context>,
        needs: Needs,
    },
}

impl Place {
    /// Opens the repository and reads the keys. Needs no context if both directories are given.
    pub(crate) async fn open(
        &self,
        global: &Global,
        needs: Needs,
    ) -> Result<(Workplace, Keys), Failure> {
        // Keys first: without them there is nothing to fetch for.
        let dir = match &self.keys {
            Some(dir) => dir.clone(),
            None => Context::load(global)?.keys_dir()?,
        };
        let keys = Keys::load_to_publish(&dir, &passphrase::ask).or_fail("keys")?;
        Ok((self.open_to_read(global, needs).await?, keys))
    }

    /// Opens the repository without keys.
    pub(crate) async fn open_to_read(
        &self,
        global: &Global,
        needs: Needs,
    ) -> Result<Workplace, Failure> {
        let here = |dir: &Path| {
            Repository::open(dir).map(Workplace::Here).map_err(|error| {
                Failure::of("repository", &error).hint(Hint::run_to("make one", Command::Init))
            })
        };
        if let Some(dir) = &self.repository {
            return here(dir);
        }
        let context = Context::load(global)?;
        match context.repository_dir() {
            Some(dir) => here(&dir),
            None => Workplace::pull(&context, needs).await,
        }
    }
}

impl Workplace {
    async fn pull(context: &Context, needs: Needs) -> Result<Self, Failure> {
        let hub = Hub::of(context)?;
        let cache = context.cache_dir();
        let folder = fs::create_dir_all(&cache)
            .and_then(|()| TempDir::with_prefix_in("publishing-", &cache))
            .on_path("create directory in", &cache)
            .or_fail("file")?;
        let reader = reader(context).await?;
        let copy = WorkingCopy::pull(folder.path(), &reader, &needs, Lifetimes::default())
            .await
            .or_fail("repository")?;
        let (reader, bases) = (Box::new(reader), cache.join("bases"));
        let context = Box::new(context.clone());
        Ok(Workplace::Hub { copy, folder, hub, reader, bases, context, needs })
    }

    /// Artifacts to make deltas from that are not in the repository, by root hash.
    pub(crate) async fn bases(
        &self,
        app: &AppId,
        platform: &Platform,
        told: &Told,
    ) -> Result<BTreeMap<Digest, PathBuf>, Failure> {
        match self {
            Workplace::Here(_) => Ok(BTreeMap::new()),
            Workplace::Hub { copy, reader, bases, .. } => {
                copy.fetch_bases(reader, app, platform, bases, told).await.or_fail("repository")
            }
        }
    }

    /// Stores a published artifact, for the next release's delta.
    pub(crate) fn keep_base(&self, artifact: &Digest) {
        if let Workplace::Hub { copy, bases, .. } = self
            && let Err(error) = copy.keep_base(artifact, bases)
        {
            let error = chain(&error);
            tracing::debug!(error, "cannot store the artifact; the next `publish` fetches it");
        }
    }

    pub(crate) fn repository(&self) -> &Repository {
        match self {
            Workplace::Here(repository) => repository,
            Workplace::Hub { copy, .. } => copy.repository(),
        }
    }

    /// Removes what was removed from disk, if it is on this machine.
    pub(crate) async fn collect(&self) -> Result<Option<Collected>, Failure> {
        match self {
            Workplace::Here(repository) => {
                repository.collect(UNUSED_AGE_MIN).await.map(Some).or_fail("repository")
            }
            Workplace::Hub { .. } => Ok(None),
        }
    }

    /// Uploads the changes to the hub, if it is the hub's repository. Whenever another publisher
    /// was faster, `again` makes and signs the change on top of that.
    pub(crate) async fn finish(
        self,
        mut again: impl AsyncFnMut(&Repository) -> Result<(), RepositoryError>,
    ) -> Result<(), Failure> {
        let mut workplace = self;
        let mut tries = 0;
        loop {
            let Workplace::Hub { copy, folder, hub, context, needs, .. } = &workplace else {
                return Ok(());
            };
            let files = copy.new_files().or_fail("repository")?;
            match upload(hub, folder.path(), &files).await {
                Err(failure) if failure.kind == OUTDATED && tries < TRIES_MAX => tries += 1,
                done => return done,
            }
            // A mirror may be behind.
            tokio::time::sleep(PAUSE * tries).await;
            workplace = Workplace::pull(context, needs.clone()).await?;
            again(workplace.repository()).await.or_fail("repository")?;
        }
    }

    /// Uploads a change of keys to the hub, all of it at once, if it is the hub's repository.
    pub(crate) async fn finish_key_change(self) -> Result<(), Failure> {
        let Workplace::Hub { copy, folder, hub, .. } = self else { return Ok(()) };
        let change = copy.repository().signed_change().or_fail("repository")?;
        let path = folder.path().join(Repository::KEY_CHANGE);
        durable::write(&path, &change, durable::READABLE)
            .on_path("write", &path)
            .or_fail("file")?;
        upload(&hub, folder.path(), &[Repository::KEY_CHANGE.into()]).await
    }
}

/// Uploads files in `folder` to the hub, in order.
async fn upload(hub: &Hub, folder: &Path, files: &[PathBuf]) -> Result<(), Failure> {
    let mut last = None;
    for target in hub.targets() {
        let sent = cohort_hub::upload(hub.client(), target, folder, files, |_| {});
        match sent.await {
            Ok(()) => return Ok(()),
            Err(UploadError::Send { file, source }) => {
                let away = source.is_away();
                let failure = Failure::from(source);
                let error = format!("cannot upload {file}: {}", failure.error);
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

/// A reader of the context's repository: its directory if it is on this machine, else its mirrors.
/// Everything is verified against the trusted root.
pub(crate) async fn reader(context: &Context) -> Result<TrustedRepository, Failure> {
    let root = context.trusted_root().ok_or_else(|| {
        Failure::new("configuration", "your context has no trusted_root").exit(Exit::Usage)
    })?;
    let bytes = fs::read(&root).on_path("read", &root).or_fail("file")?;
    let mut mirrors = Vec::new();
    if let Some(dir) = context.repository_dir() {
        mirrors.push(Mirror::Folder(absolute(&dir)));
    } else {
        for mirror in context.mirrors() {
            let wrong = |error: AddressError| Failure::usage(chain(&error));
            mirrors.push(mirror.parse().map_err(wrong)?);
        }
    }
    let mut client = MirrorClient::new(ClientLimits::default()).or_fail("repository")?;
    if let Ok(identity) = context.identity() {
        let tls = repository_reader(&IdentitySlot::new(identity)).or_fail("identity")?;
        client = client.with_certificate(tls).or_fail("repository")?;
    }
    let options = TrustOptions {
        root: bytes,
        store: context.cache_dir().join("repository"),
        mirrors,
        client,
    };
    TrustedRepository::open(options).await.or_fail("repository")
}
