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
use cohort_wire::revocation::{Edition, RevocationsAnswer, RevocationsExchange};

use crate::shared::{MemberHandle, Shared};

/// Time for one message.
const DEADLINE: Duration = Duration::from_secs(2);

/// Time for one exchange: the questions of this server wait for it.
const EXCHANGE_MAX: Duration = Duration::from_secs(3);

/// The pause before an exchange with a member that has the same as when it was tried last: after
/// one that ended, and that did not.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How often a leader asks the hub, which tells nobody by itself.
const HUB_EVERY: Duration = Duration::from_secs(5);

/// Messages of one exchange, at most: enough for all that are kept, in both directions.
const ROUNDS_MAX: usize = 40;

/// Exchanges revocations with a member that knows others than this server.
pub(crate) async fn exchange_with(shared: &Shared, server: &ServerId, address: &str, known: u64) {
    let own = shared.identity.revocations().digest();
    // Those that cannot agree, such as by a wrong clock, try again at times only.
    let tried = (own, known);
    let again = shared
        .exchanged
        .lock()
        .get(server)
        .is_none_or(|(pair, not_before)| *pair != tried || Instant::now() >= *not_before);
    if own == known || !again {
        return;
    }
    let ended = tokio::time::timeout(EXCHANGE_MAX, exchange(shared, Some((server, address)))).await;
    let pause = if matches!(ended, Ok(Ok(()))) { AGAIN_AFTER } else { RETRY_AFTER };
    shared.exchanged.lock().insert(server.clone(), (tried, Instant::now() + pause));
}

/// Exchanges revocations with the hub while the member here leads: at times, and whenever there is
/// news here.
pub(crate) async fn keep_as_the_hub(shared: Arc<Shared>, handle: MemberHandle) {
    let mut news = shared.identity.revocations().subscribe();
    while handle.view.has_changed().is_ok() {
        if handle.view().leads() {
            // Logged there; the next time comes soon.
            let _ = exchange(&shared, None).await;
        }
        tokio::select! {
            () = tokio::time::sleep(HUB_EVERY) => {}
            _ = news.changed() => {}
        }
    }
}

/// With a member, or else with the hub.
async fn exchange(shared: &Shared, member: Option<(&ServerId, &str)>) -> Result<(), CallError> {
    let identity = &shared.identity;
    let known = identity.revocations();
    // What the other has is known once it has answered.
    let mut other: Option<BTreeMap<String, Edition>> = None;
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
