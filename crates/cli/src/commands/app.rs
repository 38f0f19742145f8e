//! `cohort app`: policies, which say how an app's releases roll out.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cohort_core::ids::{AppId, GroupId};
use cohort_core::policy::{Check, Policy};
use cohort_identity::Identity;
use cohort_registry::fleet::Fleet;
use cohort_view::command::{Command, Flag};
use cohort_view::difference::{Change, difference};
use cohort_view::hint::Hint;
use cohort_wire::agent::{POLICIES, PolicyInForce};
use cohort_wire::http::Call;
use cohort_wire::hub::{
    FLEET, PolicyAnswer, PolicyRequest, RemoveAppAnswer, RemoveAppRequest, policy_path,
    remove_app_path,
};
use cohort_wire::intent::Wanted;
use serde::Deserialize as _;
use serde_json::Value;

use crate::answer::Answer;
use crate::args::{Direct, Global};
use crate::commands::{check, context_of};
use crate::connect::Hub;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::group::Steered;
use crate::output::{Output, note};
use crate::policy_file;
use crate::policy_known::{KnownPolicy, lasts, sign};

#[derive(Debug, Subcommand)]
pub(crate) enum AppCommand {
    /// Apply a policy; rollouts in progress keep the one they started with
    Apply(ApplyArgs),
    /// Show what `apply` would change (exit code 10 if anything)
    Diff(FileArgs),
    /// Stop an app on all servers, a few at a time, and forget it
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
    /// Show the policy of one app or all
    Show {
        /// App name
        app: Option<AppId>,
        /// The policy in force in this group, instead of the hub's
        #[arg(long, requires = "app")]
        group: Option<GroupId>,
        #[command(flatten)]
        direct: Direct,
    },
}

#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    /// Policy file, such as web.toml
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Sign and write it again, even if it has not changed: after the hub was restored
    #[arg(long)]
    again: bool,
    /// Apply checks that no server passes now, too
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// App name
    app: AppId,
    /// Remove it even if a group is rolling it out or back
    #[arg(long)]
    mid_rollout: bool,
}

pub(crate) async fn run(global: &Global, command: &AppCommand) -> Result<Exit, Failure> {
    match command {
        AppCommand::Apply(args) => apply(global, args).await,
        AppCommand::Diff(args) => diff(global, args).await,
        AppCommand::Remove(args) => remove(global, args).await,
        AppCommand::Show { app: Some(app), group: Some(group), direct } => {
            show_in_force(global, app, group, direct).await
        }
        AppCommand::Show { app, .. } => show(global, app.as_ref()).await,
    }
}

async fn apply(global: &Global, args: &ApplyArgs) -> Result<Exit, Failure> {
    let policy = policy_file::read(&args.file.file)?;
    let app = &policy.app;
    let context = context_of(global)?;
    let (hub, identity) = (Hub::of(&context)?, context.identity()?);
    let fleet: Fleet = hub.call(Call::get(FLEET)).await?;
    share_no_port(&policy, &fleet, &identity)?;
    let known = KnownPolicy::in_fleet(&fleet, app, &identity)?;
    let value = serde_json::to_value(&policy).or_fail("policy")?;
    let checks = |policy: &Value| policy.get("check").cloned();
    let rechecks = known.as_ref().is_some_and(|known| checks(&known.policy) != checks(&value));
    if rechecks && !args.force {
        let tried = check::refuse_hopeless(&context.client()?, &fleet, app, &policy.checks).await;
        tried.map_err(|failure| {
            failure.hint(Hint::add("to apply them all the same", Flag::Force))
        })?;
    }
    let lasts = match fleet.policies.get(app) {
        Some(signed) => lasts(&hub, &identity, signed).await?,
        None => true,
    };
    let (revision, changed) = match known {
        Some(known)
            if known.policy == value && known.unproven.is_none() && lasts && !args.again =>
        {
            (known.revision, false)
        }
        known => {
            let signed = sign(&identity, &fleet, app, Wanted::Policy(value))?;
            // When two operators apply at the same time, neither silently overwrites the other.
            let expected = Some(known.map(|known| known.revision).unwrap_or_default());
            let request = PolicyRequest { signed, expected };
            let answer: PolicyAnswer = hub.call(Call::post(policy_path(app), &request)).await?;
            (answer.revision, true)
        }
    };
    global.output.answer(&Answer::AppApply { app, revision, changed }, || match changed {
        true => {
            let tried = tried(rechecks && !policy.checks.is_empty());
            format!("policy of {app} applied (revision {revision})\n{tried}")
        }
        false => format!("policy of {app} is unchanged\n"),
    });
    if policy.checks.is_empty() {
        note(&format!(
            "the policy of {app} has no check: a release counts as good while its process lives"
        ));
    } else if policy_file::only_listens(&policy) {
        note(&format!(
            "the policy of {app} has one check: a release counts as good while it listens at its \
             port; for one that does not listen: check = []"
        ));
    }
    Ok(Exit::Done)
}

/// Refuses checks that look at the port of another app: one of the two is not what is meant.
fn share_no_port(policy: &Policy, fleet: &Fleet, identity: &Identity) -> Result<(), Failure> {
    for other in fleet.policies.keys().filter(|app| **app != policy.app) {
        let Some(known) = KnownPolicy::in_fleet(fleet, other, identity)? else { continue };
        // One that cannot be read is that app's matter.
        let Ok(theirs) = Policy::deserialize(&known.policy) else { continue };
        let shared = policy.checks.iter().filter_map(Check::port).find(|port| {
            let mut theirs = theirs.checks.iter().filter_map(Check::port);
            theirs.any(|their| their == *port)
        });
        if let Some(port) = shared {
            let error =
                format!("a check of {} is for port {port}, as is one of {other}", policy.app);
            return Err(Failure::new("shared_port", error)
                .hint("give each app a port of its own: `ports` in agent.toml")
                .exit(Exit::Usage));
        }
    }
    Ok(())
}

async fn remove(global: &Global, args: &RemoveArgs) -> Result<Exit, Failure> {
    let RemoveArgs { app, mid_rollout } = args;
    let context = context_of(global)?;
    let (hub, identity) = (Hub::of(&context)?, context.identity()?);
    let fleet: Fleet = hub.call(Call::get(FLEET)).await?;
    let signed = sign(&identity, &fleet, app, Wanted::Removal)?;
    let request = RemoveAppRequest { signed, mid_rollout: *mid_rollout };
    let answer: RemoveAppAnswer = hub.call(Call::post(remove_app_path(app), &request)).await?;
    let RemoveAppAnswer { revision, changed, groups } = &answer;
    let (revision, changed) = (*revision, *changed);
    global.output.answer(&Answer::AppRemove { app, revision, changed, groups }, || {
        let watch = Command::Status { group: None };
        match groups.len() {
            0 => format!("{app} is removed\n"),
            count => format!("{app} is being removed from {count} groups: {watch}\n"),
        }
    });
    Ok(Exit::Done)
}

/// What happens to changed checks.
fn tried(rechecks: bool) -> String {
    let why = Command::Why { group: None };
    match rechecks {
        true => format!(
            "servers try its changed checks before they use them; those that do not pass: {why}\n"
        ),
        false => String::new(),
    }
}

async fn diff(global: &Global, args: &FileArgs) -> Result<Exit, Failure> {
    let policy = policy_file::read(&args.file)?;
    let context = context_of(global)?;
    let fleet: Fleet = Hub::of(&context)?.call(Call::get(FLEET)).await?;
    let known = KnownPolicy::in_fleet(&fleet, &policy.app, &context.identity()?)?;
    let after = serde_json::to_value(&policy).or_fail("policy")?;
    let before = known.map_or(Value::Null, |known| known.policy);
    let changes = difference(&before, &after);
    global.output.answer(
        &Answer::AppDiff { app: &policy.app, changes: &changes },
        || match changes.as_slice() {
            [] => format!("policy of {} matches the file\n", policy.app),
            changes => changes.iter().map(Change::line).collect(),
        },
    );
    Ok(if changes.is_empty() { Exit::Done } else { Exit::SomethingToDo })
}

async fn show(global: &Global, app: Option<&AppId>) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let (hub, identity) = (Hub::of(&context)?, context.identity()?);
    let fleet: Fleet = hub.call(Call::get(FLEET)).await?;
    let wanted = fleet.policies.keys().filter(|known| app.is_none_or(|app| app == *known));
    let known = wanted.map(|app| KnownPolicy::in_fleet(&fleet, app, &identity));
    let policies: Vec<KnownPolicy> =
        known.filter_map(Result::transpose).collect::<Result<_, _>>()?;
    if let Some(app) = app.filter(|_| policies.is_empty()) {
        return Err(no_policy(app));
    }
    if policies.is_empty() && global.output == Output::Text {
        note(&format!("no app has a policy yet: {}", Command::AppApply));
    }
    let texts: Vec<String> = policies.iter().map(KnownPolicy::as_file).collect::<Result<_, _>>()?;
    global.output.answer(&Answer::AppShow(&policies), || texts.concat());
    Ok(Exit::Done)
}

/// The policy that a group has, which a hub that lost its registry does not.
async fn show_in_force(
    global: &Global,
    app: &AppId,
    group: &GroupId,
    direct: &Direct,
) -> Result<Exit, Failure> {
    let group = Steered::to(&context_of(global)?, direct, group).await?;
    let policies: Vec<PolicyInForce> = group.send(Call::get(POLICIES)).await?;
    let known = policies.into_iter().find(|known| known.app == *app);
    let PolicyInForce { app, revision, policy } = known.ok_or_else(|| no_policy(app))?;
    let by = format!("group {}", group.status.group);
    let policy = serde_json::to_value(&policy).or_fail("policy")?;
    let known = KnownPolicy { app, revision, policy, by, at: 0, unproven: None };
    let text = known.as_file()?;
    global.output.answer(&Answer::AppShow(&[known]), || text);
    Ok(Exit::Done)
}

pub(crate) fn no_policy(app: &AppId) -> Failure {
    Failure::new("no_such_app", format!("app {app} has no policy")).hint(Command::AppApply)
}
