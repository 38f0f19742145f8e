//! `cohort completions`: completions for shells, which know the names of the fleet.
//!
//! A shell calls this program for what could follow. Names are those of the hub's last answer to
//! any command (`fleet.json`), so that a key press asks nobody.

use clap::{Args, Command, CommandFactory as _};
use clap_complete::env::Shells;
use clap_complete::{ArgValueCandidates, CompleteEnv, CompletionCandidate};
use cohort_core::ids::{AppId, GroupId, ServerId};

use crate::args::{Cli, Global};
use crate::context::Context;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::fleet::{Known, load};
use crate::output::print;

/// Set by the shell's function when it calls this program; its value is the shell's name.
const VARIABLE: &str = "COHORT_COMPLETE";

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell: bash, zsh, fish, elvish or powershell
    #[arg(value_parser = Shells::builtins().names().collect::<Vec<_>>())]
    shell: String,
}

/// Prints what the shell has to load.
pub(crate) fn run(args: &CompletionsArgs) -> Result<Exit, Failure> {
    let shells = Shells::builtins();
    let shell = shells.completer(&args.shell).expect("clap admits no other");
    let mut text = Vec::new();
    let program = "cohort";
    shell
        .write_registration(VARIABLE, program, program, program, &mut text)
        .or_fail("completions")?;
    print(&String::from_utf8_lossy(&text));
    Ok(Exit::Done)
}

/// Answers a shell that asks what could follow, and exits; returns if none does.
pub(crate) fn answer_shell() {
    CompleteEnv::with_factory(|| with_names(Cli::command())).var(VARIABLE).complete();
}

/// The command line, with candidates for every argument that is a name of the fleet.
fn with_names(mut command: Command) -> Command {
    let ids: Vec<String> = command.get_arguments().map(|it| it.get_id().to_string()).collect();
    for id in ids {
        let names: fn(&Known) -> Vec<String> = match id.as_str() {
            "group" | "scope" => groups,
            "server" | "first_server" | "name" => servers,
            "about" => |known| known.names().map(str::to_owned).collect(),
            "app" => |known| known.apps.iter().map(AppId::to_string).collect(),
            _ => continue,
        };
        let candidates = ArgValueCandidates::new(move || {
            let names = cached().map_or_else(Vec::new, |known| names(&known));
            names.into_iter().map(CompletionCandidate::new).collect::<Vec<_>>()
        });
        command = command.mut_arg(id, |arg| arg.add(candidates));
    }
    let subcommands: Vec<String> =
        command.get_subcommands().map(|it| it.get_name().to_owned()).collect();
    subcommands.into_iter().fold(command, |command, name| command.mut_subcommand(name, with_names))
}

fn groups(known: &Known) -> Vec<String> {
    known.groups.keys().map(GroupId::to_string).collect()
}

fn servers(known: &Known) -> Vec<String> {
    known.groups.values().flat_map(|group| &group.servers).map(ServerId::to_string).collect()
}

/// The names of the hub's last answer. Of the flags on the line, none counts here.
fn cached() -> Option<Known> {
    let context = std::env::var_os("COHORT_CONTEXT").map(Into::into);
    let context = Context::load(&Global { context, ..Global::default() }).ok()?;
    load(&context).map(|(known, _)| known)
}

#[cfg(test)]
mod completions_test {
    use super::*;

    #[test]
    fn every_name_of_the_fleet_has_candidates() {
        let command = with_names(Cli::command());
        let mut seen = 0;
        let mut all = vec![&command];
        while let Some(command) = all.pop() {
            all.extend(command.get_subcommands());
            for arg in command.get_arguments() {
                let named = matches!(arg.get_id().as_str(), "group" | "server" | "about" | "app");
                assert_eq!(arg.get::<ArgValueCandidates>().is_some(), named || seen_too(arg));
                seen += u32::from(named);
            }
        }
        assert!(seen > 30, "only {seen}");
    }

    fn seen_too(arg: &clap::Arg) -> bool {
        matches!(arg.get_id().as_str(), "scope" | "first_server" | "name")
    }
}
