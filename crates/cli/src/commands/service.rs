//! `cohort service`: the services that apps run.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use cohort_core::Body;
use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_registry::fleet::Fleet;
use cohort_view::command::Command;

use crate::answer::Answer;
use crate::args::{Direct, Global};
use crate::commands::rollout::{app_of, command};
use crate::commands::{context_of, no_such_name};
use crate::failure::{Exit, Failure};
use crate::fleet::{Known, of_hub};
use crate::group::Steered;

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Start the release again on a server, or on all of a group, a few at a time, with the
    /// server's variables as they are now
    Restart(RestartArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    /// A server, or a group for all of its servers
    #[arg(value_name = "SERVER|GROUP")]
    about: String,
    /// App name; required if the group has several
    #[arg(long)]
    app: Option<AppId>,
    #[command(flatten)]
    direct: Direct,
}

pub(crate) async fn run(global: &Global, command: &ServiceCommand) -> Result<Exit, Failure> {
    match command {
        ServiceCommand::Restart(args) => restart(global, args).await,
    }
}

async fn restart(global: &Global, args: &RestartArgs) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let (group, servers) = match args.direct.agent() {
        Some(_) => {
            (args.about.parse().map_err(|error| Failure::of("group", &error))?, BTreeSet::new())
        }
        None => {
            let fleet = of_hub(&context).await?;
            meant(&fleet, &args.about)?
        }
    };
    let steered = Steered::to(&context, &args.direct, &group).await?;
    let app = app_of(args.app.as_ref(), &steered.status)?;
    let body = Body::Restart { app: app.clone(), servers };
    let index = command(&steered, &group, body).await?.index;
    let answer = Answer::RolloutSteer { group: &group, app: &app, index };
    global.output.answer(&answer, || {
        let next = Command::Status { group: Some(group.clone()) };
        format!("{app} is being restarted on {}\nnext: {next}\n", args.about)
    });
    Ok(Exit::Done)
}

/// The group that a name is about, and which servers of it; none if it is all of them.
fn meant(fleet: &Fleet, about: &str) -> Result<(GroupId, BTreeSet<ServerId>), Failure> {
    if let Some(it) = fleet.servers.iter().find(|it| it.server.as_str() == about) {
        return Ok((it.group.clone(), [it.server.clone()].into()));
    }
    match fleet.groups.keys().find(|group| group.as_str() == about) {
        Some(group) => Ok((group.clone(), BTreeSet::new())),
        None => Err(no_such_name(&Known::of(fleet), about)),
    }
}
