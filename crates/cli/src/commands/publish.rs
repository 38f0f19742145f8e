//! `cohort publish`: sign a release and put it into the repository.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use cohort_artifact::{
    AppId, Channel, Platform, PublishRequest, Published, Rollback, Version, parse_rollback,
};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::agent_keys::own_platform;
use crate::args::Global;
use crate::clock::bytes;
use crate::commands::context_of;
use crate::failure::{Exit, Failure};
use crate::output::{Output, say, say_json};

/// What `cohort publish` takes.
#[derive(Debug, Args)]
pub(crate) struct PublishArgs {
    /// A folder, which is packed; or a tarball (.tar, .tar.gz, .tar.zst), taken as it is
    path: PathBuf,
    /// The app
    #[arg(long)]
    app: AppId,
    /// The version
    #[arg(long)]
    version: Version,
    /// The platform that it is made for [default: this machine's]
    #[arg(long, default_value_t = default_platform(), hide_default_value = true)]
    platform: Platform,
    /// Point this channel to it in the same step; with several platforms, do so with the last
    #[arg(long)]
    channel: Option<Channel>,
    /// Whether it can be rolled back: revert, freeze or forward-only [default: its cohort.toml's,
    /// else revert]
    #[arg(long, value_parser = rollback, value_name = "KIND")]
    rollback: Option<Rollback>,
    /// Where to publish [default: the context's]
    #[command(flatten)]
    place: Place,
}

/// A repository and the keys to sign for it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Place {
    /// The repository's folder [default: the context's]
    #[arg(long, value_name = "DIR")]
    pub(crate) repository: Option<PathBuf>,
    /// The folder of signing keys [default: the context's]
    #[arg(long, value_name = "DIR")]
    pub(crate) keys: Option<PathBuf>,
}

fn default_platform() -> Platform {
    Platform::new(own_platform()).expect("names of systems and processors are platform names")
}

fn rollback(text: &str) -> Result<Rollback, String> {
    parse_rollback(text).map_err(|error| error.to_string())
}

/// What was published, for programs.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    app: &'a AppId,
    version: &'a Version,
    platform: &'a Platform,
    length: u64,
    artifact: String,
    manifest: String,
    channel: Option<&'a Channel>,
    already_there: bool,
}

/// Publishes it.
pub(crate) async fn run(global: &Global, args: &PublishArgs) -> Result<Exit, Failure> {
    let (repository, keys) = args.place.open(global)?;
    let mut request = PublishRequest::new(
        &args.path,
        args.app.clone(),
        args.version.clone(),
        args.platform.clone(),
    );
    request.channel.clone_from(&args.channel);
    request.rollback = args.rollback;
    let spinner = spinner(global, format!("packing and hashing {}", args.path.display()));
    let published = repository.publish(&keys, &request).await;
    spinner.finish_and_clear();
    let published = published.map_err(|error| Failure::of("publish", &error))?;
    match global.output {
        Output::Json => say_json(&answer(&published)),
        Output::Text => say(&text(&published, &args.path)),
    }
    Ok(Exit::Done)
}

impl Place {
    /// Opens the repository and reads the keys. With both given, no context is needed.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub(crate) fn open(
        &self,
        global: &Global,
    ) -> Result<(cohort_artifact::Repository, cohort_artifact::Keys), Failure> {
        if let (Some(repository), Some(keys)) = (&self.repository, &self.keys) {
            let repository = cohort_artifact::Repository::open(repository)
                .map_err(|error| Failure::of("repository", &error))?;
            let keys =
                cohort_artifact::Keys::load(keys).map_err(|error| Failure::of("keys", &error))?;
            return Ok((repository, keys));
        }
        let context = context_of(global)?;
        let repository = context.repository(self.repository.as_deref())?;
        Ok((repository, context.keys(self.keys.as_deref())?))
    }
}

fn spinner(global: &Global, message: String) -> ProgressBar {
    if global.output == Output::Json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

fn answer(published: &Published) -> Answer<'_> {
    let manifest = &published.manifest;
    Answer {
        app: &manifest.app,
        version: &manifest.version,
        platform: &manifest.platform,
        length: manifest.length,
        artifact: manifest.root.to_string(),
        manifest: published.manifest_digest.to_string(),
        channel: published.channel.as_ref().map(|pointer| &pointer.channel),
        already_there: published.already_there,
    }
}

fn text(published: &Published, path: &Path) -> String {
    let manifest = &published.manifest;
    let (app, version) = (&manifest.app, &manifest.version);
    let mut text = format!(
        "{} {app} {version} for {}: {}, {} files, from {}\n",
        if published.already_there { "was published already:" } else { "published" },
        manifest.platform,
        bytes(manifest.length),
        manifest.entries,
        path.display(),
    );
    match &published.channel {
        Some(pointer) => {
            text.push_str(&format!("channel {} points to {}\n", pointer.channel, pointer.version));
        }
        None => text.push_str(&format!("next: cohort channel set {app} stable {version}\n")),
    }
    text
}
