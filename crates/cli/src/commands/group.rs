//! `cohort group`: see groups, and change who belongs to them.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use cohort_core::Body;
use cohort_core::ids::{GroupId, Incarnation, ServerId};
use cohort_registry::fleet::Fleet;
use cohort_wire::agent::{
    CONTROL_VERSION, TRANSFER_LEADER, TransferLeaderAnswer, TransferLeaderRequest,
};
use cohort_wire::http::{Call, CallError};
use cohort_wire::hub::{FLEET, RecoverAnswer, RecoverRequest, recover_path, server_path};
use http::Method;
use serde_json::json;

use crate::args::{Direct, Global};
use crate::commands::{context_of, rollout};
use crate::connect::Hub;
use crate::failure::{Exit, Failure};
use crate::fleet;
use crate::group::{Spoken, picture};
use crate::output::{Look, Output, note, say, say_json};
use crate::view::groups;
use crate::view::report::FleetReport;

/// A server that asked for its orders within this time is alive, in milliseconds: agents ask every
/// two seconds.
const ALIVE_MS: u64 = 6_000;
/// How long a group may take to tell the hub that a member has moved,
const FORGET_MAX: Duration = Duration::from_secs(15);
/// and how often the hub is asked meanwhile.
const FORGET_PAUSE: Duration = Duration::from_millis(500);

/// What `cohort group` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Show every group: servers, members, leader
    List,
    /// Show a group's servers and members
    Show {
        /// The group
        group: GroupId,
        #[command(flatten)]
        direct: Direct,
    },
    /// Hand leadership over, before a server is worked on
    TransferLeader {
        /// The group
        group: GroupId,
        /// To which server; whoever is best prepared when none is named
        #[arg(long, value_name = "SERVER")]
        to: Option<ServerId>,
        #[command(flatten)]
        direct: Direct,
    },
    /// A server leaves for good; another one takes its place among the voters
    RemoveServer(RemoveArgs),
    /// A server shall be among the voters, in the place of one that joined later
    AddVoter(VoterArgs),
    /// A server shall not be among the voters; another one takes its place in the same step
    RemoveVoter(VoterArgs),
    /// A group whose majority is lost for good begins a new life, from one server that is left
    Recover(RecoverArgs),
}

/// What `cohort group remove-server` takes.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// The group
    group: GroupId,
    /// The server
    server: ServerId,
    /// Also when its agent still runs, and may join again
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    direct: Direct,
}

/// What `cohort group add-voter` and `remove-voter` take.
#[derive(Debug, Args)]
pub(crate) struct VoterArgs {
    /// The group
    group: GroupId,
    /// The server
    server: ServerId,
    #[command(flatten)]
    direct: Direct,
}

/// What `cohort group recover` takes.
#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// The group
    group: GroupId,
    /// The server that makes the first member of the next life
    #[arg(long, value_name = "SERVER")]
    first_server: ServerId,
    /// Which life is to end, as `cohort group show` tells [default: the current one]
    #[arg(long)]
    incarnation: Option<u64>,
    /// Why
    #[arg(long)]
    reason: String,
    /// The majority of the old life's voters is lost for good: had it a voter elsewhere that still
    /// runs, two lives would run at a time
    #[arg(long, required = true)]
    majority_is_lost: bool,
}

/// Does it.
pub(crate) async fn run(global: &Global, command: &GroupCommand) -> Result<Exit, Failure> {
    match command {
        GroupCommand::List => list(global).await,
        GroupCommand::Show { group, direct } => show(global, group, direct).await,
        GroupCommand::TransferLeader { group, to, direct } => {
            transfer(global, group, to.as_ref(), direct).await
        }
        GroupCommand::RemoveServer(args) => remove(global, args).await,
        GroupCommand::AddVoter(args) => place(global, args, true).await,
        GroupCommand::RemoveVoter(args) => place(global, args, false).await,
        GroupCommand::Recover(args) => recover(global, args).await,
    }
}

async fn list(global: &Global) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let seen = picture(&context, &context.client()?, &Direct::default(), None).await?;
    let report = FleetReport::of(seen);
    if let Some(warning) = fleet::warning(&report.origin) {
        note(&warning);
    }
    match global.output {
        Output::Json => {
            say_json(&report.groups.iter().map(groups::summary).collect::<Vec<_>>());
        }
        Output::Text => say(&groups::list(&report, Look::of_stdout())),
    }
    Ok(Exit::Done)
}

async fn show(global: &Global, group: &GroupId, direct: &Direct) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let status = Spoken::to(&context, direct, group).await?.status;
    match global.output {
        Output::Json => say_json(&status),
        Output::Text => say(&groups::show(&status, Look::of_stdout())),
    }
    Ok(Exit::Done)
}

async fn transfer(
    global: &Global,
    group: &GroupId,
    to: Option<&ServerId>,
    direct: &Direct,
) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let spoken = Spoken::to(&context, direct, group).await?;
    let request =
        TransferLeaderRequest { version: CONTROL_VERSION, group: group.clone(), to: to.cloned() };
    let answer: TransferLeaderAnswer = spoken.say(Call::post(TRANSFER_LEADER, &request)).await?;
    match global.output {
        Output::Json => say_json(&answer),
        Output::Text => {
            say(&format!("group {group} is led by {} (before: {})\n", answer.to, answer.from));
        }
    }
    Ok(Exit::Done)
}

async fn remove(global: &Global, args: &RemoveArgs) -> Result<Exit, Failure> {
    let RemoveArgs { group, server, force, direct } = args;
    let context = context_of(global)?;
    let spoken = Spoken::to(&context, direct, group).await?;
    let hub = Hub::of(&context)?;
    let index = match spoken.status.servers.get(server) {
        Some(known) => {
            if !force && known.contact_age_ms.is_some_and(|age| age < ALIVE_MS) {
                let error = format!("{server} is alive: its agent would join again at once");
                return Err(Failure::new("alive", error)
                    .hint(format!("stop cohort agent on {server} first"))
                    .hint("or, if it cannot be stopped: --force"));
            }
            let body = Body::RemoveServer { server: server.clone() };
            Some(rollout::command(&spoken, group, body).await?.index)
        }
        // An earlier attempt may have come as far as this.
        None => None,
    };
    let forgotten = forget(&hub, server).await;
    if index.is_none() && forgotten.as_ref().is_err_and(|error| error.status() == Some(404)) {
        let error = format!("group {group} has no server `{server}`");
        return Err(
            Failure::new("no_such_server", error).hint(format!("cohort group show {group}"))
        );
    }
    match global.output {
        Output::Json => say_json(&json!({
            "group": group, "server": server, "index": index, "forgotten": forgotten.is_ok(),
        })),
        Output::Text => say(&format!("{server} does not belong to {group} any more\n")),
    }
    if let Err(error) = forgotten {
        let failure = Failure::from(error);
        note(&format!("warning: the hub still lists {server}: {}", failure.error));
        note(&format!("when the hub answers: cohort group remove-server {group} {server}"));
    }
    Ok(Exit::Done)
}

/// Says which servers carry the group's log; the group exchanges them atomically.
async fn place(global: &Global, args: &VoterArgs, carries: bool) -> Result<Exit, Failure> {
    let VoterArgs { group, server, direct } = args;
    let context = context_of(global)?;
    let spoken = Spoken::to(&context, direct, group).await?;
    if !spoken.status.servers.contains_key(server) {
        let error = format!("group {group} has no server `{server}`");
        return Err(
            Failure::new("no_such_server", error).hint(format!("cohort group show {group}"))
        );
    }
    let body = Body::PlaceMember { server: server.clone(), carries };
    let index = rollout::command(&spoken, group, body).await?.index;
    match global.output {
        Output::Json => say_json(&json!({
            "group": group, "server": server, "voter": carries, "index": index,
        })),
        Output::Text => {
            let shall = if carries { "shall vote" } else { "shall not vote" };
            say(&format!("{server} {shall} in {group}; see: cohort group show {group}\n"));
        }
    }
    Ok(Exit::Done)
}

/// The hub forgets a server as soon as its group has told that it carries no member any more.
async fn forget(hub: &Hub, server: &ServerId) -> Result<(), CallError> {
    let begun = Instant::now();
    loop {
        let call = Call::new(Method::DELETE, server_path(server));
        match hub.call::<serde_json::Value>(call).await {
            Err(error) if error.status() == Some(409) && begun.elapsed() < FORGET_MAX => {
                tokio::time::sleep(FORGET_PAUSE).await;
            }
            answer => return answer.map(|_| ()),
        }
    }
}

async fn recover(global: &Global, args: &RecoverArgs) -> Result<Exit, Failure> {
    let RecoverArgs { group, first_server, reason, .. } = args;
    let hub = Hub::of(&context_of(global)?)?;
    let incarnation = match args.incarnation {
        Some(incarnation) => Incarnation(incarnation),
        None => {
            let fleet: Fleet = hub.call(Call::get(FLEET)).await?;
            let known = fleet.groups.get(group).and_then(|group| group.bootstrap.as_ref());
            known.map(|bootstrap| bootstrap.incarnation).ok_or_else(|| {
                Failure::new("no_such_group", format!("group {group} never lived"))
                    .hint("cohort group list")
            })?
        }
    };
    let request =
        RecoverRequest { incarnation, first_server: first_server.clone(), because: reason.clone() };
    let answer: RecoverAnswer = hub.call(Call::post(recover_path(group), &request)).await?;
    match global.output {
        Output::Json => say_json(&json!({ "group": group, "incarnation": answer.incarnation })),
        Output::Text => {
            let next = answer.incarnation;
            say(&format!("group {group} begins life {next} on {first_server}\n"));
            note("its agents notice by themselves; what the old life's log knew is gone");
        }
    }
    Ok(Exit::Done)
}
