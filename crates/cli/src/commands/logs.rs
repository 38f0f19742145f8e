//! `cohort logs`: what services and hooks wrote, from their servers.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_core::policy::{Duration as Age, InvalidValue};
use cohort_registry::fleet::Fleet;
use cohort_wire::agent::{
    LOG, LOG_LINES_MAX, LOG_STARTED, LOG_WAIT_MS_MAX, LogAnswer, LogFrom, LogRequest,
};
use cohort_wire::http::{Call, Client, Target};
use jiff::Timestamp;

use crate::answer::Answer;
use crate::args::{Direct, Global};
use crate::commands::{context_of, no_such_name};
use crate::connect::{AGENT_DEADLINE, agent_target, ask};
use crate::failure::{Exit, Failure};
use crate::fleet::{Known, of_hub};
use crate::output::{Output, note};

/// A server keeps at most 4 MiB of a service's output, and less of a hook's.
const LOG_BYTES_MAX: usize = 16 << 20;

/// Most servers of a group that are asked: more lines than these have, nobody reads.
const SERVERS_MAX: usize = 50;

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// A server, or a group for all of its servers
    #[arg(value_name = "SERVER|GROUP")]
    about: String,
    /// App name; may be left out where a server has one app
    #[arg(long)]
    app: Option<AppId>,
    /// Go on until interrupted
    #[arg(short, long)]
    follow: bool,
    /// How many lines, at most 5000
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    lines: u32,
    /// Only lines of this age at most, such as 10m
    #[arg(long, value_name = "AGE", value_parser = age)]
    since: Option<Age>,
    /// The service's run before the last start
    #[arg(long, conflicts_with_all = ["follow", "since"])]
    previous: bool,
    /// The last run of this hook, such as after-install
    #[arg(long, conflicts_with_all = ["previous", "since"])]
    hook: Option<String>,
    #[command(flatten)]
    direct: Direct,
}

fn age(text: &str) -> Result<Age, InvalidValue> {
    text.to_owned().try_into()
}

pub(crate) async fn run(global: &Global, args: &LogsArgs) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let client = context.client()?;
    let places = match args.direct.agent() {
        Some((server, address)) => BTreeMap::from([(server.clone(), address.to_owned())]),
        None => {
            let fleet = of_hub(&context).await?;
            places(&fleet, &args.about)?
        }
    };
    let many = places.len() > 1;
    let since = args.since.map(|age| {
        let at = Timestamp::now() - Duration::from_millis(age.ms);
        at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
    });
    let mut reading = tokio::task::JoinSet::new();
    for (server, address) in places {
        let target = agent_target(&server, &address)?;
        let reader = Reader { client: client.clone(), target, server, many, output: global.output };
        let request = LogRequest {
            app: args.app.clone(),
            hook: args.hook.clone(),
            from: match (args.previous || since.is_some(), args.lines) {
                (true, _) => LogFrom::Start,
                (false, lines) => LogFrom::Last { lines: lines.min(LOG_LINES_MAX) },
            },
            wait_ms: 0,
        };
        let (previous, since, follow) = (args.previous, since.clone(), args.follow);
        reading.spawn(async move {
            match reader.read(request, since, previous, follow).await {
                // Of several servers, one that is away must not hide the others.
                Err(failure) if reader.many => {
                    note(&format!("{}: {}", reader.server, failure.error));
                    Ok(false)
                }
                read => read.map(|()| true),
            }
        });
    }
    let mut any = false;
    while let Some(read) = reading.join_next().await {
        any |= read.map_err(|error| Failure::of("runtime", &error))??;
    }
    Ok(if any { Exit::Done } else { Exit::Failed })
}

/// The servers that a name stands for, and their agents' addresses.
fn places(fleet: &Fleet, about: &str) -> Result<BTreeMap<ServerId, String>, Failure> {
    let of = |is: &dyn Fn(&ServerId, &GroupId) -> bool| -> BTreeMap<ServerId, String> {
        let servers = fleet.servers.iter().filter(|it| is(&it.server, &it.group));
        servers.map(|it| (it.server.clone(), it.address.clone())).collect()
    };
    let one = of(&|server, _| server.as_str() == about);
    if !one.is_empty() {
        return Ok(one);
    }
    let group = of(&|_, group| group.as_str() == about);
    if group.len() > SERVERS_MAX {
        let error = format!("{about} has {} servers; at most {SERVERS_MAX}", group.len());
        return Err(Failure::usage(error).hint("name one of its servers"));
    }
    if !group.is_empty() {
        return Ok(group);
    }
    Err(no_such_name(&Known::of(fleet), about))
}

struct Reader {
    client: Client,
    target: Target,
    server: ServerId,
    /// Lines of several servers are printed.
    many: bool,
    output: Output,
}

impl Reader {
    async fn read(
        &self,
        mut request: LogRequest,
        since: Option<String>,
        previous: bool,
        follow: bool,
    ) -> Result<(), Failure> {
        let mut before = previous.then(Vec::new);
        let mut is_young = since.is_none();
        let mut bytes = 0;
        loop {
            let answer = self.ask(&request).await?;
            bytes += answer.output.iter().map(String::len).sum::<usize>();
            if bytes > LOG_BYTES_MAX && !follow {
                let error =
                    format!("{} sends more than a server keeps: it makes it up", self.server);
                return Err(Failure::new("endless", error));
            }
            if answer.gap {
                note(&format!("{}: lines are missing here", self.server));
            }
            for line in answer.output {
                if let Some(since) = &since
                    && line.starts_with(|first: char| first.is_ascii_digit())
                {
                    is_young = line.as_str() >= since.as_str();
                }
                match &mut before {
                    Some(lines) => lines.push(line),
                    None if is_young => self.show(&answer.app, &line),
                    None => {}
                }
            }
            request.app = Some(answer.app);
            if !answer.more && !follow {
                break;
            }
            request.wait_ms = if answer.more { 0 } else { LOG_WAIT_MS_MAX };
            if let Some(place) = answer.end {
                request.from = LogFrom::After { place };
            }
        }
        let (Some(lines), Some(app)) = (before, &request.app) else { return Ok(()) };
        let is_start = |line: &&String| {
            line.split_once(' ').is_some_and(|(_, it)| it.starts_with(LOG_STARTED))
        };
        let starts: Vec<usize> = (0..lines.len()).filter(|nth| is_start(&&lines[*nth])).collect();
        let [.., from, to] = starts[..] else {
            let error = format!("{}: {app} was started once, as far as its log goes", self.server);
            return Err(Failure::new("no_previous", error));
        };
        lines[from..to].iter().for_each(|line| self.show(app, line));
        Ok(())
    }

    async fn ask(&self, request: &LogRequest) -> Result<LogAnswer, Failure> {
        let deadline = AGENT_DEADLINE + Duration::from_millis(request.wait_ms);
        let call = Call::post(LOG, request).deadline(deadline);
        let (_, answer) = ask(&self.client, std::slice::from_ref(&self.target), call).await?;
        Ok(answer)
    }

    fn show(&self, app: &AppId, line: &str) {
        let server = &self.server;
        self.output.line(&Answer::Log { server, app, line }, || match self.many {
            true => format!("{server}: {line}\n"),
            false => format!("{line}\n"),
        });
    }
}
