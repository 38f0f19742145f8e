//! `cohort repository`: operations on a whole repository.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use cohort_artifact::AppId;
use cohort_mirror::{Bucket, BucketError, BucketSettings, Pushed, push};
use cohort_view::command::Flag;
use cohort_view::figures::bytes;
use cohort_view::hint::Hint;
use indicatif::ProgressBar;

use crate::answer::Answer;
use crate::args::Global;
use crate::commands::context_of;
use crate::commands::publish::spinner;
use crate::commands::release::{Force, keep_newest};
use crate::commands::repository_keys::{self, KeyCommand};
use crate::failure::{Exit, Failure};
use crate::workplace::Place;

#[derive(Debug, Subcommand)]
pub(crate) enum RepositoryCommand {
    /// Copy the repository to a bucket, for mirrors and servers to read
    Push(PushArgs),
    /// Remove old releases: what remains are the newest, those on channels, and those that run
    Gc(GcArgs),
    #[command(flatten)]
    Keys(KeyCommand),
}

fn at_least_two(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| *count >= 2);
    count.ok_or_else(|| "at least 2: groups may have to go back".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// How many releases of each app and platform remain, at least 2: one to go back to
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = at_least_two)]
    keep: usize,
    /// Only of this app
    #[arg(long)]
    app: Option<AppId>,
    /// Only list what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIRECTORY;
    /// credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_REGION,
    /// AWS_ENDPOINT_URL, …) or the machine's role
    #[arg(value_name = "URL")]
    bucket: String,
    /// Repository directory [default: from the context]
    #[arg(long, value_name = "DIR")]
    repository: Option<PathBuf>,
    /// Send files that exist already, too: to repair a bucket that somebody changed
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(global: &Global, command: &RepositoryCommand) -> Result<Exit, Failure> {
    match command {
        RepositoryCommand::Push(args) => push_to_bucket(global, args).await,
        RepositoryCommand::Gc(GcArgs { keep, app, dry_run, force, place }) => {
            keep_newest(global, place, *force, *keep, app.as_ref(), *dry_run).await
        }
        RepositoryCommand::Keys(command) => repository_keys::run(global, command).await,
    }
}

async fn push_to_bucket(global: &Global, args: &PushArgs) -> Result<Exit, Failure> {
    let dir = folder(global, args.repository.as_deref())?;
    let bucket = Bucket::open(&args.bucket, &BucketSettings::from_env())
        .map_err(|error| failure(&error).exit(Exit::Usage))?;
    let spinner = spinner(global, format!("listing {}", bucket.name()));
    let pushed = push(&dir, &bucket, args.all, &|sent| progress(&spinner, &bucket, sent)).await;
    spinner.finish_and_clear();
    let pushed = pushed.map_err(|error| failure(&error))?;
    let Pushed { files, bytes, there, timestamp } = pushed;
    let answer = Answer::RepositoryPush { bucket: bucket.name(), files, bytes, there, timestamp };
    global.output.answer(&answer, || text(bucket.name(), &pushed));
    Ok(Exit::Done)
}

fn progress(spinner: &ProgressBar, bucket: &Bucket, sent: u64) {
    spinner.inc(sent);
    spinner.set_message(format!("{} sent to {}", bytes(spinner.position()), bucket.name()));
    spinner.enable_steady_tick(Duration::from_millis(100));
}

fn folder(global: &Global, given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(dir) = given {
        return Ok(dir.to_owned());
    }
    context_of(global)?.repository_dir().ok_or_else(|| {
        Failure::usage("your context has no repository on this machine")
            .hint(Hint::add(
                "on the hub's machine, use `repository` in its data directory",
                Flag::Repository,
            ))
            .hint("or set repository_bucket in hub.toml: the hub then pushes every release")
    })
}

fn failure(error: &BucketError) -> Failure {
    Failure::of("bucket", error).hints(error.hints())
}

fn text(bucket: &str, pushed: &Pushed) -> String {
    let Pushed { files, there, .. } = pushed;
    match files {
        0 => format!("{bucket}: up to date, {there} files\n"),
        files => {
            format!("{bucket}: {files} files sent ({}), {there} up to date\n", bytes(pushed.bytes))
        }
    }
}
