//! `cohort rollout`: watch and steer a rollout.

use clap::{Args, Subcommand};
use cohort_core::Body;
use cohort_core::ids::{AppId, GroupId, RequestId};
use cohort_core::policy::{Duration, InvalidValue};
use cohort_core::state::Ending;
use cohort_view::command::{Command, Flag};
use cohort_view::figures::brief;
use cohort_view::hint::Hint;
use cohort_view::table::{cell, render, table};
use cohort_view::words;
use cohort_wire::agent::{
    AppStatus, COMMAND, CommandAnswer, CommandRequest, GroupStatus, SignedSubmission, Submission,
    ToGroup,
};
use cohort_wire::http::Call;
use jiff::Timestamp;

use crate::answer::Answer;
use crate::args::{Direct, Global};
use crate::commands::{context_of, rollout_plan, status};
use crate::failure::{Exit, Failure, OrFail as _};
use crate::fleet::{Groups, Selector, know};
use crate::group::{Steered, no_such_app};
use crate::output::{look, note, warn};

/// The kind of failure if a group has understood a command, and refused it.
const REJECTED: &str = "rejected";

#[derive(Debug, Subcommand)]
pub(crate) enum RolloutCommand {
    /// Show what would happen next: release, waves, gates, bytes (exit code 10 if anything)
    Plan(rollout_plan::PlanArgs),
    /// Show progress, same as `cohort status GROUP`
    Status(status::StatusArgs),
    /// Start no rollout and no new servers until resumed; let those in progress finish
    #[command(visible_alias = "freeze")]
    Pause(PauseArgs),
    /// End a pause; overrules a bad verdict from another group
    #[command(visible_alias = "unfreeze")]
    Resume(Several),
    /// Continue after a wave that needs approval
    Approve(Several),
    /// Roll back to the last good release now
    Abort(Because),
    /// Retry a rejected release, and servers that failed to return to the last good one
    Retry(Several),
    /// Go back to the good release before the current one
    Undo(Several),
    /// Show earlier rollouts and how they ended
    History(Which),
}

#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Group name
    group: GroupId,
    /// App name; required if the group has several
    #[arg(long)]
    app: Option<AppId>,
    #[command(flatten)]
    direct: Direct,
}

/// One group, or several.
#[derive(Debug, Args)]
pub(crate) struct Several {
    /// Group name
    #[arg(required_unless_present_any = ["all", "selector"])]
    group: Option<GroupId>,
    /// Every group
    #[arg(long, conflicts_with_all = ["group", "selector", "agent"])]
    all: bool,
    /// Groups with these labels, such as zone=zone-a,app=web
    #[arg(long, conflicts_with_all = ["group", "agent"], value_name = "LABEL=VALUE,…")]
    selector: Option<Selector>,
    /// App name; required if a group has several
    #[arg(long)]
    app: Option<AppId>,
    #[command(flatten)]
    direct: Direct,
}

#[derive(Debug, Args)]
pub(crate) struct Because {
    #[command(flatten)]
    which: Several,
    /// Reason, shown in status and history
    #[arg(long, default_value = "")]
    reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    because: Because,
    /// How long, such as 12h; without it, until it is resumed
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    lasting: Option<Duration>,
    /// Until when, such as 2026-12-27T06:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "lasting")]
    until: Option<Timestamp>,
}

fn duration(text: &str) -> Result<Duration, InvalidValue> {
    text.to_owned().try_into()
}

impl PauseArgs {
    /// How long, in milliseconds.
    fn for_ms(&self) -> Result<Option<u64>, Failure> {
        let Some(until) = self.until else { return Ok(self.lasting.map(|lasting| lasting.ms)) };
        let left = until.as_millisecond() - Timestamp::now().as_millisecond();
        let left = u64::try_from(left).ok().filter(|left| *left > 0);
        left.map(Some).ok_or_else(|| Failure::usage(format!("{until} has passed")))
    }
}

pub(crate) async fn run(global: &Global, command: &RolloutCommand) -> Result<Exit, Failure> {
    match command {
        RolloutCommand::Plan(args) => rollout_plan::run(global, args).await,
        RolloutCommand::Status(args) => status::run(global, args).await,
        RolloutCommand::Pause(args) => {
            let (Because { which, reason }, for_ms) = (&args.because, args.for_ms()?);
            let body =
                |app, _: &GroupStatus| Ok(Body::Pause { app, reason: reason.clone(), for_ms });
            steer(global, which, body, "paused").await
        }
        RolloutCommand::Resume(which) => {
            steer(global, which, |app, _| Ok(Body::Resume { app }), "resumed").await
        }
        RolloutCommand::Approve(which) => {
            steer(global, which, |app, _| Ok(Body::Approve { app }), "approved").await
        }
        RolloutCommand::Abort(Because { which, reason }) => {
            let body = |app, _: &GroupStatus| Ok(Body::Abort { app, reason: reason.clone() });
            steer(global, which, body, "aborted: rolling back").await
        }
        RolloutCommand::Retry(which) => {
            steer(global, which, |app, _| Ok(Body::Retry { app }), "retried").await
        }
        RolloutCommand::Undo(which) => {
            let body = |app, status: &GroupStatus| {
                let lead = status.leader.clone().ok_or_else(|| no_leader(status))?;
                Ok(Body::Undo { app, lead })
            };
            steer(global, which, body, "undone: going back to the release before").await
        }
        RolloutCommand::History(which) => history(global, which).await,
    }
}

fn no_leader(status: &GroupStatus) -> Failure {
    let error = format!("group {} has no leader right now", status.group);
    Failure::new("no_leader", error).hint(Command::Why { group: Some(status.group.clone()) })
}

async fn steer(
    global: &Global,
    which: &Several,
    body: impl Fn(AppId, &GroupStatus) -> Result<Body, Failure>,
    done: &str,
) -> Result<Exit, Failure> {
    if let Some(group) = &which.group {
        return steer_one(global, which, group, &body, done).await;
    }
    let groups = which.selector.as_ref().map_or(Groups::All, Groups::Some);
    let (known, origin) = know(&context_of(global)?).await?;
    warn(&origin);
    let (mut steered, mut failed) = (0, false);
    for group in known.chosen(groups)?.groups.keys() {
        match steer_one(global, which, group, &body, done).await {
            Ok(_) => steered += 1,
            // That one of many has nothing to resume, say, is no failure.
            Err(failure) => {
                failed |= failure.kind != REJECTED;
                note(&format!("{group}: {}", failure.error));
            }
        }
    }
    Ok(if failed || steered == 0 { Exit::Failed } else { Exit::Done })
}

async fn steer_one(
    global: &Global,
    which: &Several,
    group: &GroupId,
    body: &impl Fn(AppId, &GroupStatus) -> Result<Body, Failure>,
    done: &str,
) -> Result<Exit, Failure> {
    let steered = Steered::to(&context_of(global)?, &which.direct, group).await?;
    let app = app_of(which.app.as_ref(), &steered.status)?;
    let body = body(app.clone(), &steered.status)?;
    let index = command(&steered, group, body).await?.index;
    global.output.answer(&Answer::RolloutSteer { group, app: &app, index }, || {
        let next = Command::RolloutStatus { group: group.clone() };
        format!("rollout of {app} in {group} {done}\nnext: {next}\n")
    });
    Ok(Exit::Done)
}

/// Proposes a command to a group, and waits until it is committed and applied.
pub(crate) async fn command(
    steered: &Steered,
    group: &GroupId,
    body: Body,
) -> Result<CommandAnswer, Failure> {
    // Unique: time in nanoseconds, and process id.
    let now = Timestamp::now().as_nanosecond();
    let request = RequestId(format!("cli-{now:x}-{:x}", std::process::id()));
    let submission = Submission::Command(CommandRequest { request, body });
    let signed =
        SignedSubmission::sign(&steered.identity, group, submission).or_fail("signature")?;
    let message = ToGroup::new(group, signed);
    let answer: CommandAnswer = steered.send(Call::post(COMMAND, &message)).await?;
    match answer.rejection {
        None => Ok(answer),
        Some(rejection) => {
            let reason = words::rejection(&rejection);
            Err(Failure::new(REJECTED, format!("group {group} refused: {reason}"))
                .hint(Command::Why { group: Some(group.clone()) })
                .hint(Command::Status { group: Some(group.clone()) }))
        }
    }
}

/// The named app, or the group's only one.
pub(crate) fn app_of(named: Option<&AppId>, status: &GroupStatus) -> Result<AppId, Failure> {
    let group = &status.group;
    let names: Vec<&str> = status.apps.keys().map(AppId::as_str).collect();
    match (named, status.apps.keys().collect::<Vec<_>>().as_slice()) {
        (Some(app), all) if all.contains(&app) => Ok(app.clone()),
        (Some(app), _) => Err(no_such_app(group, app, &names)),
        (None, [app]) => Ok((*app).clone()),
        (None, []) => Err(Failure::new("no_such_app", format!("group {group} has no app yet"))
            .hint(Command::AppApply)),
        (None, _) => Err(Failure::usage(format!("group {group} has several apps"))
            .hint(Hint::add(format!("choose one of {}", names.join(", ")), Flag::App))),
    }
}

async fn history(global: &Global, which: &Which) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let status = Steered::to(&context, &which.direct, &which.group).await?.status;
    let app = app_of(which.app.as_ref(), &status)?;
    let Some(AppStatus { history, .. }) = status.apps.get(&app) else { return Ok(Exit::Done) };
    let answer = Answer::RolloutHistory { group: &which.group, app: &app, history };
    global.output.answer(&answer, || {
        if history.is_empty() {
            return "no earlier rollouts\n".to_owned();
        }
        let headings = ["RELEASE", "ENDED", "AGO", "TOOK", "WAVES", "BY", "REASON"];
        let mut rows = table(look(), &headings);
        for entry in history.iter().rev() {
            rows.add_row([
                cell(&entry.version),
                cell(ending(entry.ending)),
                cell(brief(status.clock.since(entry.ended))),
                cell(brief(entry.ended.since(entry.started))),
                cell(entry.waves),
                cell(&entry.by),
                cell(entry.reason.as_ref().map_or_else(String::new, words::reason)),
            ]);
        }
        render(&rows)
    });
    Ok(Exit::Done)
}

fn ending(ending: Ending) -> &'static str {
    match ending {
        Ending::Completed => "completed",
        Ending::RolledBack => "rolled back",
        Ending::HeldInPlace => "held in place",
        Ending::Superseded => "superseded",
        Ending::Adopted => "adopted",
    }
}
