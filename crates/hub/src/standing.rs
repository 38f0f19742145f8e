//! Who stands behind a change of a group's records: one server's certificate does not speak for its
//! group.
//!
//! | record | needs |
//! | --- | --- |
//! | the members | most of the voters that it names |
//! | any other | most of the voters that the hub knows, if any |
//!
//! And each needs another server than its author, unless that is the only voter, or founds the
//! group.

use std::collections::BTreeSet;

use cohort_base::chain;
use cohort_core::ids::{GroupId, ServerId};
use cohort_identity::Certified;
use cohort_registry::attest::{ATTESTATIONS_MAX, Attestation, is_bound};
use cohort_registry::keys::{self, Place};
use cohort_registry::records::{Bootstrap, BootstrapRecord, MembersRecord, ServerRecord, decode};
use cohort_registry::state::State;
use cohort_registry::{KeyValue, Op, Txn};
use cohort_wire::http::{ApiError, Caller, Certificate};

use crate::app::{App, now};
use crate::auth::{Author, group_of};

#[cfg(test)]
#[path = "standing_test.rs"]
mod standing_test;

/// The servers whose attestations of this transaction verify. Others are ignored: a member must not
/// be able to spoil what the rest attest.
///
/// # Errors
/// 400 if there are too many, 403 if the author belongs to no group.
pub(crate) fn attesters(app: &App, author: &Author, txn: &Txn) -> Result<Vec<Author>, ApiError> {
    if txn.attested.is_empty() || !is_bound(&txn.compare, &txn.then) {
        return Ok(Vec::new());
    }
    if txn.attested.len() > ATTESTATIONS_MAX {
        let wrong = format!("more than {ATTESTATIONS_MAX} attestations");
        return Err(ApiError::bad_request(wrong));
    }
    let group = app.registry.read(|state| group_of(author, state))?;
    let identity = app.identity.current();
    let signed = (&txn.compare[..], &txn.then[..]);
    let verified = |attestation: &Attestation| {
        let Attestation(statement) = attestation;
        if let Err(error) = attestation.verify(identity.roots(), &group, signed, now()) {
            tracing::debug!(error = chain(&error), by = %author.peer, "not an attestation");
            return None;
        }
        let certified = statement.certified()?;
        if app.identity.revocations().revokes(&certified) {
            return None;
        }
        let Certified { peer, group, not_before, .. } = certified;
        Some(app.author(Caller(peer), Certificate { group, not_before }))
    };
    Ok(txn.attested.iter().filter_map(verified).collect())
}

/// The author of a change, and the servers of its group that stand behind it.
#[derive(Debug)]
pub(crate) struct Standing<'a> {
    pub(crate) group: &'a GroupId,
    pub(crate) author: &'a ServerId,
    /// With the author.
    pub(crate) behind: BTreeSet<ServerId>,
    /// The registry counts as restored: it may not know the group's other servers yet.
    pub(crate) restored: bool,
}

impl Standing<'_> {
    /// Whether enough servers stand behind a change of their group's records.
    ///
    /// # Errors
    /// 403 if not, 400 for a malformed record of members.
    pub(crate) fn check(&self, place: &Place, op: &Op, now: &State) -> Result<(), ApiError> {
        let known = match now.get(&keys::members(self.group)) {
            Some(pair) => self.voters(pair, now)?,
            None => BTreeSet::new(),
        };
        let named = match (place, op) {
            (Place::Members { .. }, Op::Put { key, value }) => {
                let (key, value) = (key.clone(), value.clone());
                let record: MembersRecord = decode(&KeyValue { key, value, mod_revision: 0 })
                    .map_err(|error| ApiError::bad_request(chain(&error)))?;
                if !record.members.iter().any(|member| member.voter) {
                    return Err(ApiError::bad_request("a group has voters"));
                }
                voters_of(&record)
            }
            _ => known.clone(),
        };
        self.most_of(&named)?;
        let concerned = match known.is_empty() {
            true if self.founds(now) => named,
            true if self.restored && self.behind.len() < 2 => {
                let why = "the registry was restored, and may not know the group's other servers";
                let confirm = "once all groups are back: cohort hub --config hub.toml \
                               --confirm-restored";
                return Err(self.refused(why).hint(confirm));
            }
            true => self.servers(now),
            false => &known | &named,
        };
        self.another_of(&concerned)
    }

    fn most_of(&self, voters: &BTreeSet<ServerId>) -> Result<(), ApiError> {
        let (behind, most) = (voters.intersection(&self.behind).count(), voters.len() / 2 + 1);
        if voters.is_empty() || behind >= most {
            return Ok(());
        }
        let voters = voters.len();
        Err(self.refused(&format!("{behind} of {voters} voters stand behind it, {most} must")))
    }

    fn another_of(&self, servers: &BTreeSet<ServerId>) -> Result<(), ApiError> {
        let mut others = servers.iter().filter(|server| *server != self.author).peekable();
        if others.peek().is_none() || others.any(|server| self.behind.contains(server)) {
            return Ok(());
        }
        Err(self.refused("no other server stands behind it"))
    }

    fn refused(&self, why: &str) -> ApiError {
        let Standing { group, author, .. } = self;
        ApiError::forbidden(format!("{author} may not write for {group} alone: {why}"))
            .hint(format!("cohort group show {group}"))
    }

    /// Whether the author starts the present incarnation, which nobody else can know of yet.
    fn founds(&self, now: &State) -> bool {
        let Some(pair) = now.get(&keys::bootstrap(self.group)) else { return false };
        let Ok(record) = decode::<BootstrapRecord>(pair) else { return false };
        let bootstrap = Bootstrap::of(record, pair.mod_revision);
        !bootstrap.restored && bootstrap.first_server == *self.author
    }

    /// The voters that the hub knows, without those that have left the group since.
    fn voters(&self, pair: &KeyValue, now: &State) -> Result<BTreeSet<ServerId>, ApiError> {
        let record: MembersRecord =
            decode(pair).map_err(|error| ApiError::conflict(chain(&error)))?;
        let here = |server: &ServerId| {
            let pair = now.get(&keys::server(server));
            pair.is_some_and(|pair| self.has(pair))
        };
        Ok(voters_of(&record).into_iter().filter(here).collect())
    }

    /// All servers of the group that the hub knows.
    fn servers(&self, now: &State) -> BTreeSet<ServerId> {
        let all = now.under(keys::SERVERS).filter(|pair| self.has(pair));
        let of = |pair: &KeyValue| decode(pair).map(|record: ServerRecord| record.server);
        all.filter_map(|pair| of(pair).ok()).collect()
    }

    fn has(&self, pair: &KeyValue) -> bool {
        decode::<ServerRecord>(pair).is_ok_and(|record| record.group == *self.group)
    }
}

fn voters_of(record: &MembersRecord) -> BTreeSet<ServerId> {
    let voters = record.members.iter().filter(|member| member.voter);
    voters.map(|member| member.server.clone()).collect()
}
