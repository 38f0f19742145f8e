//! Ids: one type per kind, validated once, on entry. A state is copied often and repeats few names,
//! so copies of a name share its text.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A text that is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidName {
    /// The kind of name expected, such as "server id".
    pub what: &'static str,
    /// The offending text, truncated to 80 characters.
    pub text: String,
    pub rule: &'static str,
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a valid {}: {}", self.text, self.what, self.rule)
    }
}

impl std::error::Error for InvalidName {}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                // Most comparisons are of two copies of one name.
                if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl $name {
            /// Validates a name.
            ///
            /// # Errors
            /// If the text breaks the rule for this kind of name.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
                let text = text.into();
                let valid: fn(&str) -> bool = $valid;
                if valid(&text) {
                    Ok(Self(text.into()))
                } else {
                    let text = text.chars().take(80).collect();
                    Err(InvalidName { what: $what, text, rule: $rule })
                }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.as_str().to_owned()
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_dotted_label(text: &str) -> bool {
    text.len() <= 200 && text.split('.').all(is_label)
}

fn is_version(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b".-_+".contains(&b);
    (1..=64).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(inner)
}

fn is_platform(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"/_.-".contains(&b);
    (1..=64).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(inner)
        && text.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

name_type!(
    /// A server: one machine with an agent. A DNS label, because certificates carry it.
    ServerId, "server id",
    "use 1 to 63 of a-z, 0-9 and `-`, with no `-` at either end", is_label
);
name_type!(
    /// A group of similar servers: DNS labels joined by dots, such as `intel.zone-a`.
    GroupId, "group name",
    "use labels of a-z, 0-9 and `-`, joined by dots, at most 200 characters", is_dotted_label
);
name_type!(
    /// An app: a deployed piece of software.
    AppId, "app name",
    "use 1 to 63 of a-z, 0-9 and `-`, with no `-` at either end", is_label
);
name_type!(
    /// The version of a release, compared only for equality.
    Version, "version",
    "use 1 to 64 letters, digits and `.-_+`, starting with a letter or digit", is_version
);
name_type!(
    /// A channel: a signed pointer to a release, such as `stable`.
    Channel, "channel name",
    "use 1 to 63 of a-z, 0-9 and `-`, with no `-` at either end", is_label
);
name_type!(
    /// A program that `exec` checks run: the release's or the server's name for it.
    ProgramName, "name of a check's program",
    "use 1 to 63 of a-z, 0-9 and `-`, with no `-` at either end", is_label
);
name_type!(
    /// What an `exec` check runs: a program that the release declares, or `host:NAME` for one of
    /// the server's own.
    CheckName, "name of a check",
    "use 1 to 63 of a-z, 0-9 and `-`, with `host:` before it for a program of the server",
    |text| is_label(text.strip_prefix(OF_HOST).unwrap_or(text))
);
name_type!(
    /// A port of a server, by what it is for, such as `metrics`; or an app, whose own port it is.
    PortName, "name of a port",
    "use 1 to 63 of a-z, 0-9 and `-`, with no `-` at either end", is_label
);
name_type!(
    /// The platform an artifact is built for, such as `linux/amd64`.
    Platform, "platform",
    "use 1 to 64 of a-z, 0-9 and `/_.-`, without empty parts or `..`", is_platform
);
name_type!(
    /// A BLAKE3 hash: 64 lower-case hexadecimal digits.
    Digest, "digest", "use 64 lower-case hexadecimal digits", is_digest
);

/// The prefix of a [`CheckName`] that the server's own list has.
const OF_HOST: &str = "host:";

impl CheckName {
    /// The name on the server's own list; `None`: the release declares this one.
    #[must_use]
    pub fn of_host(&self) -> Option<&str> {
        self.as_str().strip_prefix(OF_HOST)
    }
}

/// Longest [`RequestId`], in bytes: a UUID, with room for a prefix.
pub const REQUEST_ID_BYTES_MAX: usize = 64;

/// Identifies a request of an operator or a program, so that a repeat is applied once. At most
/// [`REQUEST_ID_BYTES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub String);

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
            Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The number after this one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number_type!(
    /// The incarnation of a group, issued by the registry with a compare-and-set.
    Incarnation
);
number_type!(
    /// Incremented by every change of plan of an app in a group.
    Generation
);
number_type!(
    /// A member's Raft number; never reused within an incarnation.
    MemberId
);
number_type!(
    /// Incremented by a server at each start of its agent.
    BootEpoch
);

impl BootEpoch {
    /// The highest one that a server starts to count from, as a time in seconds: a day in 2105.
    /// Connections are numbered by a 32-bit boot epoch: even with a wrong clock, 2^24 starts are
    /// left.
    pub const FIRST_MAX: BootEpoch = BootEpoch((1 << 32) - (1 << 24));
}

number_type!(
    /// The revision of an app's policy in the registry.
    Revision
);
number_type!(
    /// A point on the group clock, in milliseconds since the group was set up; stands still without
    /// a leader.
    ClockMs
);

impl ClockMs {
    /// Time since `earlier`, in milliseconds; 0 if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: ClockMs) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The point `ms` milliseconds later.
    #[must_use]
    pub fn plus(self, ms: u64) -> ClockMs {
        ClockMs(self.0.saturating_add(ms))
    }

    /// The point `ms` milliseconds earlier; not before the group was founded.
    #[must_use]
    pub fn minus(self, ms: u64) -> ClockMs {
        ClockMs(self.0.saturating_sub(ms))
    }
}
