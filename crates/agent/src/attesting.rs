//! What the members of a group attest of its records at the hub, and how the leader asks for it.
//!
//! A leader writes for its whole group, and its certificate speaks for one server. So every member
//! compares a change with its own state before it signs, and the hub counts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use cohort_base::chain;
use cohort_core::State;
use cohort_core::ids::{AppId, GroupId, Platform, ServerId};
use cohort_core::phase::Phase;
use cohort_core::state::Verdict;
use cohort_identity::UnixTime;
use cohort_registry::api::TXN_OPS_MAX;
use cohort_registry::attest::{ATTEST, AttestRequest, Attestation, is_bound};
use cohort_registry::keys::{self, Place};
use cohort_registry::records::{
    BootstrapRecord, GroupInfo, GroupRecord, GroupVerdict, MemberRecord, MembersRecord, SCHEMA,
    Stamp, VerdictRecord, decode,
};
use cohort_registry::{
    Compare, KeyValue, Op, RangeAnswer, RangeRequest, Registry, RegistryError, Txn, TxnAnswer,
    WatchAnswer, WatchRequest,
};
use cohort_server::records::{MemberPlace, Progress, Record, Written, due};
use cohort_wire::agent::ToGroup;
use cohort_wire::http::{ApiError, Call, CallError};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use crate::member::View;
use crate::shared::{MemberHandle, Shared};

/// How long a member waits until it has applied what the leader had.
const CATCH_UP: Duration = Duration::from_secs(2);
/// How long the leader waits for a member.
const DEADLINE: Duration = Duration::from_secs(3);

pub(crate) fn group_info(
    group: GroupId,
    labels: BTreeMap<String, String>,
    platform: Platform,
) -> GroupInfo {
    GroupInfo { schema: SCHEMA, group, labels, platform }
}

pub(crate) fn members_record(
    group: GroupId,
    stamp: Stamp,
    members: Vec<MemberPlace>,
) -> MembersRecord {
    let member = |MemberPlace { at, voter }| MemberRecord {
        voter,
        server: at.server,
        address: at.address,
        member: at.member,
    };
    MembersRecord {
        schema: SCHEMA,
        group,
        stamp,
        members: members.into_iter().map(member).collect(),
    }
}

/// `since`: when the writer wrote it, in Unix seconds.
pub(crate) fn progress_record(
    group: GroupId,
    stamp: Stamp,
    since: u64,
    progress: Progress,
) -> GroupRecord {
    GroupRecord {
        schema: SCHEMA,
        group,
        app: progress.app,
        stamp,
        sequence: progress.sequence,
        state: progress.phase,
        running: progress.running,
        target: progress.target,
        held_reason: progress.held_reason,
        since,
    }
}

pub(crate) fn verdict_of(
    group: GroupId,
    stamp: Stamp,
    app: AppId,
    verdict: Verdict,
) -> GroupVerdict {
    let Verdict { version, platform, bad } = verdict;
    let record = VerdictRecord { schema: SCHEMA, bad, stamp };
    GroupVerdict { app, version, platform, group, record }
}

/// Attests changes that the member on `leader` wants to make, if they follow from the state here.
///
/// # Errors
/// The answer for that member: they do not, or this member is behind.
pub(crate) async fn attest(
    shared: &Shared,
    leader: &ServerId,
    handle: &MemberHandle,
    request: &AttestRequest,
) -> Result<Attestation, ApiError> {
    let AttestRequest { compare, changes, applied } = request;
    if changes.len() > TXN_OPS_MAX {
        let error = format!("more than {TXN_OPS_MAX} changes at once");
        return Err(ApiError::bad_request(error));
    }
    if !is_bound(compare, changes) {
        return Err(ApiError::bad_request("a change is compared with nothing"));
    }
    let mut views = handle.view.clone();
    let caught_up = views.wait_for(|view| view.raft.applied.0 >= *applied);
    let Ok(Ok(view)) =
        tokio::time::timeout(CATCH_UP, caught_up).await.map(|it| it.map(|it| it.clone()))
    else {
        let error = format!("this member has not applied {applied} yet");
        return Err(ApiError::unavailable("behind", error));
    };
    for change in changes {
        if !follows(&view, leader, change) {
            let error = format!("`{}` does not follow from the log here", change.key());
            return Err(ApiError::conflict(error));
        }
    }
    Attestation::sign(&shared.identity.current(), &shared.group, compare, changes)
        .map_err(|error| ApiError::internal(chain(&error)))
}

/// Whether a change of the group's records follows from what this member has applied.
fn follows(view: &View, leader: &ServerId, change: &Op) -> bool {
    let state = &view.state;
    let group = &state.group;
    let place = match keys::parse(change.key()) {
        Some(
            place @ (Place::GroupInfo { .. }
            | Place::Bootstrap { .. }
            | Place::Members { .. }
            | Place::GroupRecord { .. }
            | Place::Verdict { .. }),
        ) => place,
        Some(
            Place::Server { .. }
            | Place::Policy { .. }
            | Place::Removed { .. }
            | Place::Kill { .. },
        )
        | None => return false,
    };
    let value = match change {
        Op::Put { value, .. } => value.clone(),
        Op::Delete { .. } => {
            return match place {
                Place::GroupRecord { group: of, app } | Place::Verdict { group: of, app, .. } => {
                    of == *group && is_gone(state, &app)
                }
                _ => false,
            };
        }
    };
    let pair = KeyValue { key: change.key().to_owned(), value, mod_revision: 0 };
    let records = due(state, &view.raft.configuration, &Written::default());
    records.into_iter().any(|record| is(&pair, &place, view, leader, record))
}

/// Whether the pair is this record of the group's, by whatever clock.
fn is(pair: &KeyValue, place: &Place, view: &View, leader: &ServerId, record: Record) -> bool {
    let of = view.state.group.clone();
    // No leader can have decided anything later than what it has applied.
    let possible = |stamp: Stamp| {
        stamp.incarnation == view.state.incarnation
            && stamp.term <= view.raft.term.0
            && stamp.index <= view.raft.applied.0
    };
    match (place, record) {
        (Place::GroupInfo { group }, Record::Info { labels, platform }) => {
            *group == of
                && decode(pair).is_ok_and(|it: GroupInfo| it == group_info(of, labels, platform))
        }
        (Place::Bootstrap { group }, Record::Bootstrap { incarnation }) => {
            let own = BootstrapRecord::restored(of, incarnation, leader.clone());
            *group == own.group && decode(pair).is_ok_and(|it: BootstrapRecord| it == own)
        }
        (Place::Members { group }, Record::Members(members)) => {
            *group == of
                && decode(pair).is_ok_and(|it: MembersRecord| {
                    possible(it.stamp) && it == members_record(of, it.stamp, members)
                })
        }
        (Place::GroupRecord { group, app }, Record::Progress(progress)) => {
            (group, app) == (&of, &progress.app)
                && decode(pair).is_ok_and(|it: GroupRecord| {
                    possible(it.stamp) && it == progress_record(of, it.stamp, it.since, progress)
                })
        }
        (
            Place::Verdict { app, version, platform, group },
            Record::Verdict { app: about, verdict, .. },
        ) => {
            (group, app, version, platform) == (&of, &about, &verdict.version, &verdict.platform)
                && decode(pair).is_ok_and(|it: VerdictRecord| {
                    possible(it.stamp) && it == verdict_of(of, it.stamp, about, verdict).record
                })
        }
        _ => false,
    }
}

/// Whether nothing of an app is left in the group.
fn is_gone(state: &State, app: &AppId) -> bool {
    let phase = state.apps.get(app).map(|app| &app.phase);
    phase.is_none_or(|phase| matches!(phase, Phase::Removing { stopped: true, .. }))
}

/// The registry for what the leader writes: the other members attest it first.
pub(crate) struct Attesting<'a> {
    pub shared: &'a Shared,
    pub handle: &'a MemberHandle,
}

impl Attesting<'_> {
    /// The attestations of a majority of the voters, and of one other member where there is one; or
    /// as many as there are.
    async fn attested(&self, compare: &[Compare], changes: &[Op]) -> Vec<Attestation> {
        let view = self.handle.view();
        let request = AttestRequest {
            compare: compare.to_vec(),
            changes: changes.to_vec(),
            applied: view.raft.applied.0,
        };
        let identity = self.shared.identity.current();
        // One that does not verify would only keep this from waiting for the others.
        let verified = |attestation: &Attestation| {
            let (roots, group) = (identity.roots(), &self.shared.group);
            attestation.verify(roots, group, (compare, changes), UnixTime::now())
        };
        let message = ToGroup::new(&self.shared.group, request);
        let own = self.shared.server();
        let voters = view.voters();
        let others = view.state.member_addresses().into_iter().filter(|it| it.server != *own);
        let mut asked: FuturesUnordered<_> = others
            .map(|member| {
                let call = Call::post(ATTEST, &message).deadline(DEADLINE).idempotent();
                async move {
                    let answer: Result<Attestation, CallError> =
                        self.shared.call_member(&member.server, &member.address, call).await;
                    (member.server, answer)
                }
            })
            .collect();
        let mut by = BTreeSet::from([own.clone()]);
        let mut attested = Vec::new();
        while let Some((server, answer)) = asked.next().await {
            let answer = answer.map_err(|error| chain(&error));
            let signed = answer.and_then(|it| match verified(&it) {
                Ok(by) if by == server => Ok(it),
                Ok(by) => Err(format!("it is signed by {by}")),
                Err(error) => Err(error.error),
            });
            match signed {
                Ok(attestation) => {
                    attested.push(attestation);
                    by.insert(server);
                }
                Err(error) => tracing::debug!(%server, error, "a member does not attest a record"),
            }
            if by.len() > 1 && voters.intersection(&by).count() > voters.len() / 2 {
                break;
            }
        }
        attested
    }
}

#[async_trait]
impl Registry for Attesting<'_> {
    async fn range(&self, request: RangeRequest) -> Result<RangeAnswer, RegistryError> {
        self.shared.registry.range(request).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnAnswer, RegistryError> {
        let attested = self.attested(&txn.compare, &txn.then).await;
        self.shared.registry.txn(Txn { attested, ..txn }).await
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchAnswer, RegistryError> {
        self.shared.registry.watch(request).await
    }
}

#[cfg(test)]
#[path = "attesting_test.rs"]
mod attesting_test;
