//! `cohort check`: what checks see, before a policy has them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_core::policy::Check;
use cohort_registry::fleet::Fleet;
use cohort_view::table::{cell, render, table};
use cohort_wire::agent::{CHECK, CHECK_MS_MAX, CheckAnswer, CheckRequest, CheckSeen};
use cohort_wire::http::{Call, Client};
use futures_util::future::join_all;
use serde::Serialize;

use crate::answer::Answer;
use crate::args::{Direct, Global};
use crate::commands::{context_of, no_such_name};
use crate::connect::{AGENT_DEADLINE, agent_target, ask};
use crate::failure::{Exit, Failure};
use crate::fleet::{Known, of_hub};
use crate::output::{look, note};
use crate::policy_file;

/// Servers that are asked if none is named: what two servers of a few groups say is enough.
const SERVERS_MAX: usize = 8;
const OF_A_GROUP_MAX: usize = 2;

#[derive(Debug, Subcommand)]
pub(crate) enum CheckCommand {
    /// Make the checks of a policy file once, against what servers run now; nothing follows from it
    /// (exit code 3 if one does not pass)
    Run(RunArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Policy file, such as web.toml
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// On this server [default: two of each group that has the app, at most eight]
    #[arg(long, conflicts_with = "agent")]
    server: Option<ServerId>,
    #[command(flatten)]
    direct: Direct,
}

/// A check as a server sees it.
#[derive(Debug, Serialize)]
pub(crate) struct CheckRow {
    pub(crate) server: ServerId,
    #[serde(flatten)]
    pub(crate) seen: CheckSeen,
}

pub(crate) async fn run(global: &Global, command: &CheckCommand) -> Result<Exit, Failure> {
    let CheckCommand::Run(RunArgs { file, server, direct }) = command;
    let policy = policy_file::read(file)?;
    let context = context_of(global)?;
    let places = match (direct.agent(), server) {
        (Some((server, address)), _) => BTreeMap::from([(server.clone(), address.to_owned())]),
        (None, Some(server)) => {
            let fleet = of_hub(&context).await?;
            let found = fleet.servers.iter().find(|it| it.server == *server);
            let Some(found) = found else {
                return Err(no_such_name(&Known::of(&fleet), server.as_str()));
            };
            BTreeMap::from([(server.clone(), found.address.clone())])
        }
        (None, None) => some_of(&of_hub(&context).await?, &policy.app),
    };
    if places.is_empty() {
        let error = format!("no group has {} yet", policy.app);
        return Err(Failure::new("no_such_app", error).hint("name a server with --server"));
    }
    let (rows, unanswered) = try_on(&context.client()?, &policy.app, &policy.checks, places).await;
    match unanswered.into_iter().next() {
        Some((_, failure)) if rows.is_empty() => return Err(failure),
        Some((server, failure)) => note(&format!("{server}: {}", failure.error)),
        None => {}
    }
    global.output.answer(&Answer::CheckRun(&rows), || {
        let mut lines = table(look(), &["SERVER", "CHECK", "SEEN"]);
        for CheckRow { server, seen } in &rows {
            let result = seen.failure.as_deref().unwrap_or("passes");
            lines.add_row([cell(server), cell(&seen.check), cell(result)]);
        }
        render(&lines)
    });
    let fails = rows.iter().any(|row| row.seen.failure.is_some());
    Ok(if fails { Exit::Unhealthy } else { Exit::Done })
}

/// Refuses checks that pass on no server that runs the app now: it is they that are wrong. Where
/// none answers, nothing is known.
pub(crate) async fn refuse_hopeless(
    client: &Client,
    fleet: &Fleet,
    app: &AppId,
    checks: &[Check],
) -> Result<(), Failure> {
    let (rows, _) = try_on(client, app, checks, some_of(fleet, app)).await;
    let failing = |row: &&CheckRow| row.seen.failure.is_some();
    let bad: BTreeSet<&ServerId> = rows.iter().filter(failing).map(|row| &row.server).collect();
    let asked: BTreeSet<&ServerId> = rows.iter().map(|row| &row.server).collect();
    let Some(first) = rows.iter().find(failing).filter(|_| bad.len() == asked.len()) else {
        return Ok(());
    };
    let CheckRow { server, seen: CheckSeen { check, failure } } = first;
    let why = failure.as_deref().unwrap_or_default();
    let (count, servers) = (asked.len(), if asked.len() == 1 { "server" } else { "servers" });
    let error = format!(
        "none of {count} {servers} that run {app} passes these checks now: {server}: {check}: {why}"
    );
    Err(Failure::new("no_server_passes", error).exit(Exit::Usage))
}

/// A few servers of each group that has the app.
fn some_of(fleet: &Fleet, app: &AppId) -> BTreeMap<ServerId, String> {
    let has = |group: &&GroupId| fleet.groups[*group].apps.iter().any(|record| record.app == *app);
    let servers = fleet.groups.keys().filter(has).flat_map(|group| {
        let servers = fleet.servers.iter().filter(move |it| it.group == *group);
        servers.take(OF_A_GROUP_MAX)
    });
    servers.take(SERVERS_MAX).map(|it| (it.server.clone(), it.address.clone())).collect()
}

/// Makes checks on servers: what they saw, and the servers that gave no answer.
async fn try_on(
    client: &Client,
    app: &AppId,
    checks: &[Check],
    places: BTreeMap<ServerId, String>,
) -> (Vec<CheckRow>, Vec<(ServerId, Failure)>) {
    let request = CheckRequest { app: app.clone(), checks: checks.to_vec() };
    let one = async |(server, address): &(ServerId, String)| {
        let target = agent_target(server, address)?;
        let deadline = AGENT_DEADLINE + Duration::from_millis(CHECK_MS_MAX);
        let call = Call::post(CHECK, &request).deadline(deadline);
        let (_, answer): (_, CheckAnswer) = ask(client, &[target], call).await?;
        Ok::<_, Failure>(answer.checks)
    };
    let places: Vec<(ServerId, String)> = places.into_iter().collect();
    let answers = join_all(places.iter().map(one)).await;
    let (mut rows, mut unanswered) = (Vec::new(), Vec::new());
    for ((server, _), answer) in places.into_iter().zip(answers) {
        match answer {
            Ok(checks) => rows
                .extend(checks.into_iter().map(|seen| CheckRow { server: server.clone(), seen })),
            Err(failure) => unanswered.push((server, failure)),
        }
    }
    (rows, unanswered)
}
