//! `cohort app`: how an app's releases roll.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cohort_core::ids::AppId;
use cohort_core::policy::Policy;
use cohort_registry::fleet::Fleet;
use cohort_registry::records::VersionedPolicy;
use cohort_wire::http::Call;
use cohort_wire::hub::{FLEET, PolicyAnswer, PolicyRequest, policy_path};

use crate::args::Global;
use crate::commands::context_of;
use crate::connect::Hub;
use crate::failure::{Exit, Failure};
use crate::output::{Output, note, say, say_json};
use crate::policy_file;
use crate::view::difference::difference;

/// What `cohort app` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum AppCommand {
    /// Make this policy the app's; rollouts in progress keep the one that they began with
    Apply(FileArgs),
    /// Show what `apply` would change (exit code 10 when anything)
    Diff(FileArgs),
    /// Show the policy of an app, or of every app
    Show {
        /// The app
        app: Option<AppId>,
    },
}

/// A policy file.
#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    /// The policy, such as web.toml
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

/// Does it.
pub(crate) async fn run(global: &Global, command: &AppCommand) -> Result<Exit, Failure> {
    match command {
        AppCommand::Apply(args) => apply(global, args).await,
        AppCommand::Diff(args) => diff(global, args).await,
        AppCommand::Show { app } => show(global, app.as_ref()).await,
    }
}

async fn apply(global: &Global, args: &FileArgs) -> Result<Exit, Failure> {
    let policy = policy_file::read(&args.file)?;
    let hub = Hub::of(&context_of(global)?)?;
    let known = known_policy(&hub, &policy.app).await?;
    let value = serde_json::to_value(&policy).map_err(|error| Failure::of("policy", &error))?;
    if let Some(known) = known.as_ref().filter(|known| known.record.policy == value) {
        match global.output {
            Output::Json => say_json(&serde_json::json!({
                "app": policy.app, "revision": known.revision, "changed": false,
            })),
            Output::Text => say(&format!("policy of {} is unchanged\n", policy.app)),
        }
        return Ok(Exit::Done);
    }
    // Only over what was seen: two people who apply at once do not undo each other unseen.
    let expected = Some(known.map(|known| known.revision).unwrap_or_default());
    let request = PolicyRequest { policy: value, expected };
    let PolicyAnswer { revision } =
        hub.call(Call::post(policy_path(&policy.app), &request)).await?;
    match global.output {
        Output::Json => say_json(&serde_json::json!({
            "app": policy.app, "revision": revision, "changed": true,
        })),
        Output::Text => say(&format!("policy of {} applied (revision {revision})\n", policy.app)),
    }
    Ok(Exit::Done)
}

async fn diff(global: &Global, args: &FileArgs) -> Result<Exit, Failure> {
    let policy = policy_file::read(&args.file)?;
    let hub = Hub::of(&context_of(global)?)?;
    let known = known_policy(&hub, &policy.app).await?;
    let after = serde_json::to_value(&policy).map_err(|error| Failure::of("policy", &error))?;
    let before = known.map_or(serde_json::Value::Null, |known| known.record.policy);
    let changes = difference(&before, &after);
    match global.output {
        Output::Json => say_json(&serde_json::json!({ "app": policy.app, "changes": changes })),
        Output::Text if changes.is_empty() => {
            say(&format!("policy of {} is as in the file\n", policy.app));
        }
        Output::Text => {
            for change in &changes {
                say(&change.line());
            }
        }
    }
    Ok(if changes.is_empty() { Exit::Done } else { Exit::SomethingToDo })
}

async fn show(global: &Global, app: Option<&AppId>) -> Result<Exit, Failure> {
    let hub = Hub::of(&context_of(global)?)?;
    let fleet: Fleet = hub.call(Call::get(FLEET)).await?;
    let policies: Vec<&VersionedPolicy> = fleet
        .policies
        .iter()
        .filter(|policy| app.is_none_or(|app| *app == policy.record.app))
        .collect();
    if let Some(app) = app.filter(|_| policies.is_empty()) {
        return Err(Failure::new("no_such_app", format!("app {app} has no policy"))
            .hint("cohort app apply -f FILE"));
    }
    match global.output {
        Output::Json => say_json(&policies),
        Output::Text if policies.is_empty() => {
            note("no app has a policy: cohort app apply -f FILE");
        }
        Output::Text => {
            for policy in policies {
                say(&as_file(policy)?);
            }
        }
    }
    Ok(Exit::Done)
}

/// The policy as a file that could be applied again, every default spelled out.
fn as_file(known: &VersionedPolicy) -> Result<String, Failure> {
    let policy: Policy = serde_json::from_value(known.record.policy.clone())
        .map_err(|error| Failure::of("policy", &error))?;
    let text = toml::to_string(&policy).map_err(|error| Failure::of("policy", &error))?;
    Ok(format!("# revision {}, by {}\n{text}\n", known.revision, known.record.by))
}

async fn known_policy(hub: &Hub, app: &AppId) -> Result<Option<VersionedPolicy>, Failure> {
    let fleet: Fleet = hub.call(Call::get(FLEET)).await?;
    Ok(fleet.policies.into_iter().find(|policy| policy.record.app == *app))
}
