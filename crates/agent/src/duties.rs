//! The leader's errands: it reads the registry and the repository, and writes records.
//!
//! The tasks run on every member and rest while another one leads. What is due, and what an answer
//! means, is decided in `cohort-server`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cohort_artifact::TrustedRepository;
use cohort_base::chain::chain;
use cohort_consensus::Term;
use cohort_core::ids::{MemberId, ServerId};
use cohort_server::contacts::{Contact, PASS_ON_EVERY_MS};
use cohort_server::member::Input;
use cohort_wire::agent::{CONTACTS, CONTROL_VERSION, ContactsRequest};
use cohort_wire::http::{Call, Target};
use cohort_wire::kill::SignedKill;
use tokio_util::sync::CancellationToken;

use crate::contacts::monotonic_ms;
use crate::shared::{MemberHandle, Shared};

mod read_registry;
mod read_repository;
mod write_records;

/// How long the leader may take to answer a batch of contacts.
const CONTACTS_DEADLINE: Duration = Duration::from_secs(2);

/// Starts them for one member; they end with `stop`.
pub(crate) fn spawn(
    shared: &Arc<Shared>,
    handle: &MemberHandle,
    repository: Option<&Arc<TrustedRepository>>,
    stop: &CancellationToken,
) {
    let start = |task: futures_util::future::BoxFuture<'static, ()>| {
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    };
    start(Box::pin(read_registry::run(Arc::clone(shared), handle.clone())));
    start(Box::pin(write_records::run(Arc::clone(shared), handle.clone())));
    start(Box::pin(pass_on_contacts(Arc::clone(shared), handle.clone())));
    start(Box::pin(watch_kill(Arc::clone(shared), handle.clone())));
    if let Some(repository) = repository {
        let repository = Arc::clone(repository);
        start(Box::pin(read_repository::run(Arc::clone(shared), handle.clone(), repository)));
    }
}

/// Waits until this member leads, and returns its term; none when it has ended.
async fn until_leading(handle: &mut MemberHandle) -> Option<Term> {
    handle.view.wait_for(|view| view.leads()).await.ok().map(|view| view.raft.term)
}

/// Waits until this member no longer leads in `term`: led by another, or elected again.
async fn until_deposed(handle: &MemberHandle, term: Term) {
    let mut views = handle.view.clone();
    let _ = views.wait_for(|view| !(view.leads() && view.raft.term == term)).await;
}

/// Whether this member has led without a break since that term began.
fn still_leads(handle: &MemberHandle, term: Term) -> bool {
    let view = handle.view.borrow();
    view.leads() && view.raft.term == term
}

async fn watch_kill(shared: Arc<Shared>, handle: MemberHandle) {
    let mut on = shared.kill.subscribe();
    loop {
        let now = on.borrow_and_update().clone();
        shared.metrics.kill_switch.set(now.is_some().into());
        if !handle.inputs.put(Input::Kill(now)).await || on.changed().await.is_err() {
            return;
        }
    }
}

async fn pass_on_contacts(shared: Arc<Shared>, handle: MemberHandle) {
    loop {
        tokio::time::sleep(Duration::from_millis(PASS_ON_EVERY_MS)).await;
        let leader = {
            let view = handle.view.borrow();
            if view.raft.is_leader() { None } else { view.raft.leader }
        };
        let Some((server, address)) = leader.and_then(|id| shared.book.of(MemberId(id.0))) else {
            continue;
        };
        let target = shared.target(&server, &address);
        let now_ms = monotonic_ms();
        for batch in shared.contacts.all().batches(now_ms) {
            pass_on(&shared, &target, now_ms, batch).await;
        }
    }
}

async fn pass_on(
    shared: &Shared,
    leader: &Target,
    now_ms: u64,
    batch: BTreeMap<ServerId, Contact>,
) {
    let age = |(server, contact): (&ServerId, &Contact)| {
        (server.clone(), now_ms.saturating_sub(contact.at_ms))
    };
    let request = ContactsRequest {
        version: CONTROL_VERSION,
        group: shared.group.clone(),
        age_ms: batch.iter().map(age).collect(),
        doing: batch.into_iter().map(|(server, contact)| (server, contact.doing)).collect(),
        kill: shared.kill.signed(),
    };
    let call = Call::post(CONTACTS, &request).deadline(CONTACTS_DEADLINE);
    match shared.client.call_json::<Vec<SignedKill>>(leader, call).await {
        Ok(registers) => {
            if let Err(error) = shared.kill.offer(registers).await {
                let error = chain(&error);
                tracing::warn!(error, "kill register of the leader refused");
            }
        }
        Err(error) => tracing::debug!(error = chain(&error), "contacts not passed on"),
    }
}
