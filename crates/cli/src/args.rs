//! The command line: every command, and what all of them take.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use cohort_core::ids::ServerId;
use cohort_identity::{InvalidPeer, PeerName};

use crate::commands;
use crate::logging::LogFormat;
use crate::output::Output;

/// What `--help` says last.
const AFTER_HELP: &str = "\
Exit codes:
  0   done; healthy; nothing to do
  1   failed
  2   wrong usage, or a configuration or policy file that is wrong
  3   not healthy, or held
  4   timed out waiting
  10  `rollout plan`, `app diff`: there is something to do

Environment:
  COHORT_CONTEXT         your context folder (identity, hub); as --context
  COHORT_LOG, RUST_LOG   what is logged, such as `debug` or `cohort_agent=trace`
  NO_COLOR               no colours
  COHORT_<KEY>           a key of agent.toml; COHORT_HUB_<KEY>: a key of hub.toml

First steps: `cohort init --dir ~/fleet`, then do what it says.";

/// Rolls signed releases through groups of servers, wave by wave, and back where they are bad.
#[derive(Debug, Parser)]
#[command(name = "cohort", version, after_help = AFTER_HELP, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// What all commands take.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What all commands take.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Folder with your identity and the hub's address [default: the current folder if it has a
    /// context.toml, else ~/.config/cohort]
    #[arg(long, global = true, env = "COHORT_CONTEXT", hide_env = true, value_name = "DIR")]
    pub(crate) context: Option<PathBuf>,
    /// For whom to write
    #[arg(short, long, global = true, value_enum, default_value_t, hide_possible_values = true)]
    #[arg(value_name = "text|json", hide_default_value = true)]
    pub(crate) output: Output,
    /// Form of log lines, on standard error
    #[arg(long, global = true, value_enum, default_value_t, hide_possible_values = true)]
    #[arg(value_name = "text|json", hide_default_value = true)]
    pub(crate) log_format: LogFormat,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make keys, an authority, a repository and your identity; say what to do next
    Init(commands::init::InitArgs),
    /// Run the hub: repository, registry, API
    Hub(Box<commands::hub::HubArgs>),
    /// Serve a copy of the repository, nearer to a zone
    Mirror(commands::mirror::MirrorArgs),
    /// Run this server's agent
    Agent(Box<commands::agent::AgentArgs>),
    /// Run the guard that owns this server's services (started by the agent)
    Guard(commands::guard::GuardArgs),
    /// Make join tokens for servers and people
    #[command(subcommand)]
    Token(commands::token::TokenCommand),
    /// Sign a release and put it into the repository
    Publish(commands::publish::PublishArgs),
    /// Bring the repository into a bucket of an object store
    #[command(subcommand)]
    Repository(commands::repository::RepositoryCommand),
    /// Say which release a channel points to
    #[command(subcommand)]
    Channel(commands::channel::ChannelCommand),
    /// How an app's releases roll: its policy
    #[command(subcommand)]
    App(commands::app::AppCommand),
    /// Show every group, or one, and the reason of every wait
    Status(commands::status::StatusArgs),
    /// Say what a group or server waits for, since when, and what unblocks it
    Why(commands::why::WhyArgs),
    /// See and steer a rollout
    #[command(subcommand)]
    Rollout(commands::rollout::RolloutCommand),
    /// See groups, and change who belongs to them
    #[command(subcommand)]
    Group(commands::group::GroupCommand),
    /// The kill switch: stop everything
    #[command(subcommand)]
    Kill(commands::kill::KillCommand),
    /// Your own identity and context folder
    #[command(subcommand)]
    Context(commands::context::ContextCommand),
    /// Write completions for a shell
    Completions(commands::completions::CompletionsArgs),
}

/// Asks one agent instead of the hub.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Direct {
    /// Ask this agent, without the hub
    #[arg(long, value_name = "HOST:PORT", requires = "name")]
    pub(crate) agent: Option<String>,
    /// The name of the server at --agent
    #[arg(long, value_name = "SERVER", requires = "agent")]
    pub(crate) name: Option<ServerId>,
}

impl Direct {
    /// The agent to ask, if one was given.
    pub(crate) fn agent(&self) -> Option<(&ServerId, &str)> {
        self.name.as_ref().zip(self.agent.as_deref())
    }
}

/// Parses the name of a server or person for clap.
///
/// # Errors
/// When it is no DNS label.
pub(crate) fn peer_name(text: &str) -> Result<PeerName, InvalidPeer> {
    PeerName::new(text)
}
