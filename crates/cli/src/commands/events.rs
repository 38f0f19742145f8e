//! `cohort events`: what happened in groups, from their logs.

use std::time::{Duration, Instant};

use clap::Args;
use cohort_core::ids::{AppId, GroupId, Incarnation, ServerId};
use cohort_view::events::{app_of, sentence};
use cohort_wire::agent::{EVENTS, EVENTS_WAIT_MS_MAX, EventsAnswer, EventsRequest, Happened};
use cohort_wire::http::{Call, Client, Target};
use jiff::Timestamp;

use crate::answer::Answer;
use crate::args::{Direct, Global};
use crate::commands::context_of;
use crate::connect::{AGENT_DEADLINE, agent_target, ask};
use crate::failure::{Exit, Failure};
use crate::fleet::{Groups, know};
use crate::output::{Output, note, warn};

/// Most groups that are followed at once.
const GROUPS_MAX: usize = 50;
/// How long to wait before a group that does not answer is asked again.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Group name [default: every group]
    group: Option<GroupId>,
    /// Only of this app
    #[arg(long)]
    app: Option<AppId>,
    /// Only of entries of the group's log after this one, as `-o json` names them
    #[arg(long, value_name = "INDEX", requires = "group")]
    after: Option<u64>,
    /// Go on until interrupted
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    direct: Direct,
}

/// One group, and the servers that may tell.
struct Reader<'a> {
    client: &'a Client,
    group: GroupId,
    targets: Vec<Target>,
    app: Option<&'a AppId>,
    output: Output,
}

pub(crate) async fn run(global: &Global, args: &EventsArgs) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let client = context.client()?;
    let places: Vec<(GroupId, Vec<(ServerId, String)>)> = match (args.direct.agent(), &args.group) {
        (Some((server, address)), Some(group)) => {
            vec![(group.clone(), vec![(server.clone(), address.to_owned())])]
        }
        (Some(_), None) => return Err(Failure::usage("with --agent, name its group")),
        (None, group) => {
            let (known, origin) = know(&context).await?;
            warn(&origin);
            let groups = known.chosen(group.as_ref().map_or(Groups::All, Groups::One))?.groups;
            groups.into_iter().map(|(name, known)| (name, known.candidates)).collect()
        }
    };
    if places.len() > GROUPS_MAX {
        let error = format!("there are {} groups; at most {GROUPS_MAX}", places.len());
        return Err(Failure::usage(error).hint("name one of them"));
    }
    let mut readers = Vec::new();
    for (group, candidates) in places {
        let targets = candidates.iter().map(|(server, address)| agent_target(server, address));
        let targets = targets.collect::<Result<_, _>>()?;
        let (app, output) = (args.app.as_ref(), global.output);
        readers.push(Reader { client: &client, group, targets, app, output });
    }
    if args.follow {
        let follow = readers.iter().map(|reader| reader.follow(args.after));
        futures_util::future::join_all(follow).await;
        return Ok(Exit::Done);
    }
    let mut all: Vec<(&Reader<'_>, Happened)> = Vec::new();
    let mut failed = None;
    for reader in &readers {
        match reader.ask(None, args.after, 0).await {
            Ok(answer) => {
                reader.tell_gap(&answer);
                all.extend(answer.events.into_iter().map(|it| (reader, it)));
            }
            Err(failure) if readers.len() > 1 => {
                note(&format!("{}: {}", reader.group, failure.error));
                failed = Some(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
    // Of one group in the order of its log; across groups by time.
    all.sort_by_key(|(_, happened)| happened.unix_ms);
    all.iter().for_each(|(reader, happened)| reader.show(happened));
    Ok(if failed.is_some() { Exit::Failed } else { Exit::Done })
}

impl Reader<'_> {
    /// Asks the group's servers in turn: only those that carry a member can tell.
    async fn ask(
        &self,
        incarnation: Option<Incarnation>,
        after: Option<u64>,
        wait_ms: u64,
    ) -> Result<EventsAnswer, Failure> {
        let request = EventsRequest { incarnation, after, wait_ms };
        let deadline = AGENT_DEADLINE + Duration::from_millis(wait_ms);
        let mut failure = None;
        for target in &self.targets {
            let call = Call::post(EVENTS, &request).deadline(deadline);
            match ask(self.client, std::slice::from_ref(target), call).await {
                Ok((_, answer)) => return Ok(answer),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(match failure {
            Some(error) => error.into(),
            None => Failure::new("unreachable", format!("no server of {} is known", self.group)),
        })
    }

    /// Never returns: what is away may come back.
    async fn follow(&self, mut after: Option<u64>) {
        let (mut incarnation, mut wait_ms) = (None, 0);
        loop {
            let asked = Instant::now();
            let nothing = match self.ask(incarnation, after, wait_ms).await {
                Ok(answer) => {
                    self.tell_gap(&answer);
                    answer.events.iter().for_each(|happened| self.show(happened));
                    (incarnation, after) = (Some(answer.incarnation), Some(answer.end));
                    wait_ms = EVENTS_WAIT_MS_MAX;
                    answer.events.is_empty()
                }
                Err(failure) => {
                    note(&format!("{}: {}", self.group, failure.error));
                    true
                }
            };
            // Also one that answers at once with nothing is not asked without a pause.
            if nothing {
                tokio::time::sleep(AGAIN_AFTER.saturating_sub(asked.elapsed())).await;
            }
        }
    }

    fn tell_gap(&self, answer: &EventsAnswer) {
        if answer.gap {
            note(&format!("{}: events are missing here", self.group));
        }
    }

    fn show(&self, happened: &Happened) {
        let app = app_of(&happened.event);
        if self.app.is_some() && self.app != app {
            return;
        }
        let Some(text) = sentence(&happened.event, true) else { return };
        let group = &self.group;
        self.output.line(&Answer::Event { group, happened }, || {
            let at = happened.unix_ms.and_then(|ms| i64::try_from(ms).ok());
            let at = at.and_then(|ms| Timestamp::from_millisecond(ms).ok());
            let at = at.map_or_else(
                || format!("{:20}", "earlier"),
                |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            );
            let app = app.map_or_else(String::new, |app| format!(" {app}:"));
            format!("{at} {group}{app} {text}\n")
        });
    }
}
