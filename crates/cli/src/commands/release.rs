//! `cohort release`: what is published.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use cohort_artifact::{
    AppId, Collected, Keys, Manifest, Needs, Platform, Protocols, PublishRequest, ReleaseName,
    Repository, Rollback, Version,
};
use cohort_core::ids::GroupId;
use cohort_registry::fleet::Fleet;
use cohort_view::command::{Command, Flag};
use cohort_view::figures::bytes;
use cohort_view::hint::Hint;
use cohort_view::table::{cell, render, table};
use cohort_wire::http::Call;
use cohort_wire::hub::FLEET;

use crate::answer::{Answer, ReleaseAnswer, ReleaseId};
use crate::args::Global;
use crate::commands::publish::{default_platform, dry_run, judge};
use crate::connect::Hub;
use crate::context::Context;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::output::look;
use crate::workplace::{Place, Workplace};

/// How long the hub may take to say what groups run, where that is only shown.
const SHOWN_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(crate) enum ReleaseCommand {
    /// List published releases, the newest version of each app first
    List(ListArgs),
    /// Show a release: its size, deltas, protocols, channels, and the groups that run it
    Show(ShowArgs),
    /// Judge a directory or tarball as servers will, and publish nothing
    Check(CheckArgs),
    /// Remove releases: nobody can fetch them, or publish their versions again
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only this app
    app: Option<AppId>,
    /// How many of each app
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    last: usize,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// App name
    app: AppId,
    /// Published version
    version: Version,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Directory, or a tarball (.tar, .tar.gz, .tar.zst)
    path: PathBuf,
    /// Platform that it is built for [default: this machine's]
    #[arg(long, default_value_t = default_platform(), hide_default_value = true)]
    platform: Platform,
    /// Refuse what is probably wrong, too
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// App name
    app: AppId,
    /// Published versions
    #[arg(required = true)]
    versions: Vec<Version>,
    /// Only for this platform
    #[arg(long)]
    platform: Option<Platform>,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Force {
    /// Also what groups run, and if the hub does not say: servers that join them cannot fetch it
    #[arg(long)]
    force: bool,
}

pub(crate) async fn run(global: &Global, command: ReleaseCommand) -> Result<Exit, Failure> {
    match command {
        ReleaseCommand::List(args) => list(global, args).await,
        ReleaseCommand::Show(args) => show(global, args).await,
        ReleaseCommand::Check(CheckArgs { path, platform, strict }) => {
            // No name is judged.
            let (app, version) = (AppId::new("app"), Version::new("0"));
            let (app, version) = (app.expect("a name"), version.expect("a version"));
            let mut request = PublishRequest::new(&path, app, version, platform.clone());
            request.judge = judge(platform, strict);
            dry_run(global, request).await
        }
        ReleaseCommand::Remove(args) => remove(global, args).await,
    }
}

async fn list(global: &Global, args: ListArgs) -> Result<Exit, Failure> {
    let ListArgs { app, last, place } = args;
    let needs = app.clone().map_or(Needs::Apps, Needs::App);
    let workplace = place.open_to_read(global, needs).await?;
    let mut names = workplace.repository().releases().or_fail("repository")?;
    let mut versions: BTreeMap<AppId, BTreeSet<Version>> = BTreeMap::new();
    names.retain(|name| {
        let of_app = versions.entry(name.app.clone()).or_default();
        let is_shown = of_app.contains(&name.version) || of_app.len() < last;
        if is_shown {
            of_app.insert(name.version.clone());
        }
        is_shown && app.as_ref().is_none_or(|app| name.app == *app)
    });
    let found = about(global, workplace.repository(), names).await?;
    global.output.answer(&Answer::ReleaseList(&found), || {
        let heads = ["APP", "VERSION", "PLATFORM", "SIZE", "PUBLISHED", "CHANNELS", "GROUPS"];
        let mut rows = table(look(), &heads);
        for it in &found {
            let groups = it.groups.as_ref().map_or("?".to_owned(), |it| it.len().to_string());
            let Manifest { app, version, platform, length, created_at, .. } = &it.manifest;
            rows.add_row([
                cell(app),
                cell(version),
                cell(platform),
                cell(bytes(*length)),
                cell(created_at),
                cell(it.channels.join(", ")),
                cell(groups),
            ]);
        }
        render(&rows)
    });
    Ok(Exit::Done)
}

async fn show(global: &Global, args: ShowArgs) -> Result<Exit, Failure> {
    let ShowArgs { app, version, place } = args;
    let workplace = place.open_to_read(global, Needs::App(app.clone())).await?;
    let names = named(workplace.repository(), &app, &[version], None)?;
    let found = about(global, workplace.repository(), names).await?;
    global.output.answer(&Answer::ReleaseShow(&found), || {
        found.iter().map(described).collect::<Vec<_>>().join("\n")
    });
    Ok(Exit::Done)
}

fn described(release: &ReleaseAnswer) -> String {
    let ReleaseAnswer { manifest, channels, groups } = release;
    let mut text = format!("{} {} for {}\n", manifest.app, manifest.version, manifest.platform);
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("  {name:<10} {value}\n"));
        }
    };
    let (length, unpacked) = (bytes(manifest.length), bytes(manifest.unpacked_bytes));
    line("size", format!("{length}; {unpacked} unpacked, {} files", manifest.entries));
    line("published", manifest.created_at.to_string());
    line("artifact", manifest.root.to_string());
    line("rollback", rollback_name(manifest.rollback).to_owned());
    let Protocols { reads, writes } = &manifest.protocols;
    line("reads", reads.iter().cloned().collect::<Vec<_>>().join(", "));
    line("writes", writes.iter().cloned().collect::<Vec<_>>().join(", "));
    line("schemas", manifest.schemas.iter().cloned().collect::<Vec<_>>().join(", "));
    let deltas = manifest.deltas.iter().map(|delta| bytes(delta.length));
    line("deltas", deltas.collect::<Vec<_>>().join(", "));
    line("channels", channels.join(", "));
    let groups = groups.as_ref().map(|groups| {
        let names: Vec<&str> = groups.iter().map(GroupId::as_str).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    });
    line("runs in", groups.unwrap_or_else(|| "the hub does not say".to_owned()));
    text
}

fn rollback_name(rollback: Rollback) -> &'static str {
    match rollback {
        Rollback::Revert => "revert",
        Rollback::Freeze => "freeze",
        Rollback::ForwardOnly => "forward-only",
    }
}

/// What there is to know of releases.
async fn about(
    global: &Global,
    repository: &Repository,
    names: Vec<ReleaseName>,
) -> Result<Vec<ReleaseAnswer>, Failure> {
    let pointers = repository.channels().or_fail("repository")?;
    let users = users(global, Some(SHOWN_DEADLINE)).await.ok();
    names
        .into_iter()
        .map(|name| {
            let manifest = repository.manifest_of(&name).or_fail("repository")?;
            let points = pointers
                .iter()
                .filter(|pointer| pointer.app == name.app && pointer.version == name.version);
            let channels = points.map(|pointer| pointer.channel.to_string()).collect();
            let key = (name.app, name.version);
            let groups = users.as_ref().map(|users| users.get(&key).cloned().unwrap_or_default());
            Ok(ReleaseAnswer { manifest, channels, groups })
        })
        .collect()
}

async fn remove(global: &Global, args: RemoveArgs) -> Result<Exit, Failure> {
    let RemoveArgs { app, versions, platform, force, place } = args;
    let (workplace, keys) = place.open(global, Needs::Names).await?;
    let chosen = named(workplace.repository(), &app, &versions, platform.as_ref())?;
    let users = force.users(global).await?;
    for ReleaseName { app, version, .. } in &chosen {
        if let Some(group) = users.get(&(app.clone(), version.clone())).and_then(BTreeSet::first) {
            let error = format!("{group} runs {app} {version}, or is about to");
            let all_the_same = Hint::add("to remove it all the same, add", Flag::Force);
            let watch = Command::Status { group: Some(group.clone()) };
            return Err(Failure::new("in_use", error)
                .hint(Hint::run_to("see what it runs", watch))
                .hint(all_the_same));
        }
    }
    removed(global, workplace, &keys, chosen).await
}

/// Those of these versions that there are.
fn named(
    repository: &Repository,
    app: &AppId,
    versions: &[Version],
    platform: Option<&Platform>,
) -> Result<Vec<ReleaseName>, Failure> {
    let all = repository.releases().or_fail("repository")?;
    let mut chosen = Vec::new();
    for version in versions {
        let is_it = |it: &&ReleaseName| it.app == *app && it.version == *version;
        let on_platform = |it: &&ReleaseName| platform.is_none_or(|only| it.platform == *only);
        let before = chosen.len();
        chosen.extend(all.iter().filter(is_it).filter(on_platform).cloned());
        if chosen.len() == before {
            let error = format!("{app} {version} is not published");
            return Err(Failure::new("no_such_release", error).hint(Command::ReleaseList));
        }
    }
    chosen.sort();
    chosen.dedup();
    Ok(chosen)
}

/// Removes releases that nobody uses.
async fn removed(
    global: &Global,
    workplace: Workplace,
    keys: &Keys,
    chosen: Vec<ReleaseName>,
) -> Result<Exit, Failure> {
    let remove = async |copy: &Repository| copy.remove_releases(keys, &chosen).await;
    remove(workplace.repository()).await.or_fail("release")?;
    let collected = workplace.collect().await?;
    workplace.finish(remove).await?;
    let freed = match collected {
        Some(Collected { bytes: freed, .. }) => {
            format!("{} freed; the rest once it is a day old\n", bytes(freed))
        }
        None => "the hub frees the space within a day\n".to_owned(),
    };
    tell(global, &chosen, collected, "removed", &freed);
    Ok(Exit::Done)
}

fn tell(
    global: &Global,
    chosen: &[ReleaseName],
    collected: Option<Collected>,
    done: &str,
    end: &str,
) {
    let releases = chosen.iter().map(|ReleaseName { app, version, platform }| ReleaseId {
        app,
        version,
        platform,
    });
    let answer = Answer::ReleaseRemove {
        removed: releases.collect(),
        bytes: collected.map(|collected| collected.bytes),
    };
    global.output.answer(&answer, || {
        let mut text = String::new();
        for ReleaseName { app, version, platform } in chosen {
            text.push_str(&format!("{done} {app} {version} for {platform}\n"));
        }
        text + end
    });
}

/// `cohort repository gc`: removes all but the newest releases of each app and platform, those that
/// channels point to, and those that groups run.
pub(crate) async fn keep_newest(
    global: &Global,
    place: &Place,
    force: Force,
    keep: usize,
    only: Option<&AppId>,
    is_dry_run: bool,
) -> Result<Exit, Failure> {
    let (workplace, keys) = place.open(global, Needs::Names).await?;
    let users = force.users(global).await?;
    let pointers = workplace.repository().channels().or_fail("repository")?;
    let mut kept: BTreeMap<(AppId, Platform), usize> = BTreeMap::new();
    let mut chosen = workplace.repository().releases().or_fail("repository")?;
    chosen.retain(|ReleaseName { app, version, platform }| {
        let count = kept.entry((app.clone(), platform.clone())).or_default();
        *count += 1;
        let is_on_channel =
            pointers.iter().any(|pointer| pointer.app == *app && pointer.version == *version);
        let is_used = users.contains_key(&(app.clone(), version.clone()));
        *count > keep && !is_on_channel && !is_used && only.is_none_or(|only| only == app)
    });
    if is_dry_run {
        tell(global, &chosen, None, "would remove", "");
        return Ok(Exit::Done);
    }
    removed(global, workplace, &keys, chosen).await
}

type Users = BTreeMap<(AppId, Version), BTreeSet<GroupId>>;

impl Force {
    /// Which groups run what, unless that does not matter.
    async fn users(self, global: &Global) -> Result<Users, Failure> {
        if self.force {
            return Ok(Users::new());
        }
        users(global, None).await.map_err(|failure| {
            let error = format!("the hub must say what groups run: {}", failure.error);
            Failure { error, ..failure }
                .hint(Hint::add("to remove it without knowing, add", Flag::Force))
        })
    }
}

/// The groups that run a release, or are about to, as the registry knows.
async fn users(global: &Global, deadline: Option<Duration>) -> Result<Users, Failure> {
    let call = Call::get(FLEET);
    let call = deadline.into_iter().fold(call, Call::deadline);
    let fleet: Fleet = Hub::of(&Context::load(global)?)?.call(call).await?;
    let mut users = Users::new();
    for (group, known) in fleet.groups {
        for record in known.apps {
            for version in [record.running, record.target].into_iter().flatten() {
                users.entry((record.app.clone(), version)).or_default().insert(group.clone());
            }
        }
    }
    Ok(users)
}
