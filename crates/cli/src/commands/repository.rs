//! `cohort repository`: what is done with a repository as a whole.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use cohort_mirror::{Bucket, BucketError, BucketSettings, Pushed, push};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::args::Global;
use crate::clock::bytes;
use crate::commands::context_of;
use crate::commands::publish::spinner;
use crate::failure::{Exit, Failure};
use crate::output::{Output, say, say_json};

/// `cohort repository …`.
#[derive(Debug, Subcommand)]
pub(crate) enum RepositoryCommand {
    /// Bring the repository into a bucket, from where mirrors and servers read it
    Push(PushArgs),
}

/// What `cohort repository push` takes.
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER;
    /// credentials and the store's address come from the environment (AWS_ACCESS_KEY_ID,
    /// AWS_REGION, AWS_ENDPOINT_URL, …) or from the machine's role
    #[arg(value_name = "URL")]
    bucket: String,
    /// The repository's folder [default: the context's]
    #[arg(long, value_name = "DIR")]
    repository: Option<PathBuf>,
    /// Send what is there already as well: to mend a bucket that somebody has changed
    #[arg(long)]
    all: bool,
}

/// What was pushed, for programs.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    bucket: &'a str,
    files: u64,
    bytes: u64,
    there: u64,
    timestamp: u64,
}

/// Does it.
pub(crate) async fn run(global: &Global, command: &RepositoryCommand) -> Result<Exit, Failure> {
    let RepositoryCommand::Push(args) = command;
    let dir = folder(global, args.repository.as_deref())?;
    let bucket = Bucket::open(&args.bucket, &BucketSettings::from_env())
        .map_err(|error| failure(&error).exit(Exit::Usage))?;
    let spinner = spinner(global, format!("looking at what {} has", bucket.name()));
    let pushed = push(&dir, &bucket, args.all, &|sent| told(&spinner, &bucket, sent)).await;
    spinner.finish_and_clear();
    let pushed = pushed.map_err(|error| failure(&error))?;
    match global.output {
        Output::Json => {
            let Pushed { files, bytes, there, timestamp } = pushed;
            say_json(&Answer { bucket: bucket.name(), files, bytes, there, timestamp });
        }
        Output::Text => say(&text(&pushed, &bucket)),
    }
    Ok(Exit::Done)
}

fn told(spinner: &ProgressBar, bucket: &Bucket, sent: u64) {
    spinner.inc(sent);
    spinner.set_message(format!("{} sent to {}", bytes(spinner.position()), bucket.name()));
    spinner.enable_steady_tick(Duration::from_millis(100));
}

fn folder(global: &Global, given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(dir) = given {
        return Ok(dir.to_owned());
    }
    context_of(global)?.repository_dir().ok_or_else(|| {
        Failure::usage("your context names no repository on this machine")
            .hint("say --repository DIR; on the hub's machine: `repository` in its data folder")
            .hint("or let the hub do it at every publishing: repository_bucket in hub.toml")
    })
}

fn failure(error: &BucketError) -> Failure {
    Failure::of("bucket", error).hints(error.hints())
}

fn text(pushed: &Pushed, bucket: &Bucket) -> String {
    let (name, there) = (bucket.name(), pushed.there);
    match pushed.files {
        0 => format!("{name} has all {there} files already\n"),
        files => {
            let sent = bytes(pushed.bytes);
            format!("{name}: {files} files sent ({sent}), {there} were there already\n")
        }
    }
}
