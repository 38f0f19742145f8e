//! Why a repository, a mirror of it or a peer is refused, or offers no release.
//!
//! The facts cross the wire; `Display` is their only wording, shared by the logs of the crate
//! `artifact`, which finds them, and by the crate `view`, which adds the hints.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{AppId, Channel, Platform, Version};

/// A refusal: what is wrong, and who offered it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Refused {
    pub why: WhyRefused,
    /// The mirror that offered it; `None` for a peer or the server's own disk.
    pub mirror: Option<String>,
    /// The causes, as the libraries that detected them word them; may be empty.
    pub causes: String,
}

/// A role of TUF, by the file that it signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Root,
    Targets,
    DelegatedTargets,
    Snapshot,
    Timestamp,
}

/// What is wrong with metadata or a file, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "refused", rename_all = "kebab-case")]
pub enum WhyRefused {
    WrongSignature {
        role: Role,
    },
    /// Signed correctly, but too long ago: a mirror may be hiding newer metadata.
    Expired {
        role: Role,
        /// By this server's clock, in seconds.
        ago_s: u64,
    },
    /// Fresh by its signature, and the same for longer than the hub takes to sign it again: a
    /// mirror may be hiding newer metadata.
    Frozen {
        /// Since this server first saw it, in seconds.
        for_s: u64,
    },
    /// Older than what this server has already seen: a replay.
    Older {
        role: Role,
        trusted: u64,
        offered: u64,
    },
    /// Files from different states; the one that does not fit.
    Mixed {
        file: String,
    },
    TooLarge {
        file: String,
        limit_bytes: u64,
    },
    /// The clock shows an earlier time than when something was last verified, by this many seconds.
    ClockWentBack {
        by_s: u64,
    },
    /// A mirror is unreachable, or does not respond.
    Unreachable {
        file: String,
    },
    NoMirror,
    Malformed {
        file: String,
    },
    /// The bytes of a signed file are not the signed ones.
    WrongBytes {
        file: String,
    },
    /// A file that was signed as something else.
    WrongContent {
        field: Field,
        wanted: String,
        found: String,
    },
    BadRoot,
    /// The state on this server's disk cannot be read or written.
    Store {
        path: String,
    },
    /// The state on this server's disk is not what it wrote.
    StoreDamaged {
        path: String,
    },
    /// Another version of Cohort wrote the state on this server's disk.
    StoreOfVersion {
        path: String,
        found: u32,
        supported: u32,
    },
    /// No metadata was verified yet.
    NotRead,
    NoChannel {
        app: AppId,
        channel: Channel,
    },
    NotPublished {
        app: AppId,
        version: Version,
        platform: Platform,
        /// The platforms it is published for.
        only: Vec<Platform>,
    },
    NoFile {
        file: String,
    },
}

/// What a manifest or channel was signed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Field {
    App,
    Channel,
    Platform,
    Version,
}

impl WhyRefused {
    /// Whether a mirror did not respond, so that retrying may help.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, WhyRefused::Unreachable { .. })
    }

    /// Whether nothing was refused: the repository, as far as known, does not have it.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(
            self,
            WhyRefused::NotRead
                | WhyRefused::NoMirror
                | WhyRefused::NoChannel { .. }
                | WhyRefused::NotPublished { .. }
                | WhyRefused::NoFile { .. }
        )
    }
}

impl From<WhyRefused> for Refused {
    fn from(why: WhyRefused) -> Self {
        Refused { why, mirror: None, causes: String::new() }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Root => "root",
            Role::Targets => "targets",
            Role::DelegatedTargets => "delegated targets",
            Role::Snapshot => "snapshot",
            Role::Timestamp => "timestamp",
        })
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Field::App => "app",
            Field::Channel => "channel",
            Field::Platform => "platform",
            Field::Version => "version",
        })
    }
}

impl fmt::Display for WhyRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WhyRefused::WrongSignature { role } => {
                write!(f, "{role} metadata is not signed by a trusted key")
            }
            WhyRefused::Expired { role, ago_s } => {
                write!(f, "{role} metadata expired {} ago by this server's clock", span(*ago_s))
            }
            WhyRefused::Frozen { for_s } => {
                write!(f, "no mirror has shown newer metadata for {}", span(*for_s))
            }
            WhyRefused::Older { role, trusted, offered } => {
                write!(f, "{role} metadata has version {offered}, but version {trusted} was seen")
            }
            WhyRefused::Mixed { file } => write!(f, "{file} does not fit the other metadata"),
            WhyRefused::TooLarge { file, limit_bytes } => {
                write!(f, "{file} is longer than the {limit_bytes} bytes allowed")
            }
            WhyRefused::ClockWentBack { by_s } => {
                write!(f, "this server's clock went back by {}", span(*by_s))
            }
            WhyRefused::Unreachable { file } => write!(f, "cannot fetch {file}"),
            WhyRefused::NoMirror => f.write_str("no mirror of the repository is configured"),
            WhyRefused::Malformed { file } => write!(f, "cannot parse {file}"),
            WhyRefused::WrongBytes { file } => write!(f, "{file} does not have the signed bytes"),
            WhyRefused::WrongContent { field, wanted, found } => {
                write!(f, "signed for another {field}: wanted {wanted}, found {found}")
            }
            WhyRefused::BadRoot => f.write_str("invalid trusted root"),
            WhyRefused::Store { path } => write!(f, "cannot use trust store {path}"),
            WhyRefused::StoreDamaged { path } => write!(f, "trust store {path} is corrupt"),
            WhyRefused::StoreOfVersion { path, found, supported } => write!(
                f,
                "trust store {path} has version {found}, and this version of Cohort reads \
                 {supported}"
            ),
            WhyRefused::NotRead => f.write_str("no metadata of the repository was verified yet"),
            WhyRefused::NoChannel { app, channel } => write!(f, "{app} has no channel `{channel}`"),
            WhyRefused::NotPublished { app, version, platform, only } => {
                write!(f, "{app} {version} is not published for {platform}")?;
                for (at, other) in only.iter().enumerate() {
                    write!(f, "{}{other}", if at == 0 { ", only for " } else { ", " })?;
                }
                Ok(())
            }
            WhyRefused::NoFile { file } => write!(f, "{file} is not in the repository"),
        }
    }
}

/// A span of time in its largest whole unit.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
