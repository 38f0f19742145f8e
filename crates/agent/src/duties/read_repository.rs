//! What the leader reads in the repository: the releases that the channels point to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cohort_artifact::TrustedRepository;
use cohort_core::Offer;
use cohort_core::ids::AppId;
use cohort_core::refused::Refused;
use cohort_server::member::{Input, View};
use cohort_server::offers::{judge, judge_age};

use super::{still_leads, until_leading};
use crate::shared::{MemberHandle, Shared};

/// The shortest time between two looks at the mirrors, in milliseconds.
const POLL_MS_MIN: u64 = 100;

/// Keeps the member's offers up to date while it leads.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut handle: MemberHandle,
    repository: Arc<TrustedRepository>,
) {
    let every = Duration::from_millis(shared.config.poll_interval.ms.max(POLL_MS_MIN));
    let mut failing = false;
    while let Some(term) = until_leading(&mut handle).await {
        let refreshed = repository.refresh().await.map(drop).map_err(|error| error.refused());
        let view = handle.view();
        let offers = offers(&repository, &view, refreshed.as_ref().copied()).await;
        let age_ms = repository.age_ms().unwrap_or(0);
        let age_s = i64::try_from(age_ms / 1000).unwrap_or(i64::MAX);
        shared.metrics.metadata_age_seconds.set(age_s);
        let max_ms = shared.config.max_metadata_age.ms;
        let refreshed = refreshed.and_then(|()| judge_age(age_ms, max_ms));
        log_once(&mut failing, &refreshed);
        let input = Input::Offers { offers, refusals: refusals(&repository), refreshed };
        if !handle.inputs.put(input).await {
            return;
        }
        // A new app is looked up at once, else the next look is due by the clock.
        let apps: Vec<AppId> = view.state.apps.keys().cloned().collect();
        let mut views = handle.view.clone();
        let new_app =
            views.wait_for(|now| now.raft.term != term || !now.state.apps.keys().eq(apps.iter()));
        let _ = tokio::time::timeout(every, new_app).await;
        if !still_leads(&handle, term) {
            // What is on this server's disk ages while another one looks for newer.
            shared.metrics.metadata_age_seconds.set(0);
        }
    }
}

/// Logs that refreshes fail, and that they succeed again: once each.
fn log_once(failing: &mut bool, refreshed: &Result<(), Refused>) {
    match refreshed {
        Err(refused) if !*failing => {
            let (why, mirror, causes) = (&refused.why, &refused.mirror, &refused.causes);
            tracing::warn!(%why, mirror, causes, "cannot look for newer releases, retrying");
        }
        Ok(()) if *failing => tracing::info!("looking for newer releases again"),
        _ => {}
    }
    *failing = refreshed.is_err();
}

/// The releases and mirrors that were refused lately, for people.
fn refusals(repository: &TrustedRepository) -> Vec<Refused> {
    let refusals = repository.refusals().into_values();
    let real = refusals.filter(|error| !error.why.is_unreachable());
    let mut refusals: Vec<Refused> = real.map(|error| error.refused()).collect();
    refusals.sort();
    refusals
}

async fn offers(
    repository: &TrustedRepository,
    view: &View,
    refreshed: Result<(), &Refused>,
) -> BTreeMap<AppId, Offer> {
    let mut offers = BTreeMap::new();
    let Some(platform) = &view.state.platform else { return offers };
    for (app, known) in &view.state.apps {
        let found = repository.offer(app, &known.policy.channel, platform).await;
        let found = found.map(|manifest| manifest.release()).map_err(|error| error.refused());
        offers.insert(app.clone(), judge(found, refreshed));
    }
    offers
}

#[cfg(test)]
#[path = "read_repository_test.rs"]
mod read_repository_test;
