//! One file per command.

pub(crate) mod agent;
pub(crate) mod app;
pub(crate) mod audit;
pub(crate) mod authority;
pub(crate) mod channel;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod context;
pub(crate) mod events;
pub(crate) mod group;
pub(crate) mod guard;
pub(crate) mod hub;
pub(crate) mod init;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod mirror;
pub(crate) mod publish;
pub(crate) mod release;
pub(crate) mod repository;
pub(crate) mod repository_keys;
pub(crate) mod revoke;
pub(crate) mod rollout;
pub(crate) mod rollout_plan;
pub(crate) mod service;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod why;

use std::future::Future;

use cohort_view::hint::Hint;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::{Cli, Command, Global};
use crate::failure::{Exit, Failure, OrFail as _};
use crate::fleet::Known;
use crate::logging;
use crate::toml_keys::nearest;

/// Threads of a hub or mirror: requests are mostly I/O.
const SERVER_THREADS: usize = 2;

/// Threads of an agent. 1: the cores belong to the services, and transfers cost a fifth less CPU on
/// one thread (`docs/design/007-making-way.md`). Hashing, apps and the group's log have their own
/// threads: nothing that syncs to disk may run on this one.
const AGENT_THREADS: usize = 1;

/// Exit code that shells report after SIGTERM.
const SIGTERM_CODE: i32 = 143;
/// Exit code that shells report after SIGINT.
const SIGINT_CODE: i32 = 130;

pub(crate) fn run(cli: Cli) -> Result<Exit, Failure> {
    let Cli { global, command } = cli;
    let is_daemon = matches!(
        command,
        Command::Hub(_) | Command::Mirror(_) | Command::Agent(_) | Command::Guard(_)
    );
    logging::set_up(global.log_format, if is_daemon { "info" } else { "error" });
    match command {
        Command::Init(args) => once(init::run(&global, &args)),
        Command::Hub(args) => hub::run(&args),
        Command::Mirror(args) => mirror::run(&args),
        Command::Agent(args) => agent::run(&global, &args),
        Command::Guard(args) => guard::run(&args),
        Command::Confine => std::process::exit(cohort_host::confine::run()),
        Command::Token(args) => once(token::run(&global, &args)),
        Command::Publish(args) => once(publish::run(&global, &args)),
        Command::Release(args) => once(release::run(&global, args)),
        Command::Repository(args) => once(repository::run(&global, &args)),
        Command::Channel(args) => once(channel::run(&global, &args)),
        Command::App(args) => once(app::run(&global, &args)),
        Command::Check(args) => once(check::run(&global, &args)),
        Command::Status(args) => once(status::run(&global, &args)),
        Command::Why(args) => once(why::run(&global, &args)),
        Command::Events(args) => once(events::run(&global, &args)),
        Command::Logs(args) => once(logs::run(&global, &args)),
        Command::Rollout(args) => once(rollout::run(&global, &args)),
        Command::Service(args) => once(service::run(&global, &args)),
        Command::Group(args) => once(group::run(&global, &args)),
        Command::Kill(args) => once(kill::run(&global, &args)),
        Command::Server(args) => once(revoke::server(&global, &args)),
        Command::Person(args) => once(revoke::person(&global, &args)),
        Command::Audit(args) => once(audit::run(&global, &args)),
        Command::Authority(args) => once(authority::run(&global, &args)),
        Command::Context(args) => once(context::run(&global, &args)),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

/// Runs a command to completion on this thread.
fn once(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    runtime(&mut Builder::new_current_thread())?.block_on(work)
}

fn daemon_runtime(threads: usize) -> Result<tokio::runtime::Runtime, Failure> {
    runtime(Builder::new_multi_thread().worker_threads(threads))
}

/// Cancelled by SIGTERM or SIGINT. A second signal terminates immediately, as without a handler.
fn stopping() -> Result<CancellationToken, Failure> {
    let failed = |error| Failure::of("signal", &error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let stop = CancellationToken::new();
    let asked = stop.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => SIGTERM_CODE,
                _ = interrupt.recv() => SIGINT_CODE,
            }
        };
        next().await;
        tracing::info!("stopping");
        asked.cancel();
        std::process::exit(next().await);
    });
    Ok(stop)
}

fn runtime(builder: &mut Builder) -> Result<tokio::runtime::Runtime, Failure> {
    builder.enable_all().build().or_fail("runtime")
}

/// Nothing in the fleet has that name.
pub(crate) fn no_such_name(known: &Known, about: &str) -> Failure {
    let hint = nearest(about, known.names()).map_or_else(
        || cohort_view::command::Command::GroupList.into(),
        |near| Hint::Meant(near.to_owned()),
    );
    Failure::new("no_such_name", format!("no group or server `{about}`")).hint(hint)
}

fn context_of(global: &Global) -> Result<crate::context::Context, Failure> {
    crate::context::Context::load(global)
}
