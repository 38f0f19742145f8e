//! What a certificate says about its holder: a role and a name.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};

use crate::identity::{Validity, unverified_validity};

/// The zone of all names. `.internal` is reserved for private use: no public authority can issue
/// a certificate for it.
const ZONE: &str = "cohort.internal";

/// What the holder of a certificate may be asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A person or program with read access.
    Viewer,
    /// A person who may change what is deployed and flip the kill switch.
    Operator,
    /// A program that may publish releases and move channels.
    Publisher,
    /// The agent on a server; its name is the server id.
    Agent,
    /// The hub, of which a fleet has one.
    Hub,
}

impl Role {
    /// Every role, least privileged first.
    pub const ALL: [Role; 5] =
        [Role::Viewer, Role::Operator, Role::Publisher, Role::Agent, Role::Hub];

    /// The word used in certificates and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Publisher => "publisher",
            Role::Agent => "agent",
            Role::Hub => "hub",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = InvalidPeer;
    fn from_str(text: &str) -> Result<Self, InvalidPeer> {
        Role::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| InvalidPeer::Role(cut(text)))
    }
}

/// The name of a peer: a DNS label. An agent's is its server id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerName(String);

impl PeerName {
    /// Parses a name: 1 to 63 of a-z, 0-9 and `-`, neither first nor last a `-`.
    ///
    /// # Errors
    /// [`InvalidPeer::Name`] when the text breaks that rule.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidPeer> {
        let text = text.into();
        let valid = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if valid { Ok(Self(text)) } else { Err(InvalidPeer::Name(cut(&text))) }
    }

    /// The name as a DNS label, as in the certificate.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for PeerName {
    type Error = InvalidPeer;
    fn try_from(text: String) -> Result<Self, InvalidPeer> {
        Self::new(text)
    }
}

impl From<PeerName> for String {
    fn from(name: PeerName) -> String {
        name.0
    }
}

/// The holder of a verified certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub role: Role,
    pub name: PeerName,
}

impl Peer {
    /// A peer with this role and name.
    ///
    /// # Errors
    /// [`InvalidPeer::Name`] when the name is not a DNS label.
    pub fn new(role: Role, name: impl Into<String>) -> Result<Self, InvalidPeer> {
        Ok(Self { role, name: PeerName::new(name)? })
    }

    /// The DNS name in the certificate: `<name>.<role>.cohort.internal`.
    #[must_use]
    pub fn dns_name(&self) -> String {
        format!("{}.{}.{ZONE}", self.name, self.role)
    }

    /// The same, as rustls expects the other side's name.
    #[must_use]
    pub fn server_name(&self) -> ServerName<'static> {
        ServerName::try_from(self.dns_name()).expect("a label of a label of the zone is a DNS name")
    }

    fn from_dns_name(text: &str) -> Result<Self, InvalidPeer> {
        let labels = text.strip_suffix(ZONE).and_then(|rest| rest.strip_suffix('.'));
        let Some((name, role)) = labels.and_then(|labels| labels.split_once('.')) else {
            return Err(InvalidPeer::Stranger(cut(text)));
        };
        Ok(Self { role: role.parse()?, name: PeerName::new(name)? })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.role, self.name)
    }
}

/// The prefix of the URI in a certificate that names its holder's group.
const GROUP_URI: &str = "cohort:group:";

/// What a certificate certifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    pub peer: Peer,
    /// The group that the hub assigned to an agent when it joined. Another authority than the
    /// hub's may leave it out.
    pub group: Option<String>,
    /// The first second in which it is valid.
    pub not_before: UnixTime,
    /// The last one.
    pub not_after: UnixTime,
}

/// The URI in the certificate of an agent of `group`.
pub(crate) fn group_uri(group: &str) -> String {
    format!("{GROUP_URI}{group}")
}

/// What the first certificate of a chain certifies. As [`peer_of`], it does *not* verify the chain.
///
/// # Errors
/// When the chain is empty, cannot be read, or does not name exactly one peer.
pub fn certified_by(chain: &[CertificateDer<'_>]) -> Result<Certified, InvalidPeer> {
    let peer = peer_of(chain)?;
    let leaf = chain.first().ok_or(InvalidPeer::Empty)?;
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(InvalidPeer::Unreadable)?;
    let mut groups = leaf.valid_uri_names().filter_map(|uri| uri.strip_prefix(GROUP_URI));
    match (groups.next(), groups.next()) {
        (Some(_), Some(_)) => Err(InvalidPeer::Ambiguous),
        (group, _) => {
            let group = group.map(str::to_owned);
            let Validity { not_before, not_after } = unverified_validity(chain);
            Ok(Certified { peer, group, not_before, not_after })
        }
    }
}

/// The peer that the first certificate of a chain names. This does *not* verify the chain: TLS or
/// [`crate::verify_statement`] must have done so.
///
/// # Errors
/// When the chain is empty, cannot be read, or does not name exactly one peer.
pub fn peer_of(chain: &[CertificateDer<'_>]) -> Result<Peer, InvalidPeer> {
    let leaf = chain.first().ok_or(InvalidPeer::Empty)?;
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(InvalidPeer::Unreadable)?;
    let mut names = leaf.valid_dns_names();
    match (names.next(), names.next()) {
        // Two names would let one certificate act in two roles, whichever is asked first.
        (Some(_), Some(_)) => Err(InvalidPeer::Ambiguous),
        (Some(name), None) => Peer::from_dns_name(name),
        (None, _) => Err(InvalidPeer::Stranger(String::new())),
    }
}

/// The SHA-256 of `bytes` as 64 hexadecimal digits: fingerprints of certificates and keys.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

/// Why a text or certificate does not name a peer. Texts are cut to 80 characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPeer {
    #[error("`{0}` is not a valid name: use 1 to 63 of a-z, 0-9 and `-`, no `-` at either end")]
    Name(String),
    #[error("`{0}` is not a role: use viewer, operator, publisher, agent or hub")]
    Role(String),
    #[error("certificate's name `{0}` is not of the form <name>.<role>.cohort.internal")]
    Stranger(String),
    #[error("certificate has more than one name")]
    Ambiguous,
    #[error("certificate chain is empty")]
    Empty,
    #[error("certificate cannot be parsed")]
    Unreadable(#[source] webpki::Error),
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}
