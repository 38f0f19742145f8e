//! Why an agent does not start, or stops.

use std::path::PathBuf;

/// Why an agent does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A value of the configuration cannot be used.
    #[error("agent configuration: {0}")]
    Config(String),
    /// A folder or file of the agent's own cannot be used.
    #[error("{} cannot be {what}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The machine gives no further thread.
    #[error(
        "the agent cannot start a thread; raise its limit of tasks (TasksMax= of its unit, or \
         ulimit -u)"
    )]
    Thread(#[source] std::io::Error),
    /// Something that the agent keeps is damaged, or belongs to somebody else.
    #[error("{0}")]
    Kept(String),
    /// It has no certificate and no usable token.
    #[error("this server has not joined the fleet: {0}")]
    NotJoined(String),
    /// A port is taken.
    #[error("the agent cannot listen on {address}")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host's record cannot be kept.
    #[error("the host's record cannot be kept")]
    Host(#[from] cohort_host::HostError),
    /// The group began another life (`cohort group recover`): the agent begins anew with it.
    #[error("the group began another life, incarnation {0}")]
    NewLife(cohort_core::ids::Incarnation),
    /// The group gave this server another member: the log of the old one is set aside.
    #[error("this server is to carry another member than {0}")]
    OtherMember(cohort_core::ids::MemberId),
    /// A mistake of ours; the agent stops rather than go on by halves.
    #[error("the agent's {0} panicked; the log above says where")]
    Panicked(&'static str),
    /// The member stopped.
    #[error(transparent)]
    Member(#[from] crate::member::MemberError),
}
