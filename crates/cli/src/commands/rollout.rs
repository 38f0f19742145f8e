//! `cohort rollout`: see and steer a rollout.

use clap::{Args, Subcommand};
use cohort_core::Body;
use cohort_core::ids::{AppId, GroupId, RequestId};
use cohort_wire::agent::{COMMAND, CONTROL_VERSION, CommandAnswer, CommandRequest, GroupStatus};
use cohort_wire::http::Call;
use serde_json::json;

use crate::args::{Direct, Global};
use crate::clock::brief;
use crate::commands::{context_of, rollout_plan, status};
use crate::failure::{Exit, Failure};
use crate::group::Spoken;
use crate::output::{Look, Output, cell, render, say, say_json, table};

/// What `cohort rollout` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum RolloutCommand {
    /// What would happen next: release, waves, gates, bytes (exit code 10 when anything)
    Plan(rollout_plan::PlanArgs),
    /// How far it is: as `cohort status GROUP`
    Status(status::StatusArgs),
    /// Begin nothing new; what is being done to a server is finished
    Pause(Because),
    /// Go on after a pause; overrules a bad verdict from another group
    Resume(Which),
    /// Go on after the wave that asks for approval
    Approve(Which),
    /// Go back to the last good release now
    Abort(Because),
    /// Try the rejected release, and debts that failed, again
    Retry(Which),
    /// Go to the release that was good before this one
    Undo(Which),
    /// What was rolled out before, and how it ended
    History(Which),
}

/// Which rollout.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The group
    group: GroupId,
    /// The app; needed when the group has several
    #[arg(long)]
    app: Option<AppId>,
    #[command(flatten)]
    direct: Direct,
}

/// Which rollout, and why.
#[derive(Debug, Args)]
pub(crate) struct Because {
    #[command(flatten)]
    which: Which,
    /// Why, for whoever finds it so
    #[arg(long, default_value = "")]
    reason: String,
}

/// Does it.
pub(crate) async fn run(global: &Global, command: &RolloutCommand) -> Result<Exit, Failure> {
    match command {
        RolloutCommand::Plan(args) => rollout_plan::run(global, args).await,
        RolloutCommand::Status(args) => status::run(global, args).await,
        RolloutCommand::Pause(Because { which, reason }) => {
            let body = |app, _: &GroupStatus| Ok(Body::Pause { app, reason: reason.clone() });
            tell(global, which, body, "is paused", "resume").await
        }
        RolloutCommand::Resume(which) => {
            tell(global, which, |app, _| Ok(Body::Resume { app }), "goes on", "status").await
        }
        RolloutCommand::Approve(which) => {
            tell(global, which, |app, _| Ok(Body::Approve { app }), "is approved", "status").await
        }
        RolloutCommand::Abort(Because { which, reason }) => {
            let body = |app, _: &GroupStatus| Ok(Body::Abort { app, reason: reason.clone() });
            tell(global, which, body, "is aborted: the group goes back", "status").await
        }
        RolloutCommand::Retry(which) => {
            tell(global, which, |app, _| Ok(Body::Retry { app }), "is tried again", "status").await
        }
        RolloutCommand::Undo(which) => {
            let body = |app, status: &GroupStatus| {
                let lead = status.leader.clone().ok_or_else(|| no_leader(status))?;
                Ok(Body::Undo { app, lead })
            };
            tell(global, which, body, "is undone: the group goes to the release before", "status")
                .await
        }
        RolloutCommand::History(which) => history(global, which).await,
    }
}

fn no_leader(status: &GroupStatus) -> Failure {
    let error = format!("group {} has no leader right now", status.group);
    Failure::new("no_leader", error).hint(format!("cohort why {}", status.group))
}

async fn tell(
    global: &Global,
    which: &Which,
    body: impl FnOnce(AppId, &GroupStatus) -> Result<Body, Failure>,
    done: &str,
    next: &str,
) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let spoken = Spoken::to(&context, &which.direct, &which.group).await?;
    let app = which.app(&spoken.status)?;
    let body = body(app.clone(), &spoken.status)?;
    let answer = command(&spoken, &which.group, body).await?;
    match global.output {
        Output::Json => say_json(&json!({
            "group": which.group, "app": app, "index": answer.index,
        })),
        Output::Text => {
            let group = &which.group;
            say(&format!("rollout of {app} in {group} {done}\n"));
            say(&format!("next: cohort rollout {next} {group}\n"));
        }
    }
    Ok(Exit::Done)
}

/// Gives a command to a group, and waits until it stands in its log.
pub(crate) async fn command(
    spoken: &Spoken,
    group: &GroupId,
    body: Body,
) -> Result<CommandAnswer, Failure> {
    let request = CommandRequest {
        version: CONTROL_VERSION,
        group: group.clone(),
        request: request_id(),
        body,
    };
    let answer: CommandAnswer = spoken.say(Call::post(COMMAND, &request)).await?;
    match answer.rejection {
        None => Ok(answer),
        Some(reason) => Err(Failure::new("rejected", format!("group {group} refuses: {reason}"))
            .hint(format!("cohort why {group}"))
            .hint(format!("cohort status {group}"))),
    }
}

/// Different every time: when, to the nanosecond, and which process.
fn request_id() -> RequestId {
    let now = jiff::Timestamp::now().as_nanosecond();
    RequestId(format!("cli-{now:x}-{:x}", std::process::id()))
}

impl Which {
    /// The app that is meant.
    fn app(&self, status: &GroupStatus) -> Result<AppId, Failure> {
        app_of(self.app.as_ref(), status)
    }
}

/// The app that is meant: the one that is named, or the only one.
pub(crate) fn app_of(named: Option<&AppId>, status: &GroupStatus) -> Result<AppId, Failure> {
    let group = &status.group;
    let names: Vec<&str> = status.apps.keys().map(AppId::as_str).collect();
    match (named, names.as_slice()) {
        (Some(app), _) if status.apps.contains_key(app) => Ok(app.clone()),
        (Some(app), _) => {
            let error = format!("group {group} has no app `{app}`");
            let failure = Failure::new("no_such_app", error);
            Err(match crate::toml_keys::nearest(app.as_str(), names.iter().copied()) {
                Some(near) => failure.hint(format!("did you mean `{near}`?")),
                None => failure.hint(format!("it has: {}", names.join(", "))),
            })
        }
        (None, [_]) => Ok(status.apps.keys().next().cloned().expect("there is one")),
        (None, []) => Err(Failure::new("no_such_app", format!("group {group} has no app yet"))
            .hint("cohort app apply -f FILE")),
        (None, _) => Err(Failure::usage(format!("group {group} has several apps"))
            .hint(format!("say --app, one of: {}", names.join(", ")))),
    }
}

async fn history(global: &Global, which: &Which) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let status = Spoken::to(&context, &which.direct, &which.group).await?.status;
    let app = which.app(&status)?;
    let history = status.apps.get(&app).map(|app| app.history.as_slice()).unwrap_or_default();
    match global.output {
        Output::Json => {
            say_json(&json!({ "group": which.group, "app": app, "history": history }));
        }
        Output::Text if history.is_empty() => say("nothing was rolled out before\n"),
        Output::Text => {
            let headings = ["RELEASE", "ENDED", "AGO", "TOOK", "WAVES", "BY", "REASON"];
            let mut rows = table(Look::of_stdout(), &headings);
            for entry in history.iter().rev() {
                let ending = serde_json::to_value(entry.ending).unwrap_or_default();
                rows.add_row([
                    cell(&entry.version),
                    cell(ending.as_str().unwrap_or_default()),
                    cell(brief(status.clock.since(entry.ended))),
                    cell(brief(entry.ended.since(entry.started))),
                    cell(entry.waves),
                    cell(&entry.by),
                    cell(entry.reason.as_ref().map_or_else(String::new, ToString::to_string)),
                ]);
            }
            say(&render(&rows));
        }
    }
    Ok(Exit::Done)
}
