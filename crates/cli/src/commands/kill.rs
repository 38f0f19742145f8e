//! `cohort kill`: the kill switch. Through the hub and the groups, or at any one agent.

use clap::{Args, Subcommand};
use cohort_core::ids::GroupId;
use cohort_identity::UnixTime;
use cohort_wire::kill::{KillRegister, KillScope, SignedKill};
use serde::Serialize;

use crate::args::{Direct, Global};
use crate::clock::brief;
use crate::commands::context_of;
use crate::failure::{Exit, Failure};
use crate::kill_registers::{Gathered, Held, Places};
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
struct Shown<'a> {
    scope: String,
    on: bool,
    epoch: u64,
    reason: &'a str,
    by: &'a str,
    /// Seconds of Unix time, by its author's clock.
    at: u64,
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
    let places = Places::of(&context, &args.direct).await?;
    let known = places.gather(identity.roots()).await;
    if known.answered == 0 {
        return Err(nobody(known));
    }
    let scope = &args.scope;
    if !on && !known.is_on(scope) && known.damaged.is_empty() {
        // A place that has not heard of it yet still believes that it is on.
        if let Some(held) = known.registers.get(scope) {
            places.give(&held.signed).await;
        }
        return Ok(off_already(global, scope, known.answered));
    }
    let now = UnixTime::now().as_secs();
    let register = KillRegister {
        scope: scope.clone(),
        epoch: known.next_epoch(scope, on, now),
        on,
        reason: args.reason.clone(),
        at: now,
    };
    let signed =
        SignedKill::sign(&identity, &register).map_err(|error| Failure::of("kill", &error))?;
    let (taken, failures) = places.give(&signed).await;
    if taken == 0 {
        let error = "nobody has taken it: the switch is as it was";
        let first = failures.into_iter().next();
        let failure = first.unwrap_or_else(|| Failure::new("unreachable", error));
        return Err(Failure { error: format!("{error}: {}", failure.error), ..failure });
    }
    let held = Held { register, by: identity.peer().to_string(), signed };
    match global.output {
        Output::Json => say_json(&shown(&held)),
        Output::Text => {
            let position = if on { "ON: nothing new begins" } else { "off" };
            let places = if taken == 1 { "1 place".to_owned() } else { format!("{taken} places") };
            say(&format!(
                "kill switch of {} is {position} (latched in {places}, which pass it on)\n",
                scope_text(scope)
            ));
        }
    }
    for failure in failures {
        note(&format!("warning: {}", failure.error));
    }
    if on && global.output == Output::Text {
        note(&format!("to go on: cohort kill off{}", scope_flag(scope)));
    }
    Ok(Exit::Done)
}

fn nobody(known: Gathered) -> Failure {
    let mut failures = known.failures.into_iter();
    let failure =
        failures.next().unwrap_or_else(|| Failure::new("unreachable", "nobody can be asked"));
    failure.hint("any agent takes it, and passes it on: --agent HOST:PORT --name SERVER")
}

fn off_already(global: &Global, scope: &KillScope, answered: usize) -> Exit {
    match global.output {
        Output::Json => {
            say_json(&serde_json::json!({ "scope": scope_name(scope), "on": false }));
        }
        Output::Text => {
            let scope = scope_text(scope);
            say(&format!("kill switch of {scope} is not on (asked: {answered})\n"));
        }
    }
    Exit::Done
}

async fn status(global: &Global, direct: &Direct) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let identity = context.identity()?;
    let known = Places::of(&context, direct).await?.gather(identity.roots()).await;
    if known.answered == 0 {
        return Err(nobody(known));
    }
    let switches: Vec<Shown<'_>> = known.registers.values().map(shown).collect();
    let any_on = !known.damaged.is_empty() || switches.iter().any(|switch| switch.on);
    match global.output {
        Output::Json => say_json(&serde_json::json!({
            "on": any_on, "switches": switches, "damaged": known.damaged,
        })),
        Output::Text => {
            let now = UnixTime::now().as_secs();
            say(&text(&switches, &known.damaged, now, Look::of_stdout()));
        }
    }
    for failure in &known.failures {
        note(&format!("warning: {}", failure.error));
    }
    Ok(if any_on { Exit::Unhealthy } else { Exit::Done })
}

fn text(switches: &[Shown<'_>], damaged: &[String], now: u64, look: Look) -> String {
    if switches.is_empty() && damaged.is_empty() {
        return "no kill switch was ever on\n".to_owned();
    }
    let mut rows = table(look, &["SCOPE", "SWITCH", "FOR", "BY", "REASON"]);
    for switch in switches {
        let (tone, position) = if switch.on { (Tone::Bad, "ON") } else { (Tone::Good, "off") };
        rows.add_row([
            cell(&switch.scope),
            toned(look, tone, position),
            cell(brief(now.saturating_sub(switch.at) * 1000)),
            cell(switch.by),
            cell(switch.reason),
        ]);
    }
    let mut text = render(&rows);
    for reason in damaged {
        text.push_str(&format!("ON: {reason}\n"));
    }
    text
}

/// For sentences.
fn scope_text(scope: &KillScope) -> String {
    match scope {
        KillScope::Fleet => "the fleet".to_owned(),
        KillScope::Group(group) => group.to_string(),
    }
}

/// As on the command line.
fn scope_name(scope: &KillScope) -> String {
    match scope {
        KillScope::Fleet => "fleet".to_owned(),
        KillScope::Group(group) => group.to_string(),
    }
}

fn scope_flag(scope: &KillScope) -> String {
    match scope {
        KillScope::Fleet => String::new(),
        KillScope::Group(group) => format!(" --scope {group}"),
    }
}

fn shown(held: &Held) -> Shown<'_> {
    let KillRegister { scope, on, epoch, reason, at } = &held.register;
    Shown { scope: scope_name(scope), on: *on, epoch: *epoch, reason, by: &held.by, at: *at }
}

#[cfg(test)]
#[path = "kill_test.rs"]
mod kill_test;
