//! `cohort group`: show groups, and manage their servers and voters.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use cohort_core::Body;
use cohort_core::ids::{GroupId, Incarnation, ServerId};
use cohort_identity::{Peer, Role};
use cohort_registry::fleet::Fleet;
use cohort_view::command::{Command, Flag};
use cohort_view::figures::brief;
use cohort_view::groups::{self, GroupSummary};
use cohort_view::hint::Hint;
use cohort_wire::agent::{GroupStatus, TRANSFER_LEADER, ToGroup, TransferLeaderAnswer};
use cohort_wire::http::{Call, CallError};
use cohort_wire::hub::{
    FLEET, RecoverAnswer, RecoverRequest, RemoveGroupRequest, recover_path, remove_group_path,
    server_path,
};
use http::Method;

use crate::answer::Answer;
use crate::args::{Direct, Global};
use crate::commands::{context_of, revoke, rollout};
use crate::connect::Hub;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::fleet::{Groups, know};
use crate::group::{Steered, ask_group, report};
use crate::output::{look, note, warn};

/// A server that asked for its orders within this time is alive, in milliseconds. 6 s: agents ask
/// every two.
const ALIVE_MS: u64 = 6_000;
/// How long a group may take to report to the hub that a member has moved.
const FORGET_MAX: Duration = Duration::from_secs(15);
/// How often the hub is asked meanwhile.
const FORGET_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// List every group: servers, voters, leader
    List,
    /// Show a group's servers and their roles
    Show {
        /// Group name
        group: GroupId,
        #[command(flatten)]
        direct: Direct,
    },
    /// Transfer leadership, before maintenance of the leader
    TransferLeader {
        /// Group name
        group: GroupId,
        /// New leader [default: the voter that is most up to date]
        #[arg(long, value_name = "SERVER")]
        to: Option<ServerId>,
        #[command(flatten)]
        direct: Direct,
    },
    /// Remove a server permanently; another one replaces it as a voter
    RemoveServer(RemoveArgs),
    /// Remove a group whose last server is gone: status and stages no longer wait for it
    #[command(visible_alias = "rm")]
    Remove(RemoveGroupArgs),
    /// Make a server a voter, replacing the one that joined last
    AddVoter(VoterArgs),
    /// Make a server no voter; another one replaces it in the same step
    RemoveVoter(VoterArgs),
    /// Restart a group that has lost its majority permanently, from one remaining server
    Recover(RecoverArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Group name
    group: GroupId,
    /// Server name
    server: ServerId,
    /// Remove it even if its agent is running and may rejoin
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    direct: Direct,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveGroupArgs {
    /// Group name
    group: GroupId,
    /// Confirm that all servers that it still lists are lost permanently, and remove them too
    #[arg(long)]
    servers_are_lost: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VoterArgs {
    /// Group name
    group: GroupId,
    /// Server name
    server: ServerId,
    #[command(flatten)]
    direct: Direct,
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// Group name
    group: GroupId,
    /// Server that becomes the first member of the new incarnation
    #[arg(long, value_name = "SERVER")]
    first_server: ServerId,
    /// Incarnation to end, see `cohort group show` [default: the current one]
    #[arg(long)]
    incarnation: Option<u64>,
    /// Reason, part of the audit trail
    #[arg(long)]
    reason: String,
    /// Confirm that the majority of voters is lost permanently: if it still runs somewhere, there
    /// will be two groups at once
    #[arg(long, required = true)]
    majority_is_lost: bool,
}

pub(crate) async fn run(global: &Global, command: &GroupCommand) -> Result<Exit, Failure> {
    match command {
        GroupCommand::List => list(global).await,
        GroupCommand::Show { group, direct } => show(global, group, direct).await,
        GroupCommand::TransferLeader { group, to, direct } => {
            transfer(global, group, to.as_ref(), direct).await
        }
        GroupCommand::RemoveServer(args) => remove(global, args).await,
        GroupCommand::Remove(args) => remove_group(global, args).await,
        GroupCommand::AddVoter(args) => place(global, args, true).await,
        GroupCommand::RemoveVoter(args) => place(global, args, false).await,
        GroupCommand::Recover(args) => recover(global, args).await,
    }
}

async fn list(global: &Global) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let report = report(&context, &context.client()?, &Direct::default(), Groups::All).await?;
    warn(&report.origin);
    let answer = Answer::GroupList(report.groups.iter().map(GroupSummary::of).collect());
    global.output.answer(&answer, || groups::list(&report, look()));
    Ok(Exit::Done)
}

async fn show(global: &Global, group: &GroupId, direct: &Direct) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let status = Steered::to(&context, direct, group).await?.status;
    global.output.answer(&Answer::GroupShow(&status), || groups::show(&status, look()));
    Ok(Exit::Done)
}

async fn transfer(
    global: &Global,
    group: &GroupId,
    to: Option<&ServerId>,
    direct: &Direct,
) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let steered = Steered::to(&context, direct, group).await?;
    let message = ToGroup::new(group, to);
    let answer: TransferLeaderAnswer = steered.send(Call::post(TRANSFER_LEADER, &message)).await?;
    global.output.answer(&Answer::GroupTransferLeader(&answer), || {
        format!("leader of {group} is now {}, before {}\n", answer.to, answer.from)
    });
    Ok(Exit::Done)
}

async fn remove(global: &Global, args: &RemoveArgs) -> Result<Exit, Failure> {
    let RemoveArgs { group, server, force, direct } = args;
    let context = context_of(global)?;
    let steered = Steered::to(&context, direct, group).await?;
    let hub = Hub::of(&context)?;
    let index = match steered.status.servers.get(server) {
        Some(known) => {
            if let Some(age) = known.contact_age_ms.filter(|age| !force && *age < ALIVE_MS) {
                let ago = brief(age);
                let error = format!("{server} was heard {ago} ago: its agent would rejoin at once");
                let wait = brief((ALIVE_MS - age).next_multiple_of(1_000));
                return Err(Failure::new("alive", error)
                    .hint(format!("stop the agent on {server}, and try again {wait} later"))
                    .hint(Hint::add("or, if it cannot be stopped", Flag::Force)));
            }
            let body = Body::RemoveServer { server: server.clone() };
            Some(rollout::command(&steered, group, body).await?.index)
        }
        // An earlier attempt may have removed it.
        None => {
            let (known, _) = know(&context).await?;
            match known.group_of(server.as_str()) {
                Some(known) if known == group => None,
                Some(other) => {
                    let error = format!("{server} is in {other}, not in {group}");
                    let (group, server) = (other.clone(), server.clone());
                    return Err(Failure::new("no_such_server", error)
                        .hint(Command::GroupRemoveServer { group, server }));
                }
                None => return Err(no_such_server(group, server)),
            }
        }
    };
    // Its certificate would stay valid for months. Before the hub forgets it: who tries again has
    // to find it there.
    let peer = Peer::new(Role::Agent, server.as_str()).or_fail("server")?;
    let reason = format!("removed from {group}");
    let revoked = revoke::spread(&context, &peer, &reason, direct).await;
    let forgotten = match &revoked {
        Ok(_) => Some(forget(&hub, server).await),
        Err(_) => None,
    };
    let gone = matches!(forgotten, Some(Ok(())));
    let answer = Answer::GroupRemove { group, server, index, forgotten: gone };
    global.output.answer(&answer, || match index {
        Some(_) if revoked.is_ok() => {
            format!("{server} removed from {group}, and its certificate revoked\n")
        }
        Some(_) => format!("{server} removed from {group}\n"),
        None if revoked.is_ok() => {
            format!("{server} has left {group} before; its certificate is revoked\n")
        }
        None => format!("{server} has left {group} before\n"),
    });
    if index.is_some() {
        note(&format!("a service that runs on {server} goes on: stop it there, with its guard"));
    }
    if let Err(failure) = revoked {
        note(&format!("warning: the certificates of {server} are not revoked: {}", failure.error));
        let again = Command::GroupRemoveServer { group: group.clone(), server: server.clone() };
        note(&format!("try again: {again}"));
        return Ok(Exit::Failed);
    }
    if let Some(Err(error)) = forgotten {
        let failure = Failure::from(error);
        note(&format!("warning: the hub still lists {server}: {}", failure.error));
        let again = Command::GroupRemoveServer { group: group.clone(), server: server.clone() };
        note(&format!("try again: {again}"));
    }
    Ok(Exit::Done)
}

async fn remove_group(global: &Global, args: &RemoveGroupArgs) -> Result<Exit, Failure> {
    let RemoveGroupArgs { group, servers_are_lost } = args;
    let context = context_of(global)?;
    let (known, _) = know(&context).await?;
    let asked = ask_group(&context.client()?, group.clone(), known.group(group)?.clone()).await;
    if let Ok(GroupStatus { answered_by: server, .. }) = asked.status {
        let error = format!("group {group} is alive: {server} responds");
        let (group, stop) = (group.clone(), format!("stop the agent on {server} first"));
        let remove = Command::GroupRemoveServer { group, server };
        return Err(Failure::new("alive", error).hint(stop).hint(Hint::run_to("or", remove)));
    }
    let request = RemoveGroupRequest { servers_are_lost: *servers_are_lost };
    let call = Call::post(remove_group_path(group), &request);
    Hub::of(&context)?.call::<serde_json::Value>(call).await?;
    let answer = Answer::GroupGone { group };
    global.output.answer(&answer, || format!("group {group} removed\n"));
    Ok(Exit::Done)
}

fn no_such_server(group: &GroupId, server: &ServerId) -> Failure {
    let error = format!("group {group} has no server `{server}`");
    Failure::new("no_such_server", error).hint(Command::GroupShow { group: group.clone() })
}

/// `carries`: whether the server should be a voter. The group replaces voters atomically.
async fn place(global: &Global, args: &VoterArgs, carries: bool) -> Result<Exit, Failure> {
    let VoterArgs { group, server, direct } = args;
    let context = context_of(global)?;
    let steered = Steered::to(&context, direct, group).await?;
    if !steered.status.servers.contains_key(server) {
        return Err(no_such_server(group, server));
    }
    let body = Body::PlaceMember { server: server.clone(), carries };
    let index = rollout::command(&steered, group, body).await?.index;
    let answer = Answer::GroupVoter { group, server, voter: carries, index };
    global.output.answer(&answer, || {
        let change = if carries { "becoming a voter" } else { "no longer a voter" };
        let show = Command::GroupShow { group: group.clone() };
        format!("{server}: {change} of {group}\nnext: {show}\n")
    });
    Ok(Exit::Done)
}

/// Removes the server's record from the hub, once its group has reported that it carries no member.
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
                Failure::new("no_such_group", format!("group {group} does not exist"))
                    .hint(Command::GroupList)
            })?
        }
    };
    let request =
        RecoverRequest { incarnation, first_server: first_server.clone(), because: reason.clone() };
    let answer: RecoverAnswer = hub.call(Call::post(recover_path(group), &request)).await?;
    let next = answer.incarnation;
    global.output.answer(&Answer::GroupRecover { group, incarnation: next }, || {
        format!(
            "group {group} starts incarnation {next} on {first_server}\n\
             its agents join automatically; the log of the old incarnation is discarded\n"
        )
    });
    Ok(Exit::Done)
}
