//! Concurrent requests for the same name share one piece of work.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use crate::origins::Refused;

/// Names whose absence is remembered. Beyond that, origins are asked again.
const NAMES_MAX: usize = 4096;

type Outcome<T> = Result<T, Refused>;

enum Entry<T> {
    UnderWay(Shared<BoxFuture<'static, Outcome<T>>>),
    AbsentSince(Instant),
}

/// Requests to origins, by name. Work continues after its callers have left. Its outcome goes to
/// the callers that joined before it was known; only *there is no such file* is cached for a while.
pub(crate) struct Joint<T> {
    absent_for: Duration,
    entries: Mutex<HashMap<String, Entry<T>>>,
}

impl<T: Clone + Send + Sync + 'static> Joint<T> {
    pub(crate) fn new(absent_for: Duration) -> Arc<Self> {
        Arc::new(Self { absent_for, entries: Mutex::default() })
    }

    /// Joins the work for this name, or starts it.
    pub(crate) async fn ask<W>(self: &Arc<Self>, name: &str, work: impl FnOnce() -> W) -> Outcome<T>
    where
        W: Future<Output = Outcome<T>> + Send + 'static,
    {
        let shared = {
            let mut entries = self.entries.lock();
            match entries.get(name) {
                Some(Entry::UnderWay(shared)) => shared.clone(),
                Some(Entry::AbsentSince(at)) if at.elapsed() < self.absent_for => {
                    return Err(Refused::Absent);
                }
                _ => {
                    let shared = self.begin(name.to_owned(), work());
                    entries.insert(name.to_owned(), Entry::UnderWay(shared.clone()));
                    shared
                }
            }
        };
        shared.await
    }

    fn begin(
        self: &Arc<Self>,
        name: String,
        work: impl Future<Output = Outcome<T>> + Send + 'static,
    ) -> Shared<BoxFuture<'static, Outcome<T>>> {
        let joint = Arc::clone(self);
        let task = tokio::spawn(async move {
            let broke = |_| Err(Refused::Failed("internal error".to_owned()));
            let outcome = AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(broke);
            joint.ended(name, &outcome);
            outcome
        });
        let stopped = |_| Err(Refused::Failed("the mirror is stopping".to_owned()));
        task.map(move |joined| joined.unwrap_or_else(stopped)).boxed().shared()
    }

    fn ended(&self, name: String, outcome: &Outcome<T>) {
        let mut entries = self.entries.lock();
        entries.remove(&name);
        if !matches!(outcome, Err(Refused::Absent)) {
            return;
        }
        if entries.len() >= NAMES_MAX {
            entries.retain(|_, entry| match entry {
                Entry::UnderWay(_) => true,
                Entry::AbsentSince(at) => at.elapsed() < self.absent_for,
            });
        }
        if entries.len() < NAMES_MAX {
            entries.insert(name, Entry::AbsentSince(Instant::now()));
        }
    }
}
