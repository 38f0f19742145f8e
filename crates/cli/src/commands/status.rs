//! `cohort status`: every group, or one; once, live, or until all is well.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use clap::Args;
use cohort_core::ids::{AppId, GroupId, Version};
use cohort_wire::http::Client;

use crate::args::{Direct, Global};
use crate::clock::brief;
use crate::commands::context_of;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::fleet;
use crate::group::picture;
use crate::output::{Look, Output, note, say, say_json, say_json_line};
use crate::view::report::FleetReport;
use crate::view::status as view;

/// What `cohort status` takes.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The group; all when none is named
    group: Option<GroupId>,
    /// Show it again and again, until interrupted; with `-o json`, one line each time
    #[arg(short, long)]
    watch: bool,
    /// How often `--watch` and `--wait` look, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..))]
    interval_ms: u64,
    /// Wait until healthy, for at most so many seconds (exit code 4 when it took longer)
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// With --wait: until this version runs everywhere
    #[arg(long, requires = "wait")]
    version: Option<Version>,
    /// With --wait: look at this app only
    #[arg(long, requires = "wait")]
    app: Option<AppId>,
    #[command(flatten)]
    direct: Direct,
}

/// Shows it.
pub(crate) async fn run(global: &Global, args: &StatusArgs) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let client = context.client()?;
    match args.wait {
        Some(seconds) => wait(global, args, &context, &client, seconds).await,
        None if args.watch => watch(global, args, &context, &client).await,
        None => {
            let report = look(args, &context, &client).await?;
            show(global, args, &report);
            Ok(exit_of(&report))
        }
    }
}

async fn look(
    args: &StatusArgs,
    context: &Context,
    client: &Client,
) -> Result<FleetReport, Failure> {
    Ok(FleetReport::of(picture(context, client, &args.direct, args.group.as_ref()).await?))
}

fn exit_of(report: &FleetReport) -> Exit {
    if report.healthy { Exit::Done } else { Exit::Unhealthy }
}

fn show(global: &Global, args: &StatusArgs, report: &FleetReport) {
    match global.output {
        Output::Json => say_json(report),
        Output::Text => {
            if let Some(warning) = fleet::warning(&report.origin) {
                note(&warning);
            }
            say(&text(args, report, Look::of_stdout()));
        }
    }
}

fn text(args: &StatusArgs, report: &FleetReport, look: Look) -> String {
    match (args.group.is_some() || fleet::is_direct(&args.direct), report.groups.as_slice()) {
        (true, [group]) => view::group(group, look),
        _ => view::fleet(report, look),
    }
}

/// Never ends by itself: a hub or group that goes away is part of what is watched.
async fn watch(
    global: &Global,
    args: &StatusArgs,
    context: &Context,
    client: &Client,
) -> Result<Exit, Failure> {
    let terminal = io::stdout().is_terminal();
    if terminal && global.output == Output::Text {
        say("\x1b[2J");
    }
    loop {
        let frame = match look(args, context, client).await {
            Ok(report) => {
                if global.output == Output::Json {
                    say_json_line(&report);
                }
                let warning = fleet::warning(&report.origin).map(|text| text + "\n");
                warning.unwrap_or_default() + &text(args, &report, Look::of_stdout())
            }
            Err(failure) if global.output == Output::Json => {
                say_json_line(&failure);
                String::new()
            }
            Err(failure) => format!("error: {}\n", failure.error),
        };
        if global.output == Output::Text {
            // Home, every line cleared to its end, and what is below it: no flicker.
            let frame = if terminal {
                format!("\x1b[H{}\x1b[J", frame.replace('\n', "\x1b[K\n"))
            } else {
                format!("{frame}\n")
            };
            say(&frame);
        }
        tokio::time::sleep(Duration::from_millis(args.interval_ms)).await;
    }
}

async fn wait(
    global: &Global,
    args: &StatusArgs,
    context: &Context,
    client: &Client,
    seconds: u64,
) -> Result<Exit, Failure> {
    let begun = Instant::now();
    let at_most = Duration::from_secs(seconds);
    let mut last_said = String::new();
    loop {
        let seen = look(args, context, client).await;
        let settled = seen
            .as_ref()
            .is_ok_and(|report| report.settled_on(args.app.as_ref(), args.version.as_ref()));
        let late = begun.elapsed() >= at_most;
        if settled || late {
            let report = seen?;
            show(global, args, &report);
            if settled {
                return Ok(Exit::Done);
            }
            let error = format!("not healthy after {}", brief(seconds.saturating_mul(1000)));
            return Err(Failure::new("timed_out", error).hint("cohort why").exit(Exit::TimedOut));
        }
        if global.output == Output::Text && args.watch {
            let now = match &seen {
                Ok(report) => text(args, report, Look::of_stdout()),
                Err(failure) => format!("error: {}\n", failure.error),
            };
            if now != last_said {
                say(&format!("{now}\n"));
                last_said = now;
            }
        }
        let left = at_most.saturating_sub(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(args.interval_ms).min(left)).await;
    }
}
