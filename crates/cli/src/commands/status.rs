//! `cohort status`: every group, or one; once, live, or until it is healthy.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use clap::Args;
use cohort_core::ids::{AppId, ServerId, Version};
use cohort_view::command::Command;
use cohort_view::figures::brief;
use cohort_view::report::{FleetReport, GroupReport};
use cohort_view::server::ServerReport;
use cohort_view::status as view;
use cohort_wire::http::Client;

use crate::about::About;
use crate::answer::Answer;
use crate::args::{Direct, Global};
use crate::commands::context_of;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::fleet::{self, Groups, Selector};
use crate::group;
use crate::output::{Output, look, print, print_json_line, warn};

#[derive(Debug, Default, Args)]
pub(crate) struct StatusArgs {
    /// A group or a server [default: every group]
    #[arg(value_name = "GROUP|SERVER")]
    about: Option<String>,
    /// Only groups with these labels, such as zone=zone-a,app=web
    #[arg(long, conflicts_with = "about", value_name = "LABEL=VALUE,…")]
    selector: Option<Selector>,
    /// Only groups that are not healthy
    #[arg(long, conflicts_with = "wait")]
    unhealthy: bool,
    /// Every group, also of hundreds that are well
    #[arg(long)]
    all: bool,
    /// Refresh until interrupted; with `-o json`, one line each time
    #[arg(short, long)]
    watch: bool,
    /// Refresh interval of `--watch` and `--wait`, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u64).range(50..))]
    interval_ms: u64,
    /// Wait until healthy, for at most this many seconds (exit code 4 on timeout)
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// With --wait: until every group runs this version
    #[arg(long, requires = "wait")]
    version: Option<Version>,
    /// With --wait: for this app only
    #[arg(long, requires = "wait")]
    app: Option<AppId>,
    #[command(flatten)]
    direct: Direct,
}

impl StatusArgs {
    /// About one server, once.
    pub(crate) fn of_server(server: &ServerId, direct: &Direct) -> Self {
        let (about, direct) = (Some(server.to_string()), direct.clone());
        StatusArgs { about, direct, ..StatusArgs::default() }
    }
}

/// The inputs of every look at the fleet.
struct Look<'a> {
    global: &'a Global,
    args: &'a StatusArgs,
    about: About,
    context: Context,
    client: Client,
}

pub(crate) async fn run(global: &Global, args: &StatusArgs) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let client = context.client()?;
    let about = About::find(&context, &args.direct, args.about.as_deref()).await?;
    if args.wait.is_some() && about.group.is_some() && about.server.is_some() {
        return Err(Failure::usage("--wait is for groups, not for one server"));
    }
    let look = Look { global, args, about, context, client };
    match args.wait {
        Some(seconds) => look.wait(seconds).await,
        None if args.watch => look.watch().await,
        None => {
            let report = look.report().await?;
            look.show(&report);
            let healthy = look.server(&report).map_or(report.healthy, |(_, it)| it.healthy);
            Ok(if healthy { Exit::Done } else { Exit::Unhealthy })
        }
    }
}

impl Look<'_> {
    async fn report(&self) -> Result<FleetReport, Failure> {
        let Look { args, context, client, about, .. } = self;
        let groups = match &args.selector {
            Some(selector) => Groups::Some(selector),
            None => about.groups(),
        };
        let mut report = group::report(context, client, &args.direct, groups).await?;
        if args.unhealthy {
            report.groups.retain(|group| !group.healthy);
        }
        Ok(report)
    }

    fn show(&self, report: &FleetReport) {
        if self.global.output == Output::Text {
            warn(&report.origin);
        }
        self.global.output.answer(&self.answer(report), || self.text(report));
    }

    /// The server that it is about, in its group's report.
    fn server<'a>(
        &'a self,
        report: &'a FleetReport,
    ) -> Option<(&'a GroupReport, ServerReport<'a>)> {
        let [group] = report.groups.as_slice() else { return None };
        let server = self.about.server_in(&group.group)?;
        Some((group, ServerReport::of(group, server)))
    }

    fn answer<'a>(&'a self, report: &'a FleetReport) -> Answer<'a> {
        match self.server(report) {
            Some((_, server)) => Answer::StatusServer(server),
            None => Answer::Status(report),
        }
    }

    fn text(&self, report: &FleetReport) -> String {
        if let Some((group, server)) = self.server(report) {
            return server.text(group, look());
        }
        let one = self.about.group.is_some() || fleet::is_direct(&self.args.direct);
        match (one, report.groups.as_slice()) {
            (true, [group]) => view::group(group, look()),
            (_, []) if self.args.unhealthy => "every group is healthy\n".to_owned(),
            _ => view::fleet(report, look(), self.args.all),
        }
    }

    /// Runs until interrupted: an unreachable hub or group is worth watching too.
    async fn watch(&self) -> Result<Exit, Failure> {
        let json = self.global.output == Output::Json;
        let terminal = io::stdout().is_terminal();
        if terminal && !json {
            print("\x1b[2J");
        }
        loop {
            match self.report().await {
                Ok(report) if json => print_json_line(&self.answer(&report)),
                Err(failure) if json => print_json_line(&Answer::Failure(&failure)),
                seen => {
                    let frame = match seen {
                        Ok(report) => {
                            let warning = report.origin.warning().map(|text| text + "\n");
                            warning.unwrap_or_default() + &self.text(&report)
                        }
                        Err(failure) => format!("error: {}\n", failure.error),
                    };
                    // To avoid flicker: move home, clear each line to its end, then the rest.
                    print(&if terminal {
                        format!("\x1b[H{}\x1b[J", frame.replace('\n', "\x1b[K\n"))
                    } else {
                        format!("{frame}\n")
                    });
                }
            }
            tokio::time::sleep(Duration::from_millis(self.args.interval_ms)).await;
        }
    }

    async fn wait(&self, seconds: u64) -> Result<Exit, Failure> {
        let StatusArgs { app, version, .. } = self.args;
        let begun = Instant::now();
        let at_most = Duration::from_secs(seconds);
        let mut last = String::new();
        loop {
            let seen = self.report().await;
            let settled =
                seen.as_ref().is_ok_and(|report| report.settled_on(app.as_ref(), version.as_ref()));
            if settled || begun.elapsed() >= at_most {
                let report = seen?;
                self.show(&report);
                if settled {
                    return Ok(Exit::Done);
                }
                // It may have been about to come, with its policy.
                if let Some(app) = app
                    && let Some(group) = report
                        .groups
                        .iter()
                        .find(|group| group.status.is_some() && !group.apps.contains_key(app))
                {
                    let names: Vec<&str> = group.apps.keys().map(AppId::as_str).collect();
                    return Err(group::no_such_app(&group.group, app, &names).exit(Exit::TimedOut));
                }
                let error = format!("not healthy after {}", brief(seconds.saturating_mul(1000)));
                return Err(Failure::new("timed_out", error)
                    .hint(Command::Why { group: self.about.group.clone() })
                    .exit(Exit::TimedOut));
            }
            if self.global.output == Output::Text && self.args.watch {
                let now = match &seen {
                    Ok(report) => self.text(report),
                    Err(failure) => format!("error: {}\n", failure.error),
                };
                if now != last {
                    print(&format!("{now}\n"));
                    last = now;
                }
            }
            let left = at_most.saturating_sub(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(self.args.interval_ms).min(left)).await;
        }
    }
}
