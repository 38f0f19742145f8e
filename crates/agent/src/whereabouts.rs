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
use cohort_registry::records::{MemberRecord, ServerRecord};
use cohort_registry::typed::Told;
use cohort_registry::{RegistryError, typed};
use cohort_server::asking::ANSWER_MS_MAX;

use crate::join::advertised;
use crate::shared::Shared;

/// Pauses while the hub does not take this server's address.
const TELL: Schedule = Schedule::new(Duration::from_millis(500), Duration::from_secs(30));
/// How long the hub may take for one answer.
const DEADLINE: Duration = Duration::from_millis(ANSWER_MS_MAX);

/// Tells the hub this server's address, if it knows another one.
pub(crate) async fn tell(shared: Arc<Shared>) {
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
/// usually newer than those that the group has recorded; if not, nobody answers there, and the
/// group's count again.
pub(crate) async fn ask(shared: &Shared) -> Result<(), RegistryError> {
    let registry = &*shared.registry;
    // The others ask for it too.
    let told = typed::move_server(registry, shared.server(), &advertised(&shared.config)).await;
    if let Err(error) = told {
        tracing::debug!(error = chain(&error), "the hub did not take the address");
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
        if let Some(ServerRecord { address, .. }) = record
            && shared.learn_move(&known, &address)
        {
            let (server, before) = (&known.server, &known.address);
            tracing::info!(%server, address, before, "the hub knows another address of a member");
        }
    }
    Ok(())
}
