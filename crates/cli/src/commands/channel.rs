//! `cohort channel`: the releases that channels point to.

use clap::{Args, Subcommand};
use cohort_artifact::{AppId, Channel, ChannelPointer, Needs, Repository, Version};
use cohort_registry::fleet::Fleet;
use cohort_view::command::{Command as HintCommand, Flag};
use cohort_view::hint::Hint;
use cohort_view::table::{cell, render, table};
use cohort_wire::http::Call;
use cohort_wire::hub::FLEET;
use cohort_wire::intent::{AppIntent, Wanted};

use crate::answer::Answer;
use crate::args::Global;
use crate::connect::Hub;
use crate::context::Context;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::output::look;
use crate::workplace::Place;

#[derive(Debug, Subcommand)]
pub(crate) enum ChannelCommand {
    /// Point a channel to a published version
    Set(SetArgs),
    /// Show every channel
    List(Place),
    /// Remove a channel
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// App name
    app: AppId,
    /// Channel name, such as stable
    channel: Channel,
    /// Published version
    version: Version,
    /// Create the channel if the app has none of this name
    #[arg(long)]
    create: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// App name
    app: AppId,
    /// Channel name
    channel: Channel,
    /// Even if the app's policy follows it, or the hub does not say
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Place,
}

pub(crate) async fn run(global: &Global, command: &ChannelCommand) -> Result<Exit, Failure> {
    match command {
        ChannelCommand::Set(args) => set(global, args).await,
        ChannelCommand::List(place) => list(global, place).await,
        ChannelCommand::Remove(args) => remove(global, args).await,
    }
}

async fn set(global: &Global, args: &SetArgs) -> Result<Exit, Failure> {
    let SetArgs { app, channel, version, create, place } = args;
    let (workplace, keys) = place.open(global, Needs::Names).await?;
    let repository = workplace.repository();
    let known = repository.channels().or_fail("repository")?;
    let mut of_app = known.iter().filter(|known| known.app == *app).map(|known| &known.channel);
    if !create && !of_app.clone().any(|known| known == channel) {
        let known: Vec<&str> = of_app.by_ref().map(Channel::as_str).collect();
        let known = match known.is_empty() {
            true => "none".to_owned(),
            false => known.join(", "),
        };
        let error = format!("app {app} has no channel {channel}; it has {known}");
        let (app, version) = (Some(app.clone()), Some(version.clone()));
        let channel = Some(channel.to_string());
        let again = HintCommand::ChannelSet { app, channel, version, create: true };
        return Err(Failure::new("channel", error).hint(Hint::run_to("create it", again)));
    }
    let set = async |copy: &Repository| copy.set_channel(&keys, app, channel, version).await;
    let mut pointer = set(repository).await.or_fail("channel")?;
    let again = async |copy: &Repository| {
        pointer = set(copy).await?;
        Ok(())
    };
    workplace.finish(again).await?;
    global.output.answer(&Answer::ChannelSet(&pointer), || {
        format!("channel {channel} of {app} points to {version}\n")
    });
    Ok(Exit::Done)
}

async fn remove(global: &Global, args: &RemoveArgs) -> Result<Exit, Failure> {
    let RemoveArgs { app, channel, force, place } = args;
    let (workplace, keys) = place.open(global, Needs::Names).await?;
    if !force && is_followed(global, app, channel).await? {
        let error = format!("the policy of {app} follows the channel {channel}");
        return Err(Failure::new("in_use", error)
            .hint("name another channel in it, and apply it: cohort app apply -f FILE"));
    }
    let remove = async |copy: &Repository| copy.remove_channel(&keys, app, channel).await;
    remove(workplace.repository()).await.or_fail("channel")?;
    workplace.finish(remove).await?;
    let answer = Answer::ChannelRemove { app, channel };
    global.output.answer(&answer, || format!("channel {channel} of {app} is removed\n"));
    Ok(Exit::Done)
}

async fn is_followed(global: &Global, app: &AppId, channel: &Channel) -> Result<bool, Failure> {
    let context = Context::load(global)?;
    let fleet: Fleet = Hub::of(&context)?.call(Call::get(FLEET)).await.map_err(|error| {
        let failure = Failure::from(error);
        let error = format!("the hub must say which channel is followed: {}", failure.error);
        let all_the_same = Hint::add("to remove it without knowing, add", Flag::Force);
        Failure { error, ..failure }.hint(all_the_same)
    })?;
    let intent = fleet.policies.get(app).and_then(|signed| signed.unverified().ok());
    let Some(AppIntent { wanted: Wanted::Policy(policy), .. }) = intent else { return Ok(false) };
    Ok(policy.get("channel").and_then(serde_json::Value::as_str) == Some(channel.as_str()))
}

async fn list(global: &Global, place: &Place) -> Result<Exit, Failure> {
    let workplace = place.open_to_read(global, Needs::Names).await?;
    let pointers = workplace.repository().channels().or_fail("repository")?;
    global.output.answer(&Answer::ChannelList(&pointers), || {
        let mut rows = table(look(), &["APP", "CHANNEL", "VERSION", "SET AT"]);
        for ChannelPointer { app, channel, version, set_at, .. } in &pointers {
            rows.add_row([cell(app), cell(channel), cell(version), cell(set_at)]);
        }
        render(&rows)
    });
    Ok(Exit::Done)
}
