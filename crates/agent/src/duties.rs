//! The leader's errands: it reads the registry and the repository, and writes records.
//!
//! The tasks run on every member and rest while another one leads. What is due, and what an answer
//! means, is decided in `cohort-server`.

use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain::chain;
use cohort_consensus::Term;
use cohort_core::ability::Ability;
use cohort_core::errand::{Errand, FAULT_TEXT_BYTES_MAX, HubFault};
use cohort_core::ids::{MemberId, ServerId};
use cohort_registry::RegistryError;
use cohort_server::contacts::{Contacts, PASS_ON_EVERY_MS};
use cohort_server::member::Input;
use cohort_wire::agent::{CONTACTS, ContactsAnswer, ContactsRequest, ToGroup};
use cohort_wire::http::Call;
use tokio::sync::watch;

use self::reach::Reach;
use crate::complaint::Complaint;
use crate::contacts::monotonic_ms;
use crate::revoking::{exchange_with, keep_as_the_hub};
use crate::shared::{MemberHandle, Shared};

mod reach;
mod read_registry;
mod read_repository;
mod write_records;

/// How long the leader may take to answer a batch of contacts.
const CONTACTS_DEADLINE: Duration = Duration::from_secs(2);

/// Batches that the leader may miss before that is worth a line in the log: those of some five
/// seconds, an election and its aftermath.
const UNHEARD_MAX: usize = 10;

/// Starts them for one member.
pub(crate) fn spawn(shared: &Arc<Shared>, handle: &MemberHandle) {
    let (tasks, shared) = (&shared.tasks, || Arc::clone(shared));
    let (away, times_away) = watch::channel(0);
    tasks.spawn("reader of the registry", read_registry::run(shared(), handle.clone(), away));
    tasks.spawn("writer of records", write_records::run(shared(), handle.clone(), times_away));
    tasks.spawn("contacts", pass_on_contacts(shared(), handle.clone()));
    tasks.spawn("kill switch", watch_kill(shared(), handle.clone()));
    tasks.spawn("revocations", keep_as_the_hub(shared(), handle.clone()));
    if let Some(repository) = shared().repository.clone() {
        let read = read_repository::run(shared(), handle.clone(), repository);
        tasks.spawn("reader of the repository", read);
    }
}

/// Waits until this member leads, and returns its term; none when it has ended.
async fn until_leading(handle: &mut MemberHandle) -> Option<Term> {
    // A member that has ended would show its last view, in which it leads, for ever.
    handle.view.has_changed().ok()?;
    handle.view.wait_for(|view| view.leads()).await.ok().map(|view| view.raft.term)
}

/// Waits until this member no longer leads in `term`: led by another, or elected again.
async fn until_deposed(handle: &MemberHandle, term: Term) {
    let mut views = handle.view.clone();
    let _ = views.wait_for(|view| !(view.leads() && view.raft.term == term)).await;
}

/// Whether this member has led without a break since that term began.
fn still_leads(handle: &MemberHandle, term: Term) -> bool {
    let view = handle.view();
    view.leads() && view.raft.term == term
}

/// Tells the member how an errand at the hub ended. Returns whether the member still runs.
async fn tell(handle: &MemberHandle, errand: Errand, ended: Result<(), RegistryError>) -> bool {
    let ended = ended.map_err(|error| {
        tracing::debug!(?errand, error = chain(&error), "an errand at the hub failed");
        fault(&error)
    });
    // A member that has ended, or a full queue: the next attempt tells it.
    handle.inputs.put(Input::Errand { errand, ended }).await
}

fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(FAULT_TEXT_BYTES_MAX));
    text
}

/// What a failed errand is, as far as people can do something about it.
fn fault(error: &RegistryError) -> HubFault {
    let text = bounded(chain(error));
    match error {
        RegistryError::Unavailable { .. }
        | RegistryError::Contended { .. }
        | RegistryError::Compacted { .. } => HubFault::Unreachable { text },
        RegistryError::Corrupt { .. } => HubFault::Damaged { text },
        RegistryError::Invalid { .. }
        | RegistryError::WentBack { .. }
        | RegistryError::RestoredUnconfirmed
        | RegistryError::Full { .. }
        | RegistryError::Broken { .. }
        | RegistryError::Conflict { .. }
        | RegistryError::Forbidden { .. }
        | RegistryError::Storage { .. } => HubFault::Refused { text },
    }
}

async fn watch_kill(shared: Arc<Shared>, handle: MemberHandle) {
    let mut on = shared.kill.subscribe();
    loop {
        let now = on.borrow_and_update().clone();
        if !handle.inputs.put(Input::Kill(now)).await || on.changed().await.is_err() {
            return;
        }
    }
}

async fn pass_on_contacts(shared: Arc<Shared>, handle: MemberHandle) {
    let mut reach = Reach::default();
    let mut unheard = Complaint::default();
    loop {
        tokio::time::sleep(Duration::from_millis(PASS_ON_EVERY_MS)).await;
        if handle.view.has_changed().is_err() {
            return;
        }
        let leader = {
            let view = handle.view();
            if view.raft.is_leader() { None } else { view.raft.leader }
        };
        let Some((server, address)) = leader.and_then(|id| shared.whereabouts(MemberId(id.0)))
        else {
            continue;
        };
        let leader = (&server, address.as_str());
        let mut ability = reach.found().await;
        for batch in shared.contacts.all().batches(monotonic_ms()) {
            if pass_on(&shared, leader, &batch, ability.take(), &mut unheard).await {
                reach.look(&shared);
            }
        }
    }
}

/// Returns whether the leader asks what this server reaches.
async fn pass_on(
    shared: &Shared,
    (server, address): (&ServerId, &str),
    batch: &Contacts,
    ability: Option<Ability>,
    unheard: &mut Complaint,
) -> bool {
    let (age_ms, doing) = (batch.ages_ms(monotonic_ms()), batch.doing());
    let machines = shared.contacts.machines(age_ms.keys());
    let request = ContactsRequest { age_ms, doing, machines, ability };
    let message = ToGroup::new(&shared.group, request);
    let message = ToGroup { kill: shared.kill.signed(), ..message };
    let call = Call::post(CONTACTS, &message).deadline(CONTACTS_DEADLINE);
    match shared.call_member::<ContactsAnswer>(server, address, call).await {
        Ok(answer) => {
            shared.latch(answer.kill).await;
            exchange_with(shared, server, address, answer.revocations).await;
            shared.contacts.clocks_are(answer.clocks_ahead_ms);
            unheard.ended("the leader hears again of the servers that ask this member");
            answer.asks_ability
        }
        Err(error) => {
            // Without them, the leader takes those servers for silent.
            unheard.after(UNHEARD_MAX, "the leader does not hear of this member's servers", &error);
            false
        }
    }
}

#[cfg(test)]
#[path = "duties_test.rs"]
mod duties_test;
