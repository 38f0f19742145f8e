//! The command line: every command, and the flags that all of them take.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use cohort_core::ids::ServerId;
use cohort_identity::{InvalidPeer, PeerName};

use crate::commands;
use crate::logging::LogFormat;
use crate::output::Output;

const AFTER_HELP: &str = "\
Exit codes:
  0   success; healthy; nothing to do
  1   failed
  2   invalid arguments, configuration or policy file
  3   not healthy, held, or stopped by a kill switch
  4   timed out waiting
  10  `rollout plan`, `app diff`: there are changes to make

Environment:
  COHORT_CONTEXT         context directory (identity, hub), same as --context
  COHORT_KEY_PASSPHRASE_FILE
                         file whose first line is the passphrase of signing keys
  COHORT_LOG, RUST_LOG   log filter, such as `debug` or `cohort_agent=trace`
  NO_COLOR               disable colors
  COHORT_<KEY>           overrides a key of agent.toml; COHORT_HUB_<KEY> of hub.toml

Getting started: `cohort init --dir ~/fleet` prints the next steps.\
";

/// Rolls signed releases out to groups of servers in waves, and back if they fail
#[derive(Debug, Parser)]
#[command(name = "cohort", version, after_help = AFTER_HELP, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Global {
    /// Context directory: your identity and the hub's address [default: the current directory if
    /// it has a context.toml, else ~/.config/cohort]
    #[arg(long, global = true, env = "COHORT_CONTEXT", hide_env = true, value_name = "DIR")]
    pub(crate) context: Option<PathBuf>,
    /// Output format
    #[arg(short, long, global = true, value_enum, default_value_t, hide_possible_values = true)]
    #[arg(value_name = "text|json|name", hide_default_value = true)]
    pub(crate) output: Output,
    /// Format of log lines on standard error
    #[arg(long, global = true, value_enum, default_value_t, hide_possible_values = true)]
    #[arg(value_name = "text|json", hide_default_value = true)]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a fleet: authority, signing keys, repository, your identity
    Init(commands::init::InitArgs),
    /// Run the hub: repository, registry and API
    Hub(Box<commands::hub::HubArgs>),
    /// Serve a cache or copy of the repository close to a zone
    Mirror(commands::mirror::MirrorArgs),
    /// Run this server's agent
    Agent(Box<commands::agent::AgentArgs>),
    /// Run the guard, which owns this server's services (started by the agent)
    Guard(commands::guard::GuardArgs),
    /// Become a program of a release, with nothing else that it could use (started by the agent)
    #[command(hide = true)]
    Confine,
    /// Create and revoke join tokens for servers and people
    #[command(subcommand)]
    Token(commands::token::TokenCommand),
    /// Sign a release and add it to the repository
    Publish(commands::publish::PublishArgs),
    /// List, show, judge and remove releases
    #[command(subcommand)]
    Release(commands::release::ReleaseCommand),
    /// Copy the repository to an object store, clean it up; show and change the keys that sign it
    #[command(subcommand)]
    Repository(commands::repository::RepositoryCommand),
    /// Set, list and remove channels, which point to releases
    #[command(subcommand)]
    Channel(commands::channel::ChannelCommand),
    /// Manage policies: how an app's releases roll out
    #[command(subcommand)]
    App(commands::app::AppCommand),
    /// See what checks say now, before a policy has them
    #[command(subcommand)]
    Check(commands::check::CheckCommand),
    /// Show the state of every group, or of one or a server in detail
    Status(commands::status::StatusArgs),
    /// Explain what a group or server waits for, since when, and how to unblock it
    Why(commands::why::WhyArgs),
    /// Print what happened in groups, from their logs
    Events(commands::events::EventsArgs),
    /// Print what a server's service wrote, or its hooks
    Logs(commands::logs::LogsArgs),
    /// Watch and steer a rollout
    #[command(subcommand)]
    Rollout(commands::rollout::RolloutCommand),
    /// Restart services
    #[command(subcommand)]
    Service(commands::service::ServiceCommand),
    /// Show groups, and manage their servers and voters
    #[command(subcommand)]
    Group(commands::group::GroupCommand),
    /// Stop everything: the kill switch
    #[command(subcommand)]
    Kill(commands::kill::KillCommand),
    /// List and show servers, and revoke their certificates
    #[command(subcommand)]
    Server(commands::revoke::ServerCommand),
    /// Revoke people's certificates
    #[command(subcommand)]
    Person(commands::revoke::PersonCommand),
    /// Show and verify who changed what
    #[command(subcommand)]
    Audit(commands::audit::AuditCommand),
    /// Replace the authority that issues certificates
    #[command(subcommand)]
    Authority(commands::authority::AuthorityCommand),
    /// Manage your identity and context directory
    #[command(subcommand)]
    Context(commands::context::ContextCommand),
    /// Print completions for a shell
    Completions(commands::completions::CompletionsArgs),
    /// Write manual pages
    Man(commands::man::ManArgs),
}

/// Flags to ask one agent instead of the hub.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Direct {
    /// Ask this agent instead of the hub
    #[arg(long, value_name = "HOST:PORT", requires = "name")]
    pub(crate) agent: Option<String>,
    /// Server name of --agent
    #[arg(long, value_name = "SERVER", requires = "agent")]
    pub(crate) name: Option<ServerId>,
}

impl Direct {
    pub(crate) fn agent(&self) -> Option<(&ServerId, &str)> {
        self.name.as_ref().zip(self.agent.as_deref())
    }
}

/// Parses the name of a server or person for clap.
pub(crate) fn peer_name(text: &str) -> Result<PeerName, InvalidPeer> {
    PeerName::new(text)
}
