//! `cohort publish`: sign a release and add it to the repository.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use cohort_artifact::{
    AppId, Channel, ChannelPointer, DeltaTried, Judge, Needs, Platform, PublishRequest, Published,
    Rollback, Version, parse_rollback,
};
use cohort_base::chain;
use cohort_core::ids::CheckName;
use cohort_core::policy::{Check, Duration as Time, InvalidValue, Policy, Probe};
use cohort_registry::fleet::Fleet;
use cohort_view::command::Command;
use cohort_view::figures::bytes;
use cohort_wire::http::Call;
use cohort_wire::hub::FLEET;
use indicatif::ProgressBar;

use crate::agent_keys::own_platform;
use crate::answer::{Answer, DeltaAnswer, PublishAnswer};
use crate::args::Global;
use crate::connect::Hub;
use crate::context::Context;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::output::{Output, note};
use crate::policy_known::KnownPolicy;
use crate::workplace::Place;

/// The channel that the next step is shown with.
const FIRST_CHANNEL: &str = "stable";

/// How long the hub may take to say what the policy is, which is only for a warning.
const POLICY_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(crate) struct PublishArgs {
    /// Directory to pack, or a tarball (.tar, .tar.gz, .tar.zst) to publish as is
    path: PathBuf,
    /// App name
    #[arg(long)]
    app: AppId,
    /// Version to publish
    #[arg(long)]
    version: Version,
    /// Platform that it is built for [default: this machine's]
    #[arg(long, default_value_t = default_platform(), hide_default_value = true)]
    platform: Platform,
    /// Point this channel to it in the same step; with several platforms, only for the last
    #[arg(long)]
    channel: Option<Channel>,
    /// What to do if it fails: revert, freeze or forward-only [default: from its cohort.toml,
    /// else revert]
    #[arg(long, value_parser = parse_rollback, value_name = "KIND")]
    rollback: Option<Rollback>,
    /// Make no deltas from earlier versions; every server then downloads the whole artifact
    #[arg(long)]
    no_deltas: bool,
    /// How long deltas may take, all together; those that are made by then are published
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "1m")]
    #[arg(conflicts_with = "no_deltas")]
    delta_budget: Time,
    /// Refuse what is probably wrong, too
    #[arg(long)]
    strict: bool,
    /// Pack and judge the release as servers will, and publish nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: Place,
}

fn time(text: &str) -> Result<Time, InvalidValue> {
    text.to_owned().try_into()
}

impl PublishArgs {
    fn request(&self) -> PublishRequest {
        let PublishArgs { path, app, version, platform, .. } = self;
        let mut request = PublishRequest::new(path, app.clone(), version.clone(), platform.clone());
        request.channel.clone_from(&self.channel);
        request.rollback = self.rollback;
        let budget = Duration::from_millis(self.delta_budget.ms);
        request.delta_budget = (!self.no_deltas).then_some(budget);
        request.judge = judge(self.platform.clone(), self.strict);
        request
    }
}

/// Judges a release as servers of a platform will.
pub(crate) fn judge(platform: Platform, strict: bool) -> Judge {
    Arc::new(move |release| {
        let service_file = release.package_file.as_deref();
        let warnings = cohort_host::judge_release(&release.contents, service_file, &platform)?;
        match warnings.is_empty() || !strict {
            true => Ok(warnings),
            false => Err(format!("{} (--strict)", warnings.join("; "))),
        }
    })
}

pub(crate) fn default_platform() -> Platform {
    Platform::new(own_platform()).expect("names of systems and processors are platform names")
}

pub(crate) async fn run(global: &Global, args: &PublishArgs) -> Result<Exit, Failure> {
    let mut request = args.request();
    if args.dry_run {
        return dry_run(global, request).await;
    }
    let needs = Needs::Release(args.app.clone(), args.version.clone());
    let (workplace, keys) = args.place.open(global, needs).await?;
    let spinner = spinner(global, format!("packing and hashing {}", args.path.display()));
    let shown = spinner.clone();
    request.told = Arc::new(move |what| shown.set_message(what.to_owned()));
    if request.delta_budget.is_some() {
        request.bases = workplace.bases(&args.app, &args.platform, &request.told).await?;
    }
    let known = workplace.repository().channels().unwrap_or_default();
    let is_stable =
        |known: &ChannelPointer| known.app == args.app && known.channel.as_str() == FIRST_CHANNEL;
    let has_first = known.iter().any(is_stable);
    let published = workplace.repository().publish(&keys, &request).await;
    let finished = match &published {
        Ok(published) => {
            workplace.keep_base(&published.manifest.root);
            spinner.set_message("uploading to the hub");
            workplace.finish(async |copy| copy.publish_again(&keys, published).await).await
        }
        Err(_) => Ok(()),
    };
    spinner.finish_and_clear();
    let published = published.or_fail("publish")?;
    finished?;
    warn(&published.warnings);
    for name in undeclared(global, &published).await {
        note(&format!(
            "warning: the policy of {} names the check `{name}`, which {} does not declare: \
             servers refuse it; add [checks.{name}] to cohort.toml and publish another version",
            args.app, args.version
        ));
    }
    global.output.answer(&answer(&published), || text(&published, &args.path, has_first));
    Ok(Exit::Done)
}

/// Packs and judges a release, and publishes nothing.
pub(crate) async fn dry_run(global: &Global, request: PublishRequest) -> Result<Exit, Failure> {
    let spinner = spinner(global, format!("packing {}", request.path.display()));
    let tried = tokio::task::spawn_blocking(move || cohort_artifact::try_out(&request)).await;
    spinner.finish_and_clear();
    let (manifest, warnings) = tried.or_fail("publish")?.or_fail("publish")?;
    warn(&warnings);
    let (unpacked_bytes, entries) = (manifest.unpacked_bytes, manifest.entries);
    let found = Answer::PublishDryRun { unpacked_bytes, entries, warnings: &warnings };
    global.output.answer(&found, || {
        let size = bytes(unpacked_bytes);
        format!("servers would take it: {entries} files, {size} unpacked; nothing was published\n")
    });
    Ok(Exit::Done)
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        note(&format!("warning: {warning}"));
    }
}

/// The checks of the app's policy that the release should declare and does not, as far as the hub
/// tells: it may be away, and a publisher may not ask it.
async fn undeclared(global: &Global, published: &Published) -> Vec<CheckName> {
    let known = async {
        let context = Context::load(global).ok()?;
        let (hub, identity) = (Hub::of(&context).ok()?, context.identity().ok()?);
        let fleet: Fleet = hub.call(Call::get(FLEET).deadline(POLICY_DEADLINE)).await.ok()?;
        let known = KnownPolicy::in_fleet(&fleet, &published.manifest.app, &identity).ok()??;
        serde_json::from_value::<Policy>(known.policy).ok()
    };
    let checks = known.await.map(|policy| policy.checks).unwrap_or_default();
    let missing = |check: Check| match check.probe {
        Probe::Exec { name } if name.of_host().is_none() => {
            (!published.checks.contains(name.as_str())).then_some(name)
        }
        Probe::Exec { .. } | Probe::Tcp(_) | Probe::Http(_) | Probe::Grpc(_) => None,
    };
    checks.into_iter().filter_map(missing).collect()
}

/// A progress indicator on terminals.
pub(crate) fn spinner(global: &Global, message: String) -> ProgressBar {
    if global.output == Output::Json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

fn answer(published: &Published) -> Answer<'_> {
    let manifest = &published.manifest;
    Answer::Publish(PublishAnswer {
        app: &manifest.app,
        version: &manifest.version,
        platform: &manifest.platform,
        length: manifest.length,
        artifact: &manifest.root,
        manifest: &published.manifest_digest,
        channel: published.channel.as_ref().map(|pointer| &pointer.channel),
        already_there: published.already_there,
        warnings: &published.warnings,
        deltas: published.deltas.iter().map(delta_answer).collect(),
    })
}

fn delta_answer(tried: &DeltaTried) -> DeltaAnswer<'_> {
    let made = tried.outcome.as_ref();
    DeltaAnswer {
        from: &tried.from,
        length: made.ok().map(|delta| delta.length),
        delta: made.ok().map(|delta| &delta.root),
        method: made.ok().map(|delta| delta.method.as_str()),
        reason: made.err().map(|why| chain(why)),
    }
}

fn text(published: &Published, path: &Path, has_first: bool) -> String {
    let manifest = &published.manifest;
    let (app, version) = (&manifest.app, &manifest.version);
    let mut text = format!(
        "{} {app} {version} for {}: {}, {} files, from {}\n",
        if published.already_there { "already published:" } else { "published" },
        manifest.platform,
        bytes(manifest.length),
        manifest.entries,
        path.display(),
    );
    for tried in &published.deltas {
        match &tried.outcome {
            Ok(delta) => text.push_str(&format!(
                "delta from {}: {}, {} times smaller\n",
                tried.from,
                bytes(delta.length),
                manifest.length / delta.length.max(1),
            )),
            Err(why) => {
                text.push_str(&format!("no delta from {}: {}\n", tried.from, chain(why)));
            }
        }
    }
    match &published.channel {
        Some(pointer) => {
            text.push_str(&format!("channel {} points to {}\n", pointer.channel, pointer.version));
        }
        None => {
            let (app, version) = (Some(app.clone()), Some(version.clone()));
            let channel = Some(FIRST_CHANNEL.to_owned());
            let next = Command::ChannelSet { app, channel, version, create: !has_first };
            text.push_str(&format!("next: {next}\n"));
        }
    }
    text
}
