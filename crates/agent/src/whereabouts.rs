//! Where servers are: what this one tells the hub, and what the hub knows of the group's members.
//!
//! A group learns a new address by an entry of its log, for which it needs a majority. Voters that
//! all come back with other addresses therefore find each other through the hub, which each of them
//! tells where it is, with its certificate.

use std::sync::Arc;
use std::time::Duration;

use cohort_base::retry::Schedule;
use cohort_core::orders::MemberAddress;
use cohort_registry::records::{MemberRecord, ServerRecord};
use cohort_registry::typed::Told;
use cohort_registry::{RegistryError, typed};
use cohort_server::asking::ANSWER_MS_MAX;

use crate::complaint::Complaint;
use crate::shared::Shared;

/// Pauses while the hub does not take this server's record.
const TELL: Schedule = Schedule::new(Duration::from_millis(500), Duration::from_secs(30));
/// How often a server checks that the hub still has its record. 5 min: ten thousand servers make 33
/// reads a second, and a hub that lost its registry knows all servers again soon.
const CHECK_EVERY: Duration = Duration::from_secs(300);
/// How long the hub may take for one answer.
const DEADLINE: Duration = Duration::from_millis(ANSWER_MS_MAX);

/// Tells the hub where this server is, and again if the hub has forgotten it, once the group has
/// accepted this agent: a copy of another machine must not divert what is meant for that one.
pub(crate) async fn tell(shared: Arc<Shared>) {
    let mut orders = shared.orders.subscribe();
    if orders.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut pauses = TELL.pauses();
    let mut refused = Complaint::default();
    loop {
        // Not while the group does not take this agent for its server's.
        let told = if shared.is_refused() { Ok(()) } else { tell_once(&shared).await };
        let pause = match told {
            Ok(()) => {
                refused.ended("the hub takes this server's record again");
                pauses.reset();
                CHECK_EVERY
            }
            Err(error) => {
                // A hub that is away is no news to an agent.
                if !matches!(error, RegistryError::Unavailable { .. }) {
                    refused.of("the hub does not take this server's record", &error);
                }
                pauses.next_pause()
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn tell_once(shared: &Shared) -> Result<(), RegistryError> {
    let (registry, own) = (&*shared.registry, &shared.record);
    match typed::tell_server(registry, own).await? {
        Told::Known => {}
        Told::Moved => {
            tracing::info!(address = own.address, "told the hub the new address of this server");
        }
        Told::Restored => tracing::warn!(
            group = %own.group,
            "the hub had no record of this server: its registry was lost, or restored from a backup"
        ),
    }
    Ok(())
}

/// Learns from the hub where the group's members are, for a server that hears from none. Failures
/// are logged here; the first one is not worth a line, since members restart and elect leaders.
pub(crate) async fn find_members(shared: &Shared, tell: bool) {
    let found = ask(shared, tell).await;
    let mut complaint = shared.complaints.no_members.lock();
    match found {
        Ok(()) => complaint.ended("the hub answers again"),
        Err(error) => {
            complaint.after(1, "cannot find the group's members through the hub", &error);
        }
    }
}

/// Learns from the hub where the group's members are. The addresses of the servers themselves are
/// usually newer than those that the group has recorded; if not, nobody answers there, and the
/// group's count again. With `tell`, the hub first learns where this server is: the others ask too.
async fn ask(shared: &Shared, tell: bool) -> Result<(), RegistryError> {
    let registry = &*shared.registry;
    let told = if tell { tell_once(shared).await } else { Ok(()) };
    let timed_out = |_| RegistryError::Unavailable { reason: "no answer".to_owned() };
    let asked = typed::read_members(registry, &shared.group);
    let record = tokio::time::timeout(DEADLINE, asked).await.map_err(timed_out)??;
    let address =
        |MemberRecord { server, address, member, .. }| MemberAddress { server, address, member };
    let written: Vec<_> = record.into_iter().flat_map(|record| record.members).collect();
    {
        let mut book = shared.book.lock();
        let voters = written.iter().filter(|member| member.voter);
        book.voters = voters.map(|member| member.server.clone()).collect();
        book.learn(&written.into_iter().map(address).collect::<Vec<_>>());
    }
    if let Some(handle) = shared.handle() {
        shared.book.lock().learn_more(&handle.view().state.member_addresses());
    }
    for known in shared.members() {
        if known.server == *shared.server() {
            continue;
        }
        let asked = typed::read_server(registry, &known.server);
        let record = tokio::time::timeout(DEADLINE, asked).await.map_err(timed_out)??;
        if let Some(ServerRecord { address, .. }) = record
            && shared.book.lock().learn_move(&known, &address)
        {
            let (server, before) = (&known.server, &known.address);
            tracing::info!(%server, address, before, "the hub knows another address of a member");
        }
    }
    told
}
