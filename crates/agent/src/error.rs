//! Why an agent does not start, or stops.

use std::error::Error;
use std::path::PathBuf;

use cohort_base::FileError;
use cohort_core::ids::{BootEpoch, Incarnation, MemberId, ServerId};

type Source = Box<dyn Error + Send + Sync>;

/// Why an agent does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A value in agent.toml, a drop-in, a flag or the environment cannot be used.
    #[error("agent configuration: `{key}` cannot be used")]
    Config {
        key: &'static str,
        #[source]
        source: Source,
    },
    #[error(transparent)]
    File(#[from] FileError),
    /// Somebody else could replace what is installed.
    #[error(
        "`install_dir` and `data_dir`, and every directory above them, must be root's or the \
         agent's, and writable by nobody else"
    )]
    InstallDir(#[from] cohort_host::UntrustedFolder),
    #[error(
        "the agent cannot start a thread; raise its limit of tasks (TasksMax= of its unit, or \
         ulimit -u)"
    )]
    Thread(#[source] std::io::Error),
    /// Something kept in the data folder is damaged, or belongs to another server or group.
    #[error("the {what} in the data directory cannot be used")]
    Kept {
        /// What: identity, log, records, artifacts.
        what: &'static str,
        #[source]
        source: Source,
    },
    /// The certificate or its key is damaged, incomplete, or of another authority.
    #[error(
        "the identity in {} cannot be used: to join again, remove that directory, run `cohort \
         token create --name {server}`, and write the token to join_token_file", dir.display()
    )]
    Identity {
        dir: PathBuf,
        server: ServerId,
        #[source]
        source: Source,
    },
    /// Who owns the agent's directory controls the agent.
    #[error(
        "{} belongs to user {owner}, and the agent runs as user {own}: run it as that user, or \
         `chown -R {own} {}`", dir.display(), dir.display()
    )]
    Owner { dir: PathBuf, owner: u32, own: u32 },
    /// Another agent works in the same directory.
    #[error(
        "another agent runs in {}: stop it, or set another data_dir for this one", dir.display()
    )]
    InUse { dir: PathBuf },
    /// Somebody removed what was in the directory, or put another one in its place.
    #[error(
        "{} was emptied, moved or replaced while the agent ran: put it back and start the agent; \
         if it is lost, join again with a token of `cohort token create --name {server}`",
        dir.display()
    )]
    Emptied { dir: PathBuf, server: ServerId },
    #[error("this server has not joined the fleet")]
    NotJoined(#[source] Source),
    /// Another program has the port.
    #[error("the agent cannot listen on {address}: {holder}")]
    Taken { address: String, holder: String },
    /// The address is wrong, or not ours to take.
    #[error("the agent cannot listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the records of this host cannot be written")]
    Host(#[from] cohort_host::HostError),
    /// The group was recovered, or gave this server another member: the agent sets the log of this
    /// one aside and starts over.
    #[error("member {member} of incarnation {incarnation} is retired")]
    Retired { incarnation: Incarnation, member: MemberId },
    /// The disk was restored from an image: the agent sets the log aside, as for a retired member.
    #[error("member {member} of incarnation {incarnation} cannot continue with this disk")]
    WentBack {
        incarnation: Incarnation,
        member: MemberId,
        #[source]
        source: crate::member::MemberError,
    },
    /// The group took another machine's agent for this server's, after this one had spoken for it.
    #[error("another machine, {host}, runs as this server")]
    Displaced { host: String },
    /// The group has heard of later starts of this server's agent: the agent starts over, after
    /// them.
    #[error(
        "this server's disk went back to an earlier state: the group has heard of start {heard} of \
         its agent, and this is start {own}"
    )]
    EarlierDisk { own: BootEpoch, heard: BootEpoch },
    /// A bug; the agent stops rather than run by halves.
    #[error("the agent's {0} panicked; the log has the message above this line")]
    Panicked(&'static str),
    #[error(transparent)]
    Member(#[from] crate::member::MemberError),
}

impl AgentError {
    /// For `map_err`: this key of the configuration cannot be used.
    pub(crate) fn config<E: Into<Source>>(key: &'static str) -> impl FnOnce(E) -> AgentError {
        move |error| AgentError::Config { key, source: error.into() }
    }

    /// For `map_err`: this part of the data folder cannot be used.
    pub(crate) fn kept<E: Into<Source>>(what: &'static str) -> impl FnOnce(E) -> AgentError {
        move |error| AgentError::Kept { what, source: error.into() }
    }

    /// For `map_err`: why this server could not join.
    pub(crate) fn not_joined<E: Into<Source>>(error: E) -> AgentError {
        AgentError::NotJoined(error.into())
    }
}
