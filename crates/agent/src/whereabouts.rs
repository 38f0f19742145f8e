//! Where servers are: what this one tells the hub, and what the hub knows of the group's members.
//!
//! A group learns a new address by an entry of its log, for which it needs a majority. Voters that
//! all come back with other addresses therefore find each other through the hub, which each of them
//! tells where it is, with its certificate.

use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain;
use cohort_base::retry::Schedule;
use cohort_core::orders::MemberAddress;
use cohort_registry::records::MemberRecord;
use cohort_registry::{RegistryError, typed};
use cohort_server::asking::ANSWER_MS_MAX;

use crate::join::advertised;
use crate::shared::Shared;

/// Pauses while the hub does not take this server's address.
const TELL: Schedule = Schedule::new(Duration::from_millis(500), Duration::from_secs(30));
/// How long the hub may take for one answer.
const DEADLINE: Duration = Duration::from_millis(ANSWER_MS_MAX);

/// Tells the hub this server's address, if it knows another one, once the group has accepted this
/// agent: a copy of another machine must not divert what is meant for that one.
pub(crate) async fn tell(shared: Arc<Shared>) {
    let mut orders = shared.orders.subscribe();
    if orders.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut pauses = TELL.pauses();
    let address = advertised(&shared.config);
    loop {
        match typed::move_server(&*shared.registry, shared.server(), &address).await {
            Ok(moved) => {
                if moved {
                    tracing::info!(address, "told the hub the new address of this server");
                }
                return;
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), "the hub did not take the address");
            }
        }
        tokio::time::sleep(pauses.next_pause()).await;
    }
}

/// Learns from the hub where the group's members are. The addresses of the servers themselves are
/// newer than those that the group has recorded.
pub(crate) async fn ask(shared: &Shared) -> Result<(), RegistryError> {
    let registry = &*shared.registry;
    // The others ask for it too. Not while the group refuses this agent as a copy.
    if shared.elsewhere.lock().is_none() {
        let address = advertised(&shared.config);
        if let Err(error) = typed::move_server(registry, shared.server(), &address).await {
            tracing::warn!(error = chain(&error), "the hub did not take this server's address");
        }
    }
    let timed_out = |_| RegistryError::Unavailable { reason: "no answer".to_owned() };
    let asked = typed::read_members(registry, &shared.group);
    let record = tokio::time::timeout(DEADLINE, asked).await.map_err(timed_out)??;
    let address =
        |MemberRecord { server, address, member, .. }| MemberAddress { server, address, member };
    let written: Vec<_> = record.into_iter().flat_map(|record| record.members).collect();
    shared.learn_members(&written.into_iter().map(address).collect::<Vec<_>>());
    for known in shared.members() {
        if known.server == *shared.server() {
            continue;
        }
        let asked = typed::read_server(registry, &known.server);
        let record = tokio::time::timeout(DEADLINE, asked).await.map_err(timed_out)??;
        if let Some(record) = record.filter(|record| record.address != known.address) {
            tracing::info!(
                server = %known.server,
                address = record.address,
                before = known.address,
                "the hub knows a newer address of a member"
            );
            shared.learn_move(&known, record.address);
        }
    }
    Ok(())
}
