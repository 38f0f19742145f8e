//! What the leader writes to the registry.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cohort_core::Body;
use cohort_core::errand::Errand;
use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_registry::records::{GroupRecord, Stamp};
use cohort_registry::{FencedPut, Registry, RegistryError, typed};
use cohort_server::answers::COMMAND_MS_MAX;
use cohort_server::member::View;
use cohort_server::records::{Record, Written, due};
use tokio::sync::watch;

use super::read_registry::RETRY;
use super::{tell, until_leading};
use crate::attesting::{Attesting, group_info, members_record, progress_record, verdict_of};
use crate::shared::{MemberHandle, Shared};

/// How often a leader without news looks for records that are due.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Writes what is due while this member leads. `away` counts how often the registry was away: it
/// may have come back as another one.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut handle: MemberHandle,
    mut away: watch::Receiver<u64>,
) {
    let mut written = Written::default();
    let mut written_in = None;
    let mut told = None;
    let mut pauses = RETRY.pauses();
    while let Some(term) = until_leading(&mut handle).await {
        let present = Some((term, *away.borrow_and_update()));
        if written_in != present {
            // Another leader may have written since, or the registry may have lost it.
            (written, written_in) = (Written::default(), present);
        }
        let view = Arc::clone(&handle.view.borrow_and_update());
        let ended = write_all(&shared, &handle, &view, &mut written).await;
        let succeeded = ended.is_ok();
        // Success is told once: the member wakes up for it.
        if told != Some((term, true)) || !succeeded {
            told = Some((term, succeeded));
            if !tell(&handle, Errand::WriteRecords, ended).await {
                return;
            }
        }
        if !succeeded {
            tokio::time::sleep(pauses.next_pause()).await;
            continue;
        }
        pauses.reset();
        tokio::select! {
            _ = tokio::time::timeout(LOOK_EVERY, handle.view.changed()) => {}
            // The reader may have ended already, with the member.
            Ok(()) = away.changed() => {}
        }
    }
}

async fn write_all(
    shared: &Shared,
    handle: &MemberHandle,
    view: &View,
    written: &mut Written,
) -> Result<(), RegistryError> {
    let state = &view.state;
    let stamp = Stamp {
        incarnation: state.incarnation,
        term: view.raft.term.0,
        index: view.raft.applied.0,
    };
    if *written == Written::default() {
        // Not only where it is: the hub may have lost what its own server is.
        typed::tell_server(&*shared.registry, &shared.record).await?;
        let has = |app: &AppId| state.apps.contains_key(app);
        let attesting = Attesting { shared, handle };
        typed::forget_ghosts(&attesting, &state.group, stamp, has).await?;
    }
    let attesting = Attesting { shared, handle };
    let mut refused = None;
    for record in due(state, &view.raft.configuration, written) {
        match write(&attesting, shared.server(), &state.group, stamp, &record).await {
            Ok(()) => {
                if let Some(body) = written.took(record) {
                    acknowledge(shared, handle, body).await;
                }
            }
            Err(error @ RegistryError::Unavailable { .. }) => return Err(error),
            // One record that the hub refuses does not hold up the others.
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    refused.map_or(Ok(()), Err)
}

async fn write(
    registry: &dyn Registry,
    server: &ServerId,
    group: &GroupId,
    stamp: Stamp,
    record: &Record,
) -> Result<(), RegistryError> {
    let group = group.clone();
    match record.clone() {
        Record::Info { labels, platform } => {
            let known = typed::read_group_info(registry, &group).await?;
            let info = group_info(group, labels, platform);
            if known.as_ref() != Some(&info) {
                typed::write_group_info(registry, &info).await?;
            }
        }
        Record::Bootstrap { incarnation } => {
            typed::restore_bootstrap(registry, &group, incarnation, server).await?;
        }
        Record::Members(members) => {
            let record = members_record(group, stamp, members);
            let put = typed::write_members(registry, &record).await?;
            in_order(&record.group, server, put)?;
        }
        Record::Progress(progress) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let since = now.map_or(0, |since| since.as_secs());
            let record = progress_record(group, stamp, since, progress);
            // One that is there says when the phase began.
            let known = typed::read_group_record(registry, &record.group, &record.app).await?;
            if !known.is_some_and(|known| says(&known, &record)) {
                let put = typed::write_group_record(registry, &record).await?;
                in_order(&record.group, server, put)?;
            }
        }
        Record::Gone { app, .. } => typed::forget_app(registry, &group, &app).await?,
        Record::Verdict { app, verdict, .. } => {
            let verdict = verdict_of(group, stamp, app, verdict);
            let known = typed::read_verdict(registry, &verdict).await?;
            if known.is_none_or(|known| known.bad != verdict.record.bad) {
                let put = typed::write_verdict(registry, &verdict).await?;
                in_order(&verdict.group, server, put)?;
            }
        }
    }
    Ok(())
}

/// A leader that a later one has overtaken has written nothing.
fn in_order(group: &GroupId, server: &ServerId, put: FencedPut) -> Result<(), RegistryError> {
    match put {
        FencedPut::Written | FencedPut::Unchanged => Ok(()),
        FencedPut::Late => Err(RegistryError::Conflict {
            reason: format!(
                "a later leader of {group} has written this record; if it has no other leader, its \
                 log went back to an earlier state, and needs a new incarnation: \
                 cohort group recover {group} --first-server {server} --reason REASON \
                 --majority-is-lost"
            ),
        }),
    }
}

/// Whether a stored record is the same one, written earlier.
fn says(known: &GroupRecord, record: &GroupRecord) -> bool {
    let (stamp, since) = (known.stamp, known.since);
    stamp.incarnation == record.stamp.incarnation
        && *known == GroupRecord { stamp, since, ..record.clone() }
}

/// Tells the group that the registry has a record; if that gets lost, the record is written again.
async fn acknowledge(shared: &Shared, handle: &MemberHandle, body: Body) {
    let actor = format!("leader {}", shared.server());
    let command = Shared::command(handle, actor, None, body);
    if let Err(error) = shared.propose_here(handle, command, COMMAND_MS_MAX).await {
        tracing::debug!(%error, "record not acknowledged to the group");
    }
}

#[cfg(test)]
#[path = "write_records_test.rs"]
mod write_records_test;
