//! `cohort rollout plan`: what would happen next in a group.

use clap::Args;
use cohort_core::ids::{AppId, GroupId};

use crate::args::{Direct, Global};
use crate::failure::{Exit, Failure};

/// What `cohort rollout plan` takes.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The group
    group: GroupId,
    /// The app; needed when the group has several
    #[arg(long)]
    app: Option<AppId>,
    #[command(flatten)]
    direct: Direct,
}

/// Shows it.
pub(crate) async fn run(_global: &Global, _args: &PlanArgs) -> Result<Exit, Failure> {
    Err(Failure::new("not_yet", "not yet"))
}
