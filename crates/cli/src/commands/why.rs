//! `cohort why`: what a group or server waits for.

use clap::Args;
use cohort_core::ids::{GroupId, ServerId};
use cohort_view::command::Command;
use cohort_view::hint::Hint;
use cohort_view::why::{server_waits, text, waits};

use crate::answer::Answer;
use crate::args::{Direct, Global};
use crate::commands::context_of;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::fleet::{self, Groups, know};
use crate::group::report;
use crate::output::warn;
use crate::toml_keys::nearest;

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// A group or a server [default: every group]
    #[arg(value_name = "GROUP|SERVER")]
    about: Option<String>,
    #[command(flatten)]
    direct: Direct,
}

/// What a name refers to; neither: every group.
#[derive(Default)]
struct About {
    group: Option<GroupId>,
    server: Option<ServerId>,
}

pub(crate) async fn run(global: &Global, args: &WhyArgs) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let client = context.client()?;
    let about = match &args.about {
        None => About::default(),
        Some(name) if fleet::is_direct(&args.direct) => {
            About { group: None, server: ServerId::new(name.clone()).ok() }
        }
        Some(name) => find(&context, name).await?,
    };
    let groups = about.group.as_ref().map_or(Groups::All, Groups::One);
    let report = report(&context, &client, &args.direct, groups).await?;
    warn(&report.origin);
    let status = match report.groups.as_slice() {
        [one] => one.status.as_ref(),
        _ => None,
    };
    let found = match about.server.as_ref().zip(status) {
        // With `--agent`, the name may be the group's.
        Some((server, status)) if status.group.as_str() != server.as_str() => {
            server_waits(status, server)
        }
        _ => waits(&report),
    };
    global.output.answer(&Answer::Why(&found), || text(&found));
    Ok(if report.healthy { Exit::Done } else { Exit::Unhealthy })
}

async fn find(context: &Context, name: &str) -> Result<About, Failure> {
    let (known, _) = know(context).await?;
    if let Ok(group) = GroupId::new(name)
        && known.groups.contains_key(&group)
    {
        return Ok(About { group: Some(group), server: None });
    }
    if let Some(group) = known.group_of(name) {
        return Ok(About { group: Some(group.clone()), server: ServerId::new(name).ok() });
    }
    let servers = known.groups.values().flat_map(|group| &group.servers).map(ServerId::as_str);
    let names = known.groups.keys().map(GroupId::as_str).chain(servers);
    let hint = nearest(name, names)
        .map_or_else(|| Command::GroupList.into(), |near| Hint::Meant(near.to_owned()));
    Err(Failure::new("no_such_name", format!("no group or server `{name}`")).hint(hint))
}
