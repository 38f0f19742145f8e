use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use parking_lot::Mutex;

use super::{Health, RunningChecks};
use crate::check::CheckContext;
use crate::service::{ServiceControl, ServiceError, ServiceSpec, ServiceState, ServiceStatus};

/// Returns the given results, then repeats the last one.
#[derive(Debug)]
struct Script(Mutex<VecDeque<bool>>);

#[async_trait]
impl ServiceControl for Script {
    async fn start(&self, _: &ServiceSpec) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn stop(&self, _: &str, _: Duration) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn status(&self, _: &str) -> Result<ServiceStatus, ServiceError> {
        let mut script = self.0.lock();
        let runs = if script.len() > 1 { script.pop_front() } else { script.front().copied() };
        let state = match runs {
            Some(true) => ServiceState::Running { pid: 1 },
            _ => ServiceState::Waiting,
        };
        Ok(ServiceStatus { state, ..ServiceStatus::default() })
    }
}

#[tokio::test(start_paused = true)]
async fn two_looks_in_a_row_decide() {
    let looks = VecDeque::from([true, false, true, false, false, true, false, true, true]);
    let control: Arc<dyn ServiceControl> = Arc::new(Script(Mutex::new(looks)));
    let first = Health { in_service: true, reason: String::new() };
    let service = Some((control, "web".to_owned()));
    let began = tokio::time::Instant::now();
    let mut checks = RunningChecks::spawn(&[], CheckContext::default(), service, &first);
    checks.changed().await;
    assert!(!checks.health().in_service);
    assert_eq!(began.elapsed().as_secs(), 4, "the second `no` in a row");
    checks.changed().await;
    assert!(checks.health().in_service);
    assert_eq!(began.elapsed().as_secs(), 8, "the second `yes` in a row");
    let news = tokio::time::timeout(Duration::from_secs(60), checks.changed()).await;
    assert!(news.is_err(), "a change is news once");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_was_seen_is_not_waited_for() {
    let control: Arc<dyn ServiceControl> = Arc::new(Script(Mutex::new([false].into())));
    let first = Health { in_service: true, reason: String::new() };
    let service = Some((control, "web".to_owned()));
    let mut checks = RunningChecks::spawn(&[], CheckContext::default(), service, &first);
    // By the test's clock.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!checks.health().in_service);
    let news = tokio::time::timeout(Duration::from_secs(60), checks.changed()).await;
    assert!(news.is_err(), "{news:?}");
}

#[test]
fn a_trial_says_nothing_until_it_knows() {
    let unknown = Health { in_service: false, reason: String::new() };
    let mut opinions = super::Opinions::new(2, &unknown);
    assert_eq!(opinions.together(), unknown);
    assert!(!opinions.saw(0, Ok(())) && opinions.saw(0, Ok(())));
    assert_eq!(opinions.together(), unknown, "the other one has not looked");
    assert!(opinions.saw(1, Err("refused".into())));
    assert_eq!(opinions.together().reason, "refused");
    assert!(!opinions.saw(1, Ok(())) && opinions.saw(1, Ok(())));
    assert!(opinions.together().in_service);
    assert!(super::Opinions::new(0, &unknown).together().in_service, "nothing to pass");
}

#[tokio::test(start_paused = true)]
async fn where_nothing_is_looked_at_there_is_never_news() {
    let first = Health { in_service: true, reason: String::new() };
    let mut checks = RunningChecks::spawn(&[], CheckContext::default(), None, &first);
    let news = tokio::time::timeout(Duration::from_secs(60), checks.changed()).await;
    assert!(news.is_err(), "{news:?}");
    assert_eq!(checks.health(), first);
}
