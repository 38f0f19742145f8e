//! Keeps what this server knows of revoked certificates the same as what its members and the hub
//! know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_base::chain;
use cohort_core::ids::ServerId;
use cohort_identity::UnixTime;
use cohort_wire::agent::REVOCATIONS;
use cohort_wire::http::{ApiError, Call, CallError};
use cohort_wire::revocation::{RevocationsAnswer, RevocationsExchange};

use crate::shared::Shared;

/// Time for one message.
const DEADLINE: Duration = Duration::from_secs(2);

/// The pause before an exchange with a place that has the same as when it was tried last.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Messages of one exchange, at most: enough for all that are kept, in both directions.
const ROUNDS_MAX: usize = 40;

/// Exchanges revocations with a member that knows others than this server.
pub(crate) async fn exchange_with(shared: &Shared, server: &ServerId, address: &str, known: u64) {
    let own = shared.identity.revocations().digest();
    // Those that cannot agree, such as by a wrong clock, try again at times only.
    let tried = (own, known);
    let now = Instant::now();
    {
        let mut last = shared.exchanged.lock();
        let again = last.get(server).is_none_or(|(pair, at)| {
            *pair != tried || now.saturating_duration_since(*at) >= AGAIN_AFTER
        });
        if own == known || !again {
            return;
        }
        last.insert(server.clone(), (tried, now));
    }
    let _logged = exchange(shared, Some((server, address))).await;
}

/// Exchanges revocations with the hub. What is known here is known there afterwards.
///
/// # Errors
/// If the hub did not answer.
pub(crate) async fn exchange_with_hub(shared: &Shared) -> Result<(), CallError> {
    exchange(shared, None).await
}

/// With a member, or else with the hub.
async fn exchange(shared: &Shared, member: Option<(&ServerId, &str)>) -> Result<(), CallError> {
    let identity = &shared.identity;
    let known = identity.revocations();
    // What the other has is known once it has answered.
    let mut other: Option<BTreeMap<String, u64>> = None;
    for _ in 0..ROUNDS_MAX {
        let news = other.as_ref().map(|has| known.news_for(has)).unwrap_or_default();
        let request = RevocationsExchange { has: known.has(), news };
        let message = Call::post(REVOCATIONS, &request).deadline(DEADLINE).idempotent();
        let answered: Result<RevocationsAnswer, CallError> = match member {
            Some((server, address)) => shared.call_member(server, address, message).await,
            None => shared.client.call_any(&shared.hub, 0, message).await.map(|(_, it)| it),
        };
        let answer = answered.inspect_err(|error| {
            tracing::debug!(error = chain(error), "revocations not exchanged");
        })?;
        let before = known.digest();
        let (slot, news) = (Arc::clone(identity), answer.news);
        let taken = tokio::task::spawn_blocking(move || {
            slot.revocations().take(&news, slot.current().roots(), UnixTime::now());
        });
        // A panic leaves what was known.
        let _ = taken.await;
        // Neither has learnt anything from this round, which told what each lacks.
        let told = other.is_some() && known.digest() == before;
        if answer.has == known.has() || (told && other.as_ref() == Some(&answer.has)) {
            break;
        }
        other = Some(answer.has);
    }
    Ok(())
}

/// Answers another place.
pub(crate) async fn answer(
    shared: &Shared,
    exchange: RevocationsExchange,
) -> Result<RevocationsAnswer, ApiError> {
    let slot = Arc::clone(&shared.identity);
    let answered = tokio::task::spawn_blocking(move || {
        slot.revocations().exchange(&exchange, slot.current().roots(), UnixTime::now())
    });
    answered.await.map_err(|error| ApiError::internal(chain(&error)))
}
