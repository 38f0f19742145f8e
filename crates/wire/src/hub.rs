//! Messages of the hub's API: joining, renewing, tokens, policies and uploads.
//!
//! The registry's own requests and answers are defined beside its trait; the fleet as a whole and
//! the kill switch have modules of their own. What is here is what only the hub speaks.

use std::collections::BTreeMap;

use cohort_core::ids::{AppId, GroupId, Incarnation, Platform, Revision, ServerId};
use cohort_core::orders::MemberAddress;
use cohort_identity::{PeerName, Role};
use serde::{Deserialize, Serialize};

use crate::kill::SignedKill;

/// The port of the hub's API (mutual TLS).
pub const HUB_PORT: u16 = 7418;
/// The port of the hub's repository, probes and metrics (plain HTTP).
pub const REPOSITORY_PORT: u16 = 7419;

/// `POST`: a new server or person trades a join token for a certificate. No client certificate.
pub const JOIN: &str = "/v1/join";
/// `POST`: trades one's own certificate for a newer one.
pub const RENEW: &str = "/v1/renew";
/// `POST`: an operator makes a join token.
pub const TOKEN: &str = "/v1/token";
/// `POST`: an operator takes an unused join token back.
pub const REVOKE_TOKEN: &str = "/v1/token/revoke";
/// `GET`: every kill register; `POST`: an operator's signed register.
pub const KILL: &str = "/v1/kill";
/// `GET`: all that the registry knows of the fleet.
pub const FLEET: &str = "/v1/fleet";
/// `POST`: reads of the registry.
pub const REGISTRY_RANGE: &str = "/v1/registry/range";
/// `POST`: changes of the registry.
pub const REGISTRY_TXN: &str = "/v1/registry/txn";
/// `POST`: waits for changes of the registry.
pub const REGISTRY_WATCH: &str = "/v1/registry/watch";

/// `POST`: an operator writes an app's policy.
#[must_use]
pub fn policy_path(app: &AppId) -> String {
    format!("/v1/policies/{app}")
}

/// `POST`: an operator ends a group's life and begins the next.
#[must_use]
pub fn recover_path(group: &GroupId) -> String {
    format!("/v1/groups/{group}/recover")
}

/// `DELETE`: an operator removes a server's record; its certificate is then not renewed any more.
#[must_use]
pub fn server_path(server: &ServerId) -> String {
    format!("/v1/servers/{server}")
}

/// `PUT`: a publisher uploads one file of the repository, such as `metadata/2.targets.json`.
#[must_use]
pub fn upload_path(file: &str) -> String {
    format!("/v1/repository/{file}")
}

/// The most labels of a server: they are kept for every server and shown in every list.
pub const LABELS_MAX: usize = 32;
/// The longest key or value of a label, in bytes: that of a DNS label.
pub const LABEL_BYTES_MAX: usize = 63;
/// The longest address or rack of a server, in bytes: a DNS name and a port.
pub const ADDRESS_BYTES_MAX: usize = 260;

/// Asks for a certificate with a join token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// Which token.
    pub token_id: String,
    /// What proves it.
    pub token_secret: String,
    /// The identity request, as text: role, name, public key, proof.
    pub request: String,
    /// What the hub should know of a server; required for the role agent, refused for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<JoiningServer>,
}

impl std::fmt::Debug for JoinRequest {
    /// Never shows the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest")
            .field("token_id", &self.token_id)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// What a server says of itself at joining.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoiningServer {
    /// Its peer port, `host:port`, as others reach it.
    pub address: String,
    /// The platform whose artifacts it runs.
    pub platform: Platform,
    /// What else is known of it, such as `zone`; at most [`LABELS_MAX`].
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its failure domain, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
}

/// All that a new server needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinAnswer {
    /// The certificate chain, in PEM.
    pub certificate: String,
    /// The authority, in PEM.
    pub authority: String,
    /// The hub's own name, to expect of it from now on.
    pub hub: PeerName,
    /// The first trusted root of the repository (the bytes of `root.json`), if there is a repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted_root: Option<String>,
    /// Base URLs from which the repository can be read, in the order to try.
    pub mirrors: Vec<String>,
    /// The port of the hub's own plain repository; used with the hub's host when no mirror is named.
    pub repository_port: u16,
    /// The group that the server belongs to; only for servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<JoinedGroup>,
}

/// The group of a server that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinedGroup {
    /// Its name.
    pub group: GroupId,
    /// The labels that made it this group.
    pub labels: BTreeMap<String, String>,
    /// Its members, if any are known.
    pub members: Vec<MemberAddress>,
}

/// Asks for a newer certificate, over a connection with the old one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// The identity request, as text.
    pub request: String,
}

/// A newer certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewAnswer {
    /// The certificate chain, in PEM.
    pub certificate: String,
    /// The authority, in PEM.
    pub authority: String,
}

/// Asks for a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What its user becomes.
    pub role: Role,
    /// The only name that it is good for; needed to replace a server that joined before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<PeerName>,
    /// How long it is good, in seconds; without it, the hub's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_s: Option<u64>,
    /// Where the hub is, `host:port`; without it, what the hub's configuration says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
}

/// A join token. Whoever has it can join: shown once, never logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenAnswer {
    /// Which token.
    pub id: String,
    /// The token as text.
    pub token: String,
    /// Until when it is good, in seconds of Unix time.
    pub expires_at: Option<u64>,
}

impl std::fmt::Debug for TokenAnswer {
    /// Never shows the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenAnswer")
            .field("id", &self.id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Takes an unused join token back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeTokenRequest {
    /// Which token.
    pub id: String,
}

/// Writes an app's policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    /// The policy, with the names of the policy file.
    pub policy: serde_json::Value,
    /// Only if the policy's revision is still this one; 0: only if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Revision>,
}

/// The policy was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyAnswer {
    /// Its revision, which rollouts pin.
    pub revision: Revision,
}

/// Ends a group's life and begins the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoverRequest {
    /// The life that is to end; another one is not touched.
    pub incarnation: Incarnation,
    /// The server that makes the first member of the next life.
    pub first_server: ServerId,
    /// Why, in words.
    pub because: String,
}

/// The group's next life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoverAnswer {
    /// Which life.
    pub incarnation: Incarnation,
}

/// What the hub knows of the kill switch: the answer to `GET` and `POST` of [`KILL`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillAnswer {
    /// Whether the register that was sent has changed anything.
    pub changed: bool,
    /// Every register, signed.
    pub registers: Vec<SignedKill>,
    /// Registers whose files are damaged; they count as on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
}
