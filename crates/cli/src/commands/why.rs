//! `cohort why`: what a group or server waits for.

use clap::Args;
use cohort_core::ids::{GroupId, ServerId};

use crate::args::{Direct, Global};
use crate::commands::context_of;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::fleet::{self, know};
use crate::group::picture;
use crate::output::{Output, note, say, say_json};
use crate::view::report::FleetReport;
use crate::view::why::{server_waits, text, waits};

/// What `cohort why` takes.
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// A group or a server; every group when none is named
    #[arg(value_name = "GROUP|SERVER")]
    about: Option<String>,
    #[command(flatten)]
    direct: Direct,
}

/// Whom a name means.
struct About {
    group: Option<GroupId>,
    server: Option<ServerId>,
}

/// Says it.
pub(crate) async fn run(global: &Global, args: &WhyArgs) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let client = context.client()?;
    let about = match &args.about {
        None => About { group: None, server: None },
        Some(name) if fleet::is_direct(&args.direct) => {
            About { group: None, server: ServerId::new(name.clone()).ok() }
        }
        Some(name) => find(&context, name).await?,
    };
    let seen = picture(&context, &client, &args.direct, about.group.as_ref()).await?;
    let report = FleetReport::of(seen);
    if let Some(warning) = fleet::warning(&report.origin) {
        note(&warning);
    }
    let status = match report.groups.as_slice() {
        [one] => one.status.as_ref(),
        _ => None,
    };
    let of_server = about.server.as_ref().zip(status);
    // A direct agent is asked by a name that may as well be its group's.
    let found = of_server
        .filter(|(server, status)| status.group.as_str() != server.as_str())
        .map_or_else(|| waits(&report), |(server, status)| server_waits(status, server));
    match global.output {
        Output::Json => say_json(&found),
        Output::Text => say(&text(&found)),
    }
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
    let failure = Failure::new("no_such_name", format!("there is no group and no server `{name}`"));
    Err(match crate::toml_keys::nearest(name, names) {
        Some(near) => failure.hint(format!("did you mean `{near}`?")),
        None => failure.hint("cohort group list"),
    })
}
