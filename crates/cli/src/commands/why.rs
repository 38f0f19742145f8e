//! `cohort why`: what a group or server waits for.

use clap::Args;
use cohort_view::why::{server_waits, text, waits};

use crate::about::About;
use crate::answer::Answer;
use crate::args::{Direct, Global};
use crate::commands::context_of;
use crate::failure::{Exit, Failure};
use crate::group::report;
use crate::output::warn;

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// A group or a server [default: every group]
    #[arg(value_name = "GROUP|SERVER")]
    about: Option<String>,
    #[command(flatten)]
    direct: Direct,
}

pub(crate) async fn run(global: &Global, args: &WhyArgs) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let client = context.client()?;
    let about = About::find(&context, &args.direct, args.about.as_deref()).await?;
    let report = report(&context, &client, &args.direct, about.groups()).await?;
    warn(&report.origin);
    let status = match report.groups.as_slice() {
        [one] => one.status.as_ref(),
        _ => None,
    };
    let server = status.and_then(|status| Some((status, about.server_in(&status.group)?)));
    let found = match server {
        Some((status, server)) => server_waits(status, server),
        None => waits(&report),
    };
    global.output.answer(&Answer::Why(&found), || text(&found));
    Ok(if report.healthy { Exit::Done } else { Exit::Unhealthy })
}
