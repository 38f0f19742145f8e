//! `cohort channel`: which release a channel points to.

use clap::{Args, Subcommand};
use cohort_artifact::{AppId, Channel, ChannelPointer, Version};
use serde::Serialize;

use crate::args::Global;
use crate::failure::{Exit, Failure};
use crate::output::{Look, Output, cell, render, say, say_json, table};
use crate::workplace::Place;

/// What `cohort channel` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum ChannelCommand {
    /// Point a channel to a published version
    Set(SetArgs),
    /// Show every channel
    List(Place),
}

/// What `cohort channel set` takes.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// The app
    app: AppId,
    /// The channel, such as stable
    channel: Channel,
    /// The version
    version: Version,
    #[command(flatten)]
    place: Place,
}

/// A channel, for programs.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    app: &'a AppId,
    channel: &'a Channel,
    version: &'a Version,
    serial: u64,
    set_at: String,
}

/// Does it.
pub(crate) async fn run(global: &Global, command: &ChannelCommand) -> Result<Exit, Failure> {
    match command {
        ChannelCommand::Set(args) => set(global, args).await,
        ChannelCommand::List(place) => list(global, place).await,
    }
}

async fn set(global: &Global, args: &SetArgs) -> Result<Exit, Failure> {
    let (workplace, keys) = args.place.open(global, None).await?;
    let pointer = workplace
        .repository()
        .set_channel(&keys, &args.app, &args.channel, &args.version)
        .await
        .map_err(|error| Failure::of("channel", &error))?;
    workplace.finish().await?;
    match global.output {
        Output::Json => say_json(&shown(&pointer)),
        Output::Text => say(&format!(
            "channel {} of {} points to {}\n",
            pointer.channel, pointer.app, pointer.version
        )),
    }
    Ok(Exit::Done)
}

async fn list(global: &Global, place: &Place) -> Result<Exit, Failure> {
    let workplace = place.open_to_read(global, None).await?;
    let repository = workplace.repository();
    let pointers = repository.channels().map_err(|error| Failure::of("repository", &error))?;
    match global.output {
        Output::Json => say_json(&pointers.iter().map(shown).collect::<Vec<_>>()),
        Output::Text => {
            let mut rows = table(Look::of_stdout(), &["APP", "CHANNEL", "VERSION", "SET AT"]);
            for pointer in &pointers {
                rows.add_row([
                    cell(&pointer.app),
                    cell(&pointer.channel),
                    cell(&pointer.version),
                    cell(pointer.set_at),
                ]);
            }
            say(&render(&rows));
        }
    }
    Ok(Exit::Done)
}

fn shown(pointer: &ChannelPointer) -> Shown<'_> {
    Shown {
        app: &pointer.app,
        channel: &pointer.channel,
        version: &pointer.version,
        serial: pointer.serial,
        set_at: pointer.set_at.to_string(),
    }
}
