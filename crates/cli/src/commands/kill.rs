//! `cohort kill`: the kill switch, through the hub and the groups, or at any one agent.

use clap::{Args, Subcommand};
use cohort_base::text;
use cohort_core::ids::{GroupId, InvalidName};
use cohort_identity::UnixTime;
use cohort_view::command::{Command, Flag};
use cohort_view::figures::brief;
use cohort_view::hint::Hint;
use cohort_view::report::Origin;
use cohort_view::table::{Look, Tone, cell, render, table, toned};
use cohort_wire::kill::{DamagedKill, KillRegister, KillScope, Position, SignedKill};

use crate::answer::{Answer, Damaged, Spread, Switch};
use crate::args::{Direct, Global};
use crate::commands::context_of;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::fleet::{is_direct, know};
use crate::kill_registers::{Gathered, Places, Verified};
use crate::output::{Output, look, note};

#[derive(Debug, Subcommand)]
pub(crate) enum KillCommand {
    /// Stop: no new rollout, wave or step starts
    On(SwitchArgs),
    /// Resume
    Off(SwitchArgs),
    /// Show every switch (exit code 3 if one is on)
    Status {
        #[command(flatten)]
        direct: Direct,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SwitchArgs {
    /// Scope: `fleet`, or a group's name
    #[arg(long, default_value = "fleet", value_parser = scope, value_name = "fleet|GROUP")]
    scope: KillScope,
    /// Reason, shown wherever something is stopped
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    direct: Direct,
}

fn scope(text: &str) -> Result<KillScope, InvalidName> {
    match text {
        "fleet" => Ok(KillScope::Fleet),
        group => GroupId::new(group).map(KillScope::Group),
    }
}

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
    // The switch is written anyway: the group may be about to join.
    if let KillScope::Group(group) = &args.scope
        && on
        && !is_direct(&args.direct)
        && let Ok((known, Origin::Hub { .. })) = know(&context).await
        && let Err(unknown) = known.group(group)
    {
        note(&format!("warning: this stops nothing now: {}", unknown.error));
        unknown.hints.iter().for_each(|hint| note(&format!("  {hint}")));
    }
    let scope = &args.scope;
    let places = Places::of(&context, &args.direct, Some(scope)).await?;
    // From everywhere: one that is ahead somewhere would stay in force there.
    let known = Places::of(&context, &args.direct, None).await?.gather(identity.roots()).await;
    if known.answered == 0 {
        return Err(unreachable(known));
    }
    let fleet_is_on = known
        .registers
        .iter()
        .any(|(scope, known)| *scope == KillScope::Fleet && known.register.on);
    let exists = known.registers.iter().any(|(known, _)| known == scope)
        || known.damaged.iter().any(|damaged| damaged.scope == *scope);
    if !on && !exists && *scope != KillScope::Fleet {
        let error = format!("no kill switch of {} is known", text_of(scope));
        return Err(Failure::usage(error).hint(Command::KillStatus));
    }
    text::check("the reason", &args.reason).map_err(Failure::usage)?;
    let now = UnixTime::now().as_secs();
    let Position { epoch, on } = known.next(scope, on, now);
    let register =
        KillRegister { scope: scope.clone(), epoch, on, reason: args.reason.clone(), at: now };
    let signed = SignedKill::sign(&identity, &register).or_fail("kill")?;
    let (taken, failures) = places.give(&signed).await;
    if taken == 0 {
        let error = "kill switch unchanged: rejected everywhere";
        let first = failures.into_iter().next();
        let failure = first.unwrap_or_else(|| Failure::new("unreachable", error));
        return Err(Failure { error: format!("{error}: {}", failure.error), ..failure });
    }
    let verified = Verified { register, by: identity.peer().to_string() };
    global.output.answer(&Answer::KillSwitch(shown(&verified)), || {
        let position = if on { "ON: nothing new starts" } else { "off" };
        let places = if taken == 1 { "1 place".to_owned() } else { format!("{taken} places") };
        let scope = text_of(scope);
        format!("kill switch of {scope} is {position} (latched in {places}, spreading)\n")
    });
    warn(&failures);
    if !on && fleet_is_on && *scope != KillScope::Fleet {
        note("the fleet's kill switch is still ON");
    }
    if on && global.output == Output::Text {
        note(&format!("to resume: {}", Command::KillOff { scope: group_of(scope) }));
    }
    Ok(Exit::Done)
}

fn warn(failures: &[Failure]) {
    for failure in failures {
        note(&format!("warning: {}", failure.error));
    }
}

fn unreachable(known: Gathered) -> Failure {
    let mut failures = known.failures.into_iter();
    let failure = failures
        .next()
        .unwrap_or_else(|| Failure::new("unreachable", "neither hub nor agents are known"));
    failure.hint(Hint::add("any agent that it covers accepts it and spreads it", Flag::Agent))
}

async fn status(global: &Global, direct: &Direct) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let identity = context.identity()?;
    let known = Places::of(&context, direct, None).await?.gather(identity.roots()).await;
    if known.answered == 0 {
        return Err(unreachable(known));
    }
    let spread = |scope| {
        let (missing, asked) = known.spread(scope);
        Some(Spread { asked, missing })
    };
    let with_spread = |(scope, verified)| Switch { spread: spread(scope), ..shown(verified) };
    let switches: Vec<Switch<'_>> = known.registers.iter().map(with_spread).collect();
    let any_on = known.is_on_anywhere() || switches.iter().any(|switch| switch.on);
    let damaged = known.damaged.iter().map(Damaged::of).collect();
    let answer = Answer::KillStatus { on: any_on, switches: &switches, damaged };
    let now = UnixTime::now().as_secs();
    global.output.answer(&answer, || text(&switches, &known.damaged, now, look()));
    warn(&known.failures);
    Ok(if any_on { Exit::Unhealthy } else { Exit::Done })
}

fn text(switches: &[Switch<'_>], damaged: &[DamagedKill], now: u64, look: Look) -> String {
    if switches.is_empty() && damaged.is_empty() {
        return "no kill switch has ever been on\n".to_owned();
    }
    let mut rows = table(look, &["SCOPE", "SWITCH", "FOR", "AT", "BY", "REASON"]);
    for switch in switches {
        let (tone, position) = if switch.on { (Tone::Bad, "ON") } else { (Tone::Good, "off") };
        rows.add_row([
            cell(&switch.scope),
            toned(look, tone, position),
            cell(brief(now.saturating_sub(switch.at) * 1000)),
            cell(switch.spread.as_ref().map_or_else(String::new, |Spread { asked, missing }| {
                format!("{} of {asked} places", asked - missing.len())
            })),
            cell(switch.by),
            cell(switch.reason),
        ]);
    }
    let mut text = render(&rows);
    for Switch { scope, spread, .. } in switches {
        if let Some(Spread { missing, .. }) = spread.as_ref().filter(|it| !it.missing.is_empty()) {
            text.push_str(&format!("{scope}: not yet at {}\n", missing.join(", ")));
        }
    }
    for DamagedKill { scope, reason, .. } in damaged {
        text.push_str(&format!("{scope} is ON: {reason}\n"));
    }
    text
}

fn text_of(scope: &KillScope) -> String {
    group_of(scope).map_or_else(|| "the fleet".to_owned(), |group| group.to_string())
}

fn group_of(scope: &KillScope) -> Option<GroupId> {
    match scope {
        KillScope::Fleet => None,
        KillScope::Group(group) => Some(group.clone()),
    }
}

fn shown(known: &Verified) -> Switch<'_> {
    let KillRegister { scope, on, epoch, reason, at } = &known.register;
    let (scope, by) = (scope.to_string(), &known.by);
    Switch { scope, on: *on, epoch: *epoch, reason, by, at: *at, spread: None }
}

#[cfg(test)]
#[path = "kill_test.rs"]
mod kill_test;
