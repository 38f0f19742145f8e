//! `cohort kill`: the kill switch. Through the hub, or at any agent when the hub is away.

use clap::{Args, Subcommand};
use cohort_core::ids::GroupId;
use cohort_identity::{Identity, UnixTime};
use cohort_wire::agent;
use cohort_wire::http::{Call, Client, Target};
use cohort_wire::hub::{KILL, KillAnswer};
use cohort_wire::kill::{KillRegister, KillScope, SignedKill};
use serde::Serialize;

use crate::args::{Direct, Global};
use crate::clock::brief;
use crate::commands::context_of;
use crate::connect::{Hub, agent_target, is_away};
use crate::failure::{Exit, Failure};
use crate::output::{Look, Output, Tone, cell, note, render, say, say_json, table, toned};

/// What `cohort kill` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum KillCommand {
    /// Nothing new begins: no rollout, no wave, no step
    On(SwitchArgs),
    /// Go on
    Off(SwitchArgs),
    /// Show every switch (exit code 3 when one is on)
    Status {
        #[command(flatten)]
        direct: Direct,
    },
}

/// What switching takes.
#[derive(Debug, Args)]
pub(crate) struct SwitchArgs {
    /// What it is about: `fleet`, or a group's name
    #[arg(long, default_value = "fleet", value_parser = scope, value_name = "fleet|GROUP")]
    scope: KillScope,
    /// Why, for those who find everything standing still
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    direct: Direct,
}

fn scope(text: &str) -> Result<KillScope, String> {
    match text {
        "fleet" => Ok(KillScope::Fleet),
        group => GroupId::new(group).map(KillScope::Group).map_err(|error| error.to_string()),
    }
}

/// A switch, for programs.
#[derive(Debug, Serialize)]
struct Shown {
    scope: String,
    on: bool,
    epoch: u64,
    reason: String,
    by: String,
    at: u64,
}

/// Where switches are read and set.
enum Place {
    Hub(Hub),
    Agent { client: Client, target: Target },
}

/// What is known there.
struct Registers {
    signed: Vec<SignedKill>,
    damaged: Vec<String>,
}

/// Does it.
pub(crate) async fn run(global: &Global, command: &KillCommand) -> Result<Exit, Failure> {
    match command {
        KillCommand::On(args) => switch(global, args, true).await,
        KillCommand::Off(args) => switch(global, args, false).await,
        KillCommand::Status { direct } => status(global, direct).await,
    }
}

async fn switch(global: &Global, args: &SwitchArgs, on: bool) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let identity = context.identity()?;
    let place = Place::of(&context, &args.direct)?;
    let known = place.read().await?;
    let epoch = next_epoch(&known.signed, &identity, &args.scope);
    let register = KillRegister {
        scope: args.scope.clone(),
        epoch,
        on,
        reason: args.reason.clone(),
        at: UnixTime::now().as_secs(),
    };
    let signed =
        SignedKill::sign(&identity, &register).map_err(|error| Failure::of("kill", &error))?;
    let after = place.send(&signed).await?;
    // What is latched there now says whether it was taken.
    let taken = after.iter().any(|there| *there == signed);
    if !taken {
        let error = "somebody else switched at the same time";
        return Err(Failure::new("conflict", error).hint("look, and try again: cohort kill status"));
    }
    match global.output {
        Output::Json => say_json(&shown(&register, identity.peer().to_string())),
        Output::Text => {
            let scope = scope_text(&args.scope);
            let position = if on { "ON: nothing new begins" } else { "off" };
            say(&format!("kill switch of {scope} is {position} (epoch {epoch})\n"));
            if on {
                let flag = match &args.scope {
                    KillScope::Fleet => String::new(),
                    KillScope::Group(group) => format!(" --scope {group}"),
                };
                note(&format!("to go on: cohort kill off{flag}"));
            }
        }
    }
    Ok(Exit::Done)
}

async fn status(global: &Global, direct: &Direct) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let identity = context.identity()?;
    let known = Place::of(&context, direct)?.read().await?;
    let mut switches = Vec::new();
    for signed in &known.signed {
        match signed.verify(identity.roots(), UnixTime::now()) {
            Ok((by, register)) => switches.push(shown(&register, by.to_string())),
            Err(error) => note(&format!("warning: {}", crate::failure::chain(&error))),
        }
    }
    switches.sort_by(|a, b| a.scope.cmp(&b.scope));
    let any_on = !known.damaged.is_empty() || switches.iter().any(|switch| switch.on);
    match global.output {
        Output::Json => say_json(&serde_json::json!({
            "on": any_on, "switches": switches, "damaged": known.damaged,
        })),
        Output::Text => say(&text(&switches, &known.damaged, Look::of_stdout())),
    }
    Ok(if any_on { Exit::Unhealthy } else { Exit::Done })
}

fn text(switches: &[Shown], damaged: &[String], look: Look) -> String {
    if switches.is_empty() && damaged.is_empty() {
        return "no kill switch was ever on\n".to_owned();
    }
    let mut rows = table(look, &["SCOPE", "SWITCH", "FOR", "BY", "REASON"]);
    let now = UnixTime::now().as_secs();
    for switch in switches {
        let (tone, position) = if switch.on { (Tone::Bad, "ON") } else { (Tone::Good, "off") };
        rows.add_row([
            cell(&switch.scope),
            toned(look, tone, position),
            cell(brief(now.saturating_sub(switch.at) * 1000)),
            cell(&switch.by),
            cell(&switch.reason),
        ]);
    }
    let mut text = render(&rows);
    for reason in damaged {
        text.push_str(&format!("ON: {reason}\n"));
    }
    text
}

impl Place {
    fn of(context: &crate::context::Context, direct: &Direct) -> Result<Self, Failure> {
        match direct.agent() {
            None => Ok(Place::Hub(Hub::of(context)?)),
            Some((server, address)) => Ok(Place::Agent {
                client: context.client()?,
                target: agent_target(server, address)?,
            }),
        }
    }

    async fn read(&self) -> Result<Registers, Failure> {
        match self {
            Place::Hub(hub) => {
                let answer: KillAnswer =
                    hub.call(Call::get(KILL)).await.map_err(|error| with_way_out(error))?;
                Ok(Registers { signed: answer.registers, damaged: answer.damaged })
            }
            Place::Agent { client, target } => {
                let signed = client.call_json(target, Call::get(agent::KILL)).await?;
                Ok(Registers { signed, damaged: Vec::new() })
            }
        }
    }

    /// Gives it there; the answer is every register that is latched there then.
    async fn send(&self, signed: &SignedKill) -> Result<Vec<SignedKill>, Failure> {
        match self {
            Place::Hub(hub) => {
                // Sent twice, the second one changes nothing.
                let call = Call::post(KILL, signed).idempotent();
                let answer: KillAnswer = hub.call(call).await.map_err(|error| with_way_out(error))?;
                Ok(answer.registers)
            }
            Place::Agent { client, target } => {
                let call = Call::post(agent::KILL, signed).idempotent();
                Ok(client.call_json(target, call).await?)
            }
        }
    }
}

/// A switch that needs the hub would be none.
fn with_way_out(error: cohort_wire::http::CallError) -> Failure {
    let away = is_away(&error);
    let failure = Failure::from(error);
    if away {
        failure.hint("any agent takes it, and passes it on: --agent HOST:PORT --name SERVER")
    } else {
        failure
    }
}

/// One above all that is known of the scope there.
fn next_epoch(known: &[SignedKill], identity: &Identity, scope: &KillScope) -> u64 {
    let now = UnixTime::now();
    known
        .iter()
        .filter_map(|signed| signed.verify(identity.roots(), now).ok())
        .filter(|(_, register)| register.scope == *scope)
        .map(|(_, register)| register.epoch)
        .max()
        .unwrap_or(0)
        .saturating_add(1)
}

fn scope_text(scope: &KillScope) -> String {
    match scope {
        KillScope::Fleet => "the fleet".to_owned(),
        KillScope::Group(group) => group.to_string(),
    }
}

fn shown(register: &KillRegister, by: String) -> Shown {
    let scope = match &register.scope {
        KillScope::Fleet => "fleet".to_owned(),
        KillScope::Group(group) => group.to_string(),
    };
    let KillRegister { on, epoch, reason, at, .. } = register;
    Shown { scope, on: *on, epoch: *epoch, reason: reason.clone(), by, at: *at }
}
