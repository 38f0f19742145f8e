//! `cohort channel`: the releases that channels point to.

use clap::{Args, Subcommand};
use cohort_artifact::{AppId, Channel, ChannelPointer, Version};
use cohort_view::table::{cell, render, table};

use crate::answer::Answer;
use crate::args::Global;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::output::look;
use crate::workplace::Place;

#[derive(Debug, Subcommand)]
pub(crate) enum ChannelCommand {
    /// Point a channel to a published version
    Set(SetArgs),
    /// Show every channel
    List(Place),
}

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// App name
    app: AppId,
    /// Channel name, such as stable
    channel: Channel,
    /// Published version
    version: Version,
    #[command(flatten)]
    place: Place,
}

pub(crate) async fn run(global: &Global, command: &ChannelCommand) -> Result<Exit, Failure> {
    match command {
        ChannelCommand::Set(args) => set(global, args).await,
        ChannelCommand::List(place) => list(global, place).await,
    }
}

async fn set(global: &Global, args: &SetArgs) -> Result<Exit, Failure> {
    let SetArgs { app, channel, version, place } = args;
    let (workplace, keys) = place.open(global, None).await?;
    let pointer = workplace.repository().set_channel(&keys, app, channel, version).await;
    let pointer = pointer.or_fail("channel")?;
    workplace.finish().await?;
    global.output.answer(&Answer::ChannelSet(&pointer), || {
        format!("channel {channel} of {app} points to {version}\n")
    });
    Ok(Exit::Done)
}

async fn list(global: &Global, place: &Place) -> Result<Exit, Failure> {
    let workplace = place.open_to_read(global, None).await?;
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
