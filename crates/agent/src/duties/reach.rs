//! What this server reaches, of what a leader needs: found out when the leader asks.

use std::sync::Arc;
use std::time::Duration;

use cohort_core::ability::Ability;
use cohort_core::machine::DiskSpace;
use cohort_registry::typed;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::shared::Shared;

/// How long the hub or the mirrors may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// The shortest time between two looks: every voter of a group takes them at the same time.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The last look, and the one in progress.
#[derive(Default)]
pub(super) struct Reach {
    look: Option<JoinHandle<Ability>>,
    begun: Option<Instant>,
}

impl Reach {
    /// Starts a look, unless there was one recently.
    pub(super) fn look(&mut self, shared: &Arc<Shared>) {
        if self.look.is_none() && self.begun.is_none_or(|begun| begun.elapsed() >= LOOK_EVERY) {
            self.begun = Some(Instant::now());
            self.look = Some(tokio::spawn(look(Arc::clone(shared))));
        }
    }

    /// The outcome of a look that has just ended.
    pub(super) async fn found(&mut self) -> Option<Ability> {
        let look = self.look.take_if(|look| look.is_finished())?;
        look.await.ok()
    }
}

async fn look(shared: Arc<Shared>) -> Ability {
    let registry = timeout(DEADLINE, typed::read_members(&*shared.registry, &shared.group));
    let repository = async {
        match shared.repository.as_deref() {
            Some(repository) => {
                timeout(DEADLINE, repository.refresh()).await.is_ok_and(|it| it.is_ok())
            }
            None => false,
        }
    };
    let (registry, repository) = tokio::join!(registry, repository);
    let (registry, disk) = (registry.is_ok_and(|answer| answer.is_ok()), shared.machine().disk);
    Ability { registry, repository, disk: disk == DiskSpace::Enough }
}

#[cfg(test)]
mod reach_test {
    use super::*;
    use crate::testing::Lab;

    #[tokio::test]
    async fn a_server_reaches_what_answers_it() {
        let lab = Lab::new().await;
        lab.publish("1.0.0").await;
        let shared = lab.agent("s1", Some(lab.repository.dir())).await;
        assert!(look(shared).await.repository);
        let shared = lab.agent("s2", None).await;
        assert!(!look(shared).await.repository);
    }
}
