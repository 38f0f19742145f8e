//! Who may do what, as pure functions: a role, a group and a request in, yes or a clear no out.
//!
//! | role | may |
//! | --- | --- |
//! | nobody (no certificate) | join, with a token |
//! | viewer | read |
//! | operator | read; policies, kill switch, join tokens, `group recover` |
//! | publisher | upload to the repository |
//! | agent | read; its own record, its group's records and verdicts |
//! | hub | read |

use cohort_core::ids::{GroupId, ServerId};
use cohort_core::policy::Policy;
use cohort_identity::{Peer, Role};
use cohort_registry::keys::{self, Place};
use cohort_registry::records::{
    BootstrapRecord, Fenced, GroupInfo, GroupRecord, MembersRecord, PolicyRecord, ServerRecord,
    Stamp, VerdictRecord, decode,
};
use cohort_registry::state::State;
use cohort_registry::{Compare, KeyValue, Op, RegistryError, Txn};
use cohort_wire::http::ApiError;
use serde::de::DeserializeOwned;

/// What a request needs of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// To read what the fleet is doing.
    Read,
    /// To change what the fleet shall do.
    Operate,
    /// To put files into the repository.
    Publish,
    /// To have any certificate.
    Certificate,
}

/// Whether this sender may ask for that.
///
/// # Errors
/// 401 without a certificate, 403 with the wrong role.
pub fn require(peer: Option<&Peer>, need: Need) -> Result<&Peer, ApiError> {
    let Some(peer) = peer else {
        return Err(ApiError::unauthenticated());
    };
    let allowed = match (need, peer.role) {
        (Need::Certificate, _)
        | (Need::Read, Role::Viewer | Role::Operator | Role::Agent | Role::Hub)
        | (Need::Operate, Role::Operator)
        | (Need::Publish, Role::Publisher | Role::Operator) => true,
        (Need::Read, Role::Publisher)
        | (Need::Operate, Role::Viewer | Role::Publisher | Role::Agent | Role::Hub)
        | (Need::Publish, Role::Viewer | Role::Agent | Role::Hub) => false,
    };
    if allowed {
        return Ok(peer);
    }
    let (deed, role) = match need {
        Need::Read => ("read the registry", "viewer"),
        Need::Operate => ("change this", "operator"),
        Need::Publish => ("upload to the repository", "publisher"),
        Need::Certificate => ("ask this", "viewer"),
    };
    Err(ApiError::forbidden(format!("{peer} may not {deed}")).hint(format!(
        "use a certificate of the role {role}; an operator makes a token for one with \
         `cohort token create --role {role}`"
    )))
}

/// Whether this sender may make this transaction, and whether what it writes is what belongs there.
///
/// `now` is what is there: the sender's own record says which group it belongs to, and a
/// fenced record must not become older.
///
/// # Errors
/// 401, 403, 400 for a value that is no record of its place, 409 for a late one.
pub fn check_txn(peer: Option<&Peer>, txn: &Txn, now: &State) -> Result<(), ApiError> {
    let peer = require(peer, Need::Certificate)?;
    let writer = match peer.role {
        Role::Agent => Writer::Agent { server: server_of(peer), group: group_of(peer, now)? },
        Role::Operator => Writer::Operator,
        Role::Viewer | Role::Publisher | Role::Hub => {
            let refusal = ApiError::forbidden(format!("{peer} may not change the registry"));
            return Err(refusal
                .hint("changes are made by agents, and by operators with `cohort app apply`"));
        }
    };
    for op in txn.then.iter().chain(&txn.otherwise) {
        writer.check(peer, op, &txn.compare, now)?;
    }
    Ok(())
}

enum Writer {
    Agent { server: ServerId, group: GroupId },
    Operator,
}

impl Writer {
    fn check(
        &self,
        peer: &Peer,
        op: &Op,
        compare: &[Compare],
        now: &State,
    ) -> Result<(), ApiError> {
        let key = op.key();
        let Some(place) = keys::parse(key) else {
            return Err(ApiError::bad_request(format!(
                "registry key `{key}` is not of the layout"
            )));
        };
        match (self, place) {
            (Writer::Agent { server, group }, Place::Server { server: of }) if of == *server => {
                let record: ServerRecord = required(op)?;
                if record.server != *server || record.group != *group {
                    let wrong = format!("{peer} may not move itself out of group {group}");
                    return Err(ApiError::forbidden(wrong).hint("join again with a new token"));
                }
                Ok(())
            }
            (Writer::Agent { group, .. }, Place::GroupInfo { group: of }) if of == *group => {
                same(required::<GroupInfo>(op)?.group == *group, key)
            }
            (Writer::Agent { group, .. }, Place::Bootstrap { group: of }) if of == *group => {
                // An agent begins a life only where there is none; the next one is a person's deed.
                if !compare.contains(&Compare::absent(key)) || matches!(op, Op::Delete { .. }) {
                    let wrong = format!("{peer} may only begin group {group}, once");
                    return Err(ApiError::forbidden(wrong)
                        .hint("a new life of a group is begun with `cohort group recover`"));
                }
                same(required::<BootstrapRecord>(op)?.group == *group, key)
            }
            (Writer::Agent { group, .. }, Place::Members { group: of }) if of == *group => {
                same(required::<MembersRecord>(op)?.group == *group, key)?;
                not_late::<MembersRecord>(op, now)
            }
            (Writer::Agent { group, .. }, Place::GroupRecord { group: of, app })
                if of == *group =>
            {
                let Some(record) = optional::<GroupRecord>(op)? else { return Ok(()) };
                same(record.group == *group && record.app == app, key)?;
                not_late::<GroupRecord>(op, now)
            }
            (Writer::Agent { group, .. }, Place::Verdict { group: of, .. }) if of == *group => {
                if optional::<VerdictRecord>(op)?.is_none() {
                    return Ok(());
                }
                not_late::<VerdictRecord>(op, now)
            }
            (Writer::Operator, Place::Policy { app }) => {
                let Some(record) = optional::<PolicyRecord>(op)? else { return Ok(()) };
                let policy = check_policy(&record.policy)?;
                same(record.app == app && policy.app == app, key)
            }
            (Writer::Operator, Place::Kill { .. }) => {
                Err(ApiError::forbidden("a kill switch is not written as a plain key".to_owned())
                    .hint("use `cohort kill on|off`, which signs it"))
            }
            (
                Writer::Agent { .. } | Writer::Operator,
                Place::Server { .. }
                | Place::GroupInfo { .. }
                | Place::Bootstrap { .. }
                | Place::Members { .. }
                | Place::GroupRecord { .. }
                | Place::Verdict { .. }
                | Place::Policy { .. }
                | Place::Kill { .. },
            ) => Err(ApiError::forbidden(format!("{peer} may not write `{key}`"))
                .hint("agents write what belongs to their own group, operators write policies")),
        }
    }
}

/// The highest incarnation that a transaction speaks of: those are revisions of this registry, so
/// one that it has not reached tells that it was put back to an older state.
#[must_use]
pub fn highest_incarnation(txn: &Txn) -> u64 {
    let of = |op: &Op| match op {
        Op::Put { value, .. } => serde_json::from_str::<Stamp>(value).ok(),
        Op::Delete { .. } => None,
    };
    let ops = txn.then.iter().chain(&txn.otherwise);
    ops.filter_map(of).map(|stamp| stamp.incarnation.0).max().unwrap_or(0)
}

/// Parses a policy by this version's rules.
///
/// # Errors
/// 400 that names the offending key.
pub fn check_policy(policy: &serde_json::Value) -> Result<Policy, ApiError> {
    let hint = "see `cohort app diff`, and docs/operating.md for every key";
    let policy: Policy = serde_json::from_value(policy.clone())
        .map_err(|error| ApiError::bad_request(format!("policy is refused: {error}")).hint(hint))?;
    policy
        .validate()
        .map_err(|error| ApiError::bad_request(format!("policy is refused: {error}")).hint(hint))?;
    Ok(policy)
}

/// The group of an agent: what its own record in the registry says.
///
/// # Errors
/// 403 when the hub does not know the server (any more).
pub fn group_of(peer: &Peer, now: &State) -> Result<GroupId, ApiError> {
    let record = now.get(&keys::server(&server_of(peer)));
    let record = record.map(decode::<ServerRecord>);
    match record {
        Some(Ok(record)) => Ok(record.group),
        Some(Err(_)) | None => {
            let refusal = ApiError::forbidden(format!("{peer} is in no group"));
            Err(refusal.hint("it was removed, or the hub is another one: join again with a token"))
        }
    }
}

fn server_of(peer: &Peer) -> ServerId {
    ServerId::new(peer.name.as_str()).expect("names of peers and server ids have the same rule")
}

/// The record that is put; deleting is refused.
fn required<T: DeserializeOwned>(op: &Op) -> Result<T, ApiError> {
    optional(op)?.ok_or_else(|| {
        ApiError::forbidden(format!("registry key `{}` is not to be deleted", op.key()))
    })
}

/// The record that is put, or nothing when the key is deleted.
fn optional<T: DeserializeOwned>(op: &Op) -> Result<Option<T>, ApiError> {
    match op {
        Op::Put { key, value } => {
            decode(&pair(key, value)).map(Some).map_err(|error| bad_record(&error))
        }
        Op::Delete { .. } => Ok(None),
    }
}

/// A late writer is told so, even one that does not look first.
fn not_late<T: DeserializeOwned + Fenced>(op: &Op, now: &State) -> Result<(), ApiError> {
    let Some(record) = optional::<T>(op)? else { return Ok(()) };
    let Some(there) = now.get(op.key()) else { return Ok(()) };
    let there: T = decode(there).map_err(|error| bad_record(&error))?;
    if there.stamp() <= record.stamp() {
        return Ok(());
    }
    let stamp = there.stamp();
    Err(ApiError::conflict(format!(
        "a newer record is at `{}`: incarnation {}, term {}, index {}",
        op.key(),
        stamp.incarnation,
        stamp.term,
        stamp.index
    )))
}

fn same(is: bool, key: &str) -> Result<(), ApiError> {
    if is {
        Ok(())
    } else {
        Err(ApiError::bad_request(format!("the record for `{key}` names something else")))
    }
}

fn bad_record(error: &RegistryError) -> ApiError {
    ApiError::bad_request(error.to_string())
}

fn pair(key: &str, value: &str) -> KeyValue {
    let (key, value) = (key.to_owned(), value.to_owned());
    KeyValue { key, value, create_revision: 0, mod_revision: 0, version: 0 }
}
