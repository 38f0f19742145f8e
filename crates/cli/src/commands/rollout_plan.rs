//! `cohort rollout plan`: what would happen next in a group.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use cohort_artifact::TrustedRepository;
use cohort_core::State;
use cohort_core::gate::{ForeignVerdict, GroupInfo, RegistryView, gate};
use cohort_core::ids::{AppId, Digest, GroupId, Platform, Version};
use cohort_core::policy::Policy;
use cohort_core::waiting::WaitingOn;
use cohort_registry::fleet::Fleet;
use cohort_view::moving::Difference;
use cohort_view::plan::{Offered, plan, text};
use cohort_wire::agent::GroupStatus;
use cohort_wire::http::Call;
use cohort_wire::hub::FLEET;

use crate::answer::Answer;
use crate::args::{Direct, Global};
use crate::commands::app::no_policy;
use crate::commands::context_of;
use crate::commands::rollout::app_of;
use crate::connect::Hub;
use crate::context::Context;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::group::Steered;
use crate::policy_known::KnownPolicy;
use crate::workplace::reader;

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Group name
    group: GroupId,
    /// App name; required if the group has several
    #[arg(long)]
    app: Option<AppId>,
    /// Plan for this version before the policy's channel points to it
    #[arg(long)]
    version: Option<Version>,
    #[command(flatten)]
    direct: Direct,
}

/// Only the hub knows policies and gates: it is asked even with `--agent`.
pub(crate) async fn run(global: &Global, args: &PlanArgs) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let fleet: Fleet = Hub::of(&context)?.call(Call::get(FLEET)).await?;
    let identity = context.identity()?;
    let status = Steered::to(&context, &args.direct, &args.group).await?.status;
    let app = app_of(args.app.as_ref(), &status)?;
    let known = KnownPolicy::in_fleet(&fleet, &app, &identity)?.ok_or_else(|| no_policy(&app))?;
    let policy: Policy = serde_json::from_value(known.policy).or_fail("policy")?;
    let offered = offer(&context, &status, &policy, args.version.as_ref()).await?;
    let kept = kept_by(&fleet, &status, &policy, &offered);
    let plan = plan(&status, &app, &policy, known.revision, &offered, kept.as_ref());
    global.output.answer(&Answer::RolloutPlan(&plan), || text(&plan));
    Ok(if plan.change { Exit::SomethingToDo } else { Exit::Done })
}

/// The given version, or the one that the policy's channel offers for the group's platform;
/// verified as a server would verify it.
async fn offer(
    context: &Context,
    status: &GroupStatus,
    policy: &Policy,
    version: Option<&Version>,
) -> Result<Offered, Failure> {
    let platform = status.platform.as_ref().ok_or_else(|| {
        Failure::new("not_ready", format!("group {} is not set up yet", status.group))
    })?;
    let reader = reader(context).await?;
    let app = &policy.app;
    let found = match version {
        Some(version) => reader.manifest(app, version, platform).await,
        None => reader.latest(app, &policy.channel, platform).await,
    };
    let manifest = found.or_fail("repository")?;
    let differences = manifest
        .deltas
        .iter()
        .map(|delta| Difference { from: delta.from.clone(), length: delta.length });
    Ok(Offered {
        version: manifest.version.clone(),
        length: manifest.length,
        differences: differences.collect(),
        base: base(&reader, status, app, platform).await,
    })
}

/// Root hash of what the whole group runs. `None` if the repository no longer has it; then there is
/// no delta from it either.
async fn base(
    reader: &TrustedRepository,
    status: &GroupStatus,
    app: &AppId,
    platform: &Platform,
) -> Option<Digest> {
    let good = status.apps.get(app)?.last_good.as_ref()?;
    let manifest = reader.manifest(app, good, platform).await.ok()?;
    Some(manifest.root.clone())
}

/// What keeps the group from starting, by its leader's own rule.
fn kept_by(
    fleet: &Fleet,
    status: &GroupStatus,
    policy: &Policy,
    offered: &Offered,
) -> Option<WaitingOn> {
    let mut state = State::new(status.group.clone(), status.incarnation);
    state.labels = status.labels.clone().into();
    state.platform.clone_from(&status.platform);
    let groups = fleet.groups.iter().filter_map(|(name, group)| {
        let info = group.info.as_ref()?;
        let info = GroupInfo { labels: info.labels.clone(), platform: info.platform.clone() };
        Some((name.clone(), info))
    });
    let verdicts = fleet.verdicts.iter().map(|verdict| ForeignVerdict {
        group: verdict.group.clone(),
        app: verdict.app.clone(),
        version: verdict.version.clone(),
        platform: verdict.platform.clone(),
        bad: verdict.record.bad.clone(),
    });
    let view = RegistryView {
        proofs: BTreeMap::new(),
        unusable: BTreeSet::new(),
        policies: BTreeMap::new(),
        removed: BTreeMap::new(),
        groups: groups.collect(),
        verdicts: verdicts.collect(),
    };
    gate(&state, &view, &policy.app, policy, &offered.version)
}
