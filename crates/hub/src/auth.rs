//! Who may do what, as pure functions of role, group and request.
//!
//! | role | may |
//! | --- | --- |
//! | (no certificate) | join, with a token |
//! | viewer | read |
//! | operator | read; policies, kill switch, join tokens, `group recover`, `group remove` |
//! | publisher | upload to the repository |
//! | agent | read; its own record, its group's records and verdicts |
//! | hub | read |

use cohort_base::chain;
use cohort_core::ids::{GroupId, Incarnation, ServerId};
use cohort_core::policy::Policy;
use cohort_identity::{Peer, Role};
use cohort_registry::keys::{self, Place};
use cohort_registry::records::{
    Bootstrap, BootstrapRecord, Fenced, GroupInfo, GroupRecord, MembersRecord, ServerRecord,
    VerdictRecord, decode,
};
use cohort_registry::state::State;
use cohort_registry::{Compare, KeyValue, Op, RegistryError, Txn};
use cohort_wire::entry;
use cohort_wire::http::ApiError;
use cohort_wire::hub::LABEL_BYTES_MAX;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::standing::Standing;

/// Roles that may read the fleet's state.
pub(crate) const READERS: &[Role] = &[Role::Viewer, Role::Operator, Role::Agent, Role::Hub];
/// Roles that may write to the registry; each only the keys that it owns.
pub(crate) const WRITERS: &[Role] = &[Role::Operator, Role::Agent];
/// Roles that may bring a kill register: only the operator's signature in it counts.
pub(crate) const FORWARDERS: &[Role] = &[Role::Operator, Role::Agent, Role::Hub];
/// Roles that may change what the fleet should do.
pub(crate) const OPERATORS: &[Role] = &[Role::Operator];
/// Roles that may put files into the repository.
pub(crate) const PUBLISHERS: &[Role] = &[Role::Publisher, Role::Operator];

/// The author of a request, as far as its certificate and the hub's own files say.
#[derive(Debug, Clone)]
pub(crate) struct Author {
    pub(crate) peer: Peer,
    /// The group that its certificate names.
    pub(crate) group: Option<String>,
    /// An operator removed it after its certificate was issued.
    pub(crate) removed: bool,
}

/// How a server that was removed, or is unknown, comes back.
const JOIN_AGAIN: &str =
    "to let it join again, empty its data_dir, and: cohort token create --name NAME";

impl Author {
    /// Refuses a server that an operator removed: also reading is for the fleet.
    ///
    /// # Errors
    /// 403.
    pub(crate) fn refuse_removed(&self) -> Result<(), ApiError> {
        if self.removed {
            let wrong = format!("{} was removed by an operator", self.peer);
            return Err(ApiError::forbidden(wrong).hint(JOIN_AGAIN));
        }
        Ok(())
    }
}

/// Whether a caller may make this transaction, and whether each value is valid for its key.
/// `attesters`: the servers that stand behind it, besides the caller.
///
/// `now` is the registry's state, and whether it counts as restored: a fenced record must not be
/// replaced by an older one.
///
/// # Errors
/// 403, 400 for a value that is not valid for its key, 409 for a stale one.
pub(crate) fn check_txn(
    author: &Author,
    attesters: &[Author],
    txn: &Txn,
    (now, restored): (&State, bool),
) -> Result<(), ApiError> {
    let peer = &author.peer;
    let group = match peer.role {
        Role::Agent => group_of(author, now)?,
        Role::Viewer | Role::Operator | Role::Publisher | Role::Hub => {
            let refusal = ApiError::forbidden(format!("{peer} may not change the registry"));
            return Err(
                refusal.hint("agents change it, and operators with `cohort app apply -f FILE`")
            );
        }
    };
    let of_group = |attester: &&Author| group_of(attester, now).is_ok_and(|of| of == group);
    let behind = attesters.iter().filter(of_group).map(|attester| server_of(&attester.peer));
    let server = server_of(peer);
    let behind = behind.chain([server.clone()]).collect();
    let standing = Standing { group: &group, author: &server, behind, restored };
    txn.then.iter().try_for_each(|op| check_op(peer, &standing, op, &txn.compare, now))
}

/// Whether an agent may make this change.
fn check_op(
    agent: &Peer,
    standing: &Standing<'_>,
    op: &Op,
    compare: &[Compare],
    now: &State,
) -> Result<(), ApiError> {
    let key = op.key();
    let Some(place) = keys::parse(key) else {
        return Err(ApiError::bad_request(format!("`{key}` is not a key of the registry")));
    };
    let once = compare.contains(&Compare::absent(key));
    let Standing { group, author, .. } = standing;
    let alone = match &place {
        Place::Server { .. } => true,
        // Starting the first incarnation, which one server does.
        Place::Bootstrap { .. } => once && names_no_incarnation(op),
        _ => false,
    };
    if check_agent(author, group, place.clone(), op, once, now)? {
        return if alone { Ok(()) } else { standing.check(&place, op, now) };
    }
    Err(ApiError::forbidden(format!("{agent} may not write `{key}`"))
        .hint("agents write records of their own group"))
}

/// Whether an agent may write to this key; rejects a record that is not valid for it. `once`: only
/// if there is none yet.
fn check_agent(
    server: &ServerId,
    group: &GroupId,
    place: Place,
    op: &Op,
    once: bool,
    now: &State,
) -> Result<bool, ApiError> {
    match place {
        Place::Server { server: of } if of == *server => {
            let record: ServerRecord = required(op)?;
            if record.server != *server || record.group != *group {
                let wrong = format!("server {server} may not move itself out of group {group}");
                return Err(ApiError::forbidden(wrong).hint("join again with a new token"));
            }
            entry::address(&record.address)?;
            entry::labels(&record.labels)?;
            let mut rack = record.rack.iter();
            rack.try_for_each(|rack| entry::word("rack", rack, LABEL_BYTES_MAX))?;
        }
        Place::GroupInfo { group: of } if of == *group => {
            same(required::<GroupInfo>(op)?.group == *group, op)?;
        }
        Place::Bootstrap { group: of } if of == *group => {
            let record: BootstrapRecord = required(op)?;
            same(record.group == *group, op)?;
            // An agent starts the first incarnation; the next one is an operator's decision. One
            // that exists already may be recorded again, in the place of nothing or an older one.
            let newer = |named: Incarnation| match now.get(op.key()) {
                Some(pair) => decode(pair)
                    .is_ok_and(|there| Bootstrap::of(there, pair.mod_revision).incarnation < named),
                None => true,
            };
            if !record.incarnation.map_or(once, newer) {
                let wrong = format!("an agent may only bootstrap group {group}, once");
                return Err(ApiError::forbidden(wrong).hint(format!(
                    "to start a new incarnation: cohort group recover {group} --first-server \
                     {server} --majority-is-lost --reason TEXT"
                )));
            }
        }
        Place::Members { group: of } if of == *group => {
            let record: MembersRecord = required(op)?;
            same(record.group == *group, op)?;
            record.members.iter().try_for_each(|member| entry::address(&member.address))?;
            not_late(&record, op, now)?;
        }
        Place::GroupRecord { group: of, app } if of == *group => {
            if let Some(record) = optional::<GroupRecord>(op)? {
                same(record.group == *group && record.app == app, op)?;
                not_late(&record, op, now)?;
            }
        }
        Place::Verdict { group: of, .. } if of == *group => {
            if let Some(record) = optional::<VerdictRecord>(op)? {
                not_late(&record, op, now)?;
            }
        }
        Place::Server { .. }
        | Place::GroupInfo { .. }
        | Place::Bootstrap { .. }
        | Place::Members { .. }
        | Place::GroupRecord { .. }
        | Place::Verdict { .. }
        | Place::Policy { .. }
        | Place::Removed { .. }
        | Place::Kill { .. } => return Ok(false),
    }
    Ok(true)
}

/// Whether it is a bootstrap whose incarnation the registry issues.
fn names_no_incarnation(op: &Op) -> bool {
    required::<BootstrapRecord>(op).is_ok_and(|record| record.incarnation.is_none())
}

/// The highest incarnation in a transaction; 0 if none is named.
#[must_use]
pub(crate) fn highest_incarnation(txn: &Txn) -> u64 {
    /// What all records that name an incarnation have in common.
    #[derive(Deserialize)]
    struct Named {
        incarnation: Option<Incarnation>,
    }
    let of = |op: &Op| match op {
        Op::Put { value, .. } => serde_json::from_str::<Named>(value).ok()?.incarnation,
        Op::Delete { .. } => None,
    };
    txn.then.iter().filter_map(of).map(|incarnation| incarnation.0).max().unwrap_or(0)
}

/// Parses a policy by the rules of this version.
///
/// # Errors
/// 400 that names the offending key.
pub(crate) fn check_policy(policy: &serde_json::Value) -> Result<Policy, ApiError> {
    let hint = "see `cohort app diff -f FILE`, and docs/operating.md for every key";
    let invalid =
        |reason: String| ApiError::bad_request(format!("invalid policy: {reason}")).hint(hint);
    let policy: Policy =
        serde_json::from_value(policy.clone()).map_err(|error| invalid(chain(&error)))?;
    policy.validate().map_err(invalid)?;
    Ok(policy)
}

/// The group of an agent: the one that its certificate names, because the registry may have been
/// lost, or be older than the certificate. For certificates that name none, the agent's record.
///
/// # Errors
/// 403 if an operator removed the server, or the hub never knew it.
pub(crate) fn group_of(author: &Author, now: &State) -> Result<GroupId, ApiError> {
    author.refuse_removed()?;
    let Author { peer, group, .. } = author;
    if let Some(group) = group {
        return GroupId::new(group.as_str()).map_err(|error| ApiError::forbidden(chain(&error)));
    }
    let record = now.get(&keys::server(&server_of(peer)));
    match record.map(decode::<ServerRecord>) {
        Some(Ok(record)) => Ok(record.group),
        Some(Err(_)) | None => {
            let wrong = format!("{peer} is in no group: this hub has no record of it");
            Err(ApiError::forbidden(wrong).hint(JOIN_AGAIN))
        }
    }
}

pub(crate) fn server_of(peer: &Peer) -> ServerId {
    ServerId::new(peer.name.as_str()).expect("peer names and server ids follow the same rule")
}

/// The record being put; deletion is rejected.
fn required<T: DeserializeOwned>(op: &Op) -> Result<T, ApiError> {
    optional(op)?.ok_or_else(|| {
        ApiError::forbidden(format!("registry key `{}` must not be deleted", op.key()))
    })
}

/// The record being put; `None` if the key is deleted.
fn optional<T: DeserializeOwned>(op: &Op) -> Result<Option<T>, ApiError> {
    match op {
        Op::Put { key, value } => {
            decode(&pair(key, value)).map(Some).map_err(|error| bad_record(&error))
        }
        Op::Delete { .. } => Ok(None),
    }
}

/// Rejects a record older than the stored one, even if its writer did not compare.
fn not_late<T: DeserializeOwned + Fenced>(
    record: &T,
    op: &Op,
    now: &State,
) -> Result<(), ApiError> {
    let Some(there) = now.get(op.key()) else { return Ok(()) };
    let there: T = decode(there).map_err(|error| bad_record(&error))?;
    if there.stamp() <= record.stamp() {
        return Ok(());
    }
    let stamp = there.stamp();
    Err(ApiError::conflict(format!(
        "`{}` has a newer record: incarnation {}, term {}, index {}",
        op.key(),
        stamp.incarnation,
        stamp.term,
        stamp.index
    )))
}

fn same(is: bool, op: &Op) -> Result<(), ApiError> {
    if is {
        Ok(())
    } else {
        let key = op.key();
        Err(ApiError::bad_request(format!("the record for `{key}` is about something else")))
    }
}

fn bad_record(error: &RegistryError) -> ApiError {
    ApiError::bad_request(chain(error))
}

fn pair(key: &str, value: &str) -> KeyValue {
    let (key, value) = (key.to_owned(), value.to_owned());
    KeyValue { key, value, mod_revision: 0 }
}
