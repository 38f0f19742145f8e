//! The hub's API: joining, renewal, tokens, policies and uploads. The registry's messages are
//! defined next to its trait, the kill switch in [`crate::kill`].

use std::collections::BTreeMap;

use cohort_core::ids::{AppId, GroupId, Incarnation, Platform, Revision, ServerId};
use cohort_core::orders::MemberAddress;
use cohort_identity::{PeerName, Role, TokenState};
use serde::{Deserialize, Serialize};

use crate::intent::SignedIntent;
use crate::revocation::SignedRevocation;

/// The port of the hub's API (mutual TLS).
pub const HUB_PORT: u16 = 7418;
/// The port of the hub's repository, probes and metrics (plain HTTP).
pub const REPOSITORY_PORT: u16 = 7419;

/// `POST`: exchanges a join token for a certificate. Needs no client certificate.
pub const JOIN: &str = "/v1/join";
/// Largest body of [`JOIN`], in bytes: all that the hub reads of a stranger.
pub const JOIN_BYTES_MAX: u64 = 64 * 1024;
/// `POST`: renews the caller's own certificate.
pub const RENEW: &str = "/v1/renew";
/// `POST`, operators: creates a join token; `GET`: a list of [`TokenListed`].
pub const TOKEN: &str = "/v1/token";
/// `POST`, operators: revokes an unused join token.
pub const REVOKE_TOKEN: &str = "/v1/token/revoke";
/// `GET`: every kill register; `POST`: a register signed by an operator. The response is a
/// [`KillAnswer`](crate::kill::KillAnswer).
pub const KILL: &str = "/v1/kill";

/// The kind of a refusal: another publisher was faster; make the change again on top of that.
pub const OUTDATED: &str = "outdated";

/// `GET`: the whole fleet as the registry knows it.
pub const FLEET: &str = "/v1/fleet";
/// `POST`: reads the registry.
pub const REGISTRY_RANGE: &str = "/v1/registry/range";
/// `POST`: changes the registry.
pub const REGISTRY_TXN: &str = "/v1/registry/txn";
/// `POST`: long poll for registry changes.
pub const REGISTRY_WATCH: &str = "/v1/registry/watch";

/// `POST`, operators: writes an app's policy.
#[must_use]
pub fn policy_path(app: &AppId) -> String {
    format!("/v1/policies/{app}")
}

/// `POST`, operators: removes an app from every group.
#[must_use]
pub fn remove_app_path(app: &AppId) -> String {
    format!("/v1/policies/{app}/remove")
}

/// `POST`, operators: ends a group's incarnation and starts the next.
#[must_use]
pub fn recover_path(group: &GroupId) -> String {
    format!("/v1/groups/{group}/recover")
}

/// `POST`, operators: removes a group that has no server left.
#[must_use]
pub fn remove_group_path(group: &GroupId) -> String {
    format!("/v1/groups/{group}/remove")
}

/// `DELETE`, operators: removes a server's record; its certificate is no longer renewed.
#[must_use]
pub fn server_path(server: &ServerId) -> String {
    format!("/v1/servers/{server}")
}

/// `POST`, agents: which authority issues, and which to trust. `GET`, operators: who has followed.
pub const AUTHORITY: &str = "/v1/authority";
/// `POST`, operators: replaces the authority by a new one; both are trusted.
pub const ROTATE_AUTHORITY: &str = "/v1/authority/rotate";
/// `POST`, operators: ends the trust in the old one.
pub const FINISH_AUTHORITY: &str = "/v1/authority/finish";

/// `PUT`, publishers: uploads one file of the repository, such as `metadata/2.targets.json`.
#[must_use]
pub fn upload_path(file: &str) -> String {
    format!("/v1/repository/{file}")
}

/// Most labels of a server; they are stored and listed for every server.
pub const LABELS_MAX: usize = 32;
/// Longest key or value of a label, in bytes: as in a DNS label.
pub const LABEL_BYTES_MAX: usize = 63;
/// Longest address or rack of a server, in bytes: a DNS name and a port.
pub const ADDRESS_BYTES_MAX: usize = 260;

/// Body of [`JOIN`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    pub token_id: String,
    pub token_secret: String,
    /// An identity request as JSON text.
    pub request: String,
    /// Required for the role agent, rejected for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<JoiningServer>,
}

impl std::fmt::Debug for JoinRequest {
    /// Omits the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest")
            .field("token_id", &self.token_id)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// A joining server's facts about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoiningServer {
    /// Its peer port, `host:port`, as other servers reach it.
    pub address: String,
    pub platform: Platform,
    /// Grouping labels such as `zone`; at most [`LABELS_MAX`].
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its failure domain, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
}

/// Response to [`JOIN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// The certificate chain in PEM.
    pub certificate: String,
    /// The authority's certificate in PEM.
    pub authority: String,
    /// The name to expect in the hub's certificate from now on.
    pub hub: PeerName,
    /// The repository's initial trusted root (`root.json`), if there is a repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted_root: Option<String>,
    /// Base URLs of the repository, in the order to try them.
    pub mirrors: Vec<String>,
    /// The port of the hub's own repository, used if there are no mirrors; `None`: it is read at
    /// the API's port, with a certificate.
    pub repository_port: Option<u16>,
    /// For servers: the group it was assigned to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<JoinedGroup>,
}

/// The group of a new server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedGroup {
    pub group: GroupId,
    /// The labels that select this group.
    pub labels: BTreeMap<String, String>,
    pub members: Vec<MemberAddress>,
}

/// Body of [`RENEW`], sent over a connection with the old certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// An identity request as JSON text.
    pub request: String,
}

/// Response to [`RENEW`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewAnswer {
    /// The certificate chain in PEM.
    pub certificate: String,
    /// The authorities to trust from now on, in PEM. The chain proves that one of those trusted so
    /// far has certified a new one.
    pub authorities: String,
}

/// Body of [`AUTHORITY`]: what the certificate and the trust of an agent are. Fingerprints:
/// SHA-256, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorityRequest {
    /// The authority that issued the certificate itself, if it trusts that one.
    pub issuer: Option<String>,
    /// The authorities that it trusts.
    pub trusts: Vec<String>,
}

/// Response to [`AUTHORITY`]: what they would be after a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityAnswer {
    pub issuer: String,
    pub trusts: Vec<String>,
}

/// Body of [`FINISH_AUTHORITY`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinishAuthorityRequest {
    /// Also if servers are left that have no certificate of the new authority: they have to join
    /// again.
    pub leave_behind: bool,
}

/// Response to a `GET` of [`AUTHORITY`], to [`ROTATE_AUTHORITY`] and [`FINISH_AUTHORITY`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityStatus {
    /// The fingerprint of the authority that issues.
    pub issuer: String,
    /// The fingerprints of those to trust: also the old one, while another one replaces it.
    pub trusts: Vec<String>,
    /// Servers of the fleet.
    pub servers: usize,
    /// Those that this hub, since its start, has not heard to have a certificate of the authority
    /// that issues.
    pub behind: Vec<ServerId>,
    /// Apps whose policy or removal only the old authority proves.
    pub apps: Vec<AppId>,
    /// Revocations of which that is so; at most as many as one message has.
    pub revocations: Vec<SignedRevocation>,
}

/// Body of [`TOKEN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    pub role: Role,
    /// The only name allowed; required to replace a server that joined before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<PeerName>,
    /// Lifetime in seconds; the hub's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_s: Option<u64>,
    /// The hub's addresses, `host:port`; from the hub's configuration if absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
}

/// Response to [`TOKEN`]. Anyone with the token can join: show it once, never log it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenAnswer {
    pub id: String,
    pub token: String,
    /// Unix time in seconds.
    pub expires_at: Option<u64>,
}

impl std::fmt::Debug for TokenAnswer {
    /// Omits the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenAnswer")
            .field("id", &self.id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// One of the tokens that [`TOKEN`] lists: those that can be used or could have been, and those
/// that people joined with. Servers that have joined are in the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenListed {
    pub id: String,
    pub role: Role,
    /// The only name allowed.
    pub name: Option<PeerName>,
    /// Unix time in seconds.
    pub created_at: u64,
    /// Unix time in seconds; `None`: never.
    pub expires_at: Option<u64>,
    #[serde(flatten)]
    pub state: TokenState,
}

/// Body of [`REVOKE_TOKEN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeTokenRequest {
    pub id: String,
}

/// Body of [`policy_path`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    /// The policy, by the operator who wants it.
    pub signed: SignedIntent,
    /// Write only if the policy's revision is still this one; 0: only if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Revision>,
}

/// Response to a written policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyAnswer {
    /// The revision that the operator signed, which rollouts pin.
    pub revision: Revision,
}

/// Body of [`remove_app_path`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveAppRequest {
    /// The removal, by the operator who wants it.
    pub signed: SignedIntent,
    /// Also if a group is rolling it out or back. If false, such an app is left alone.
    pub mid_rollout: bool,
}

/// Response to a removed app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveAppAnswer {
    /// The revision of the removal.
    pub revision: Revision,
    /// False if it had been removed before.
    pub changed: bool,
    /// The groups that still have it.
    pub groups: Vec<GroupId>,
}

/// Body of [`recover_path`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoverRequest {
    /// The incarnation to end; any other is left alone.
    pub incarnation: Incarnation,
    /// The server that bootstraps the next incarnation.
    pub first_server: ServerId,
    /// Reason, shown in status.
    pub because: String,
}

/// Body of [`remove_group_path`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveGroupRequest {
    /// Also removes the servers that it still lists. If false, such a group is left alone.
    pub servers_are_lost: bool,
}

/// Response to a recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverAnswer {
    pub incarnation: Incarnation,
}
