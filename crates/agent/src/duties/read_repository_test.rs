use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use cohort_core::Offer;
use cohort_core::ids::AppId;
use cohort_core::refused::{Refused, Role, WhyRefused};
use cohort_server::member::{Input, View};

use super::{offers, refusals, run};
use crate::shared::Shared;
use crate::testing::{Lab, apply, founded, handle, next_input, policy, web};

/// What a leader with the app `web` finds in a mirror.
async fn found(lab: &Lab, server: &str, mirror: Option<&Path>) -> (Offer, Vec<Refused>) {
    let shared = lab.agent(server, mirror).await;
    let repository = shared.repository.as_ref().unwrap();
    let refreshed = repository.refresh().await.map(drop).map_err(|error| error.refused());
    let view = with_web(lab.leading());
    let mut offers = offers(repository, &view, refreshed.as_ref().map(|_| ())).await;
    (offers.remove(&web()).unwrap(), refusals(repository))
}

fn with_web(view: View) -> View {
    let mut state = founded();
    apply(&mut state, policy());
    View { state: Arc::new(state), ..view }
}

fn offered(input: Input) -> BTreeMap<AppId, Offer> {
    match input {
        Input::Offers { offers, .. } => offers,
        other => panic!("no offers: {other:?}"),
    }
}

#[tokio::test]
async fn the_release_on_the_channel_is_offered() {
    let lab = Lab::new().await;
    lab.publish("1.0.0").await;
    let (offer, refused) = found(&lab, "s1", Some(lab.repository.dir())).await;
    let Offer::Release(release) = offer else { panic!("{offer:?}") };
    assert_eq!(release.version.as_str(), "1.0.0");
    assert_eq!(refused, Vec::new());
}

#[tokio::test]
async fn a_mirror_that_is_away_is_not_a_refusal() {
    let lab = Lab::new().await;
    let (offer, refused) = found(&lab, "s1", None).await;
    assert!(matches!(offer, Offer::Unknown { .. }), "{offer:?}");
    assert_eq!(refused, Vec::new());
}

#[tokio::test]
async fn a_mirror_with_metadata_that_nobody_trusts_is_a_refusal_and_is_named() {
    let (lab, strangers) = (Lab::new().await, Lab::new().await);
    strangers.publish("1.0.0").await;
    let mirror = strangers.repository.dir();
    let (offer, refused) = found(&lab, "s1", Some(mirror)).await;
    assert!(matches!(offer, Offer::Refused { .. }), "{offer:?}");
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].mirror, Some(mirror.display().to_string()));
    assert_eq!(refused[0].why, WhyRefused::WrongSignature { role: Role::Timestamp });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_fails_is_reported_with_the_older_offer() {
    let lab = Lab::new().await;
    lab.publish("1.0.0").await;
    let shared = lab.agent("s1", Some(lab.repository.dir())).await;
    let repository = Arc::clone(shared.repository.as_ref().unwrap());
    let (channel, platform) = ("stable".parse().unwrap(), "linux/intel".parse().unwrap());
    repository.latest(&web(), &channel, &platform).await.unwrap();
    std::fs::remove_dir_all(lab.repository.dir()).unwrap();
    let (handle, views, queue) = handle(with_web(lab.leading()));
    let task = tokio::spawn(run(shared, handle, repository));
    let Input::Offers { offers, refreshed, .. } = next_input(&queue) else { panic!() };
    assert!(matches!(offers[&web()], Offer::Release(_)), "{offers:?}");
    assert!(refreshed.is_err_and(|refused| refused.why.is_unreachable()));
    drop((views, queue));
    task.await.unwrap();
}

/// A mirror that hides what was published since shows what is signed, fresh, and the same for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_shows_nothing_newer_for_too_long_raises_an_alarm() {
    let lab = Lab::new().await;
    lab.publish("1.0.0").await;
    let mut shared = lab.agent("s1", Some(lab.repository.dir())).await;
    let repository = Arc::clone(shared.repository.as_ref().unwrap());
    let look = async |shared| {
        let (handle, views, queue) = handle(with_web(lab.leading()));
        let task = tokio::spawn(run(shared, handle, Arc::clone(&repository)));
        let Input::Offers { offers, refreshed, .. } = next_input(&queue) else { panic!() };
        drop((views, queue));
        task.await.unwrap();
        assert!(matches!(offers[&web()], Offer::Release(_)), "only an alarm: {offers:?}");
        refreshed
    };
    assert_eq!(look(Arc::clone(&shared)).await, Ok(()), "within a week");
    let config = |shared: &mut Arc<Shared>| {
        Arc::get_mut(shared).unwrap().config.max_metadata_age.ms = 0;
    };
    config(&mut shared);
    while repository.age_ms() == Some(0) {
        tokio::task::yield_now().await;
    }
    let frozen = look(Arc::clone(&shared)).await.unwrap_err();
    assert!(matches!(frozen.why, WhyRefused::Frozen { .. }), "{frozen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_looks_when_it_leads_and_at_once_for_a_new_app() {
    let lab = Lab::new().await;
    lab.publish("1.0.0").await;
    let shared = lab.agent("s1", Some(lab.repository.dir())).await;
    let repository = Arc::clone(shared.repository.as_ref().unwrap());
    let leading = lab.leading();
    let mut follows = leading.clone();
    follows.raft.role = cohort_consensus::Role::Follower;
    let (handle, views, queue) = handle(follows);
    let task = tokio::spawn(run(shared, handle, repository));
    views.send_replace(Arc::new(leading.clone()));
    assert_eq!(offered(next_input(&queue)), BTreeMap::new(), "no app yet");
    // Its next look by the clock is an hour away.
    views.send_replace(Arc::new(with_web(leading)));
    let offers = offered(next_input(&queue));
    assert!(matches!(offers[&web()], Offer::Release(_)), "{offers:?}");
    assert!(queue.try_recv().is_err(), "nothing more to look for");
    // The member has ended.
    drop((views, queue));
    task.await.unwrap();
}
