//! One piece of work for everybody who asks for it at the same time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Work in progress, by name. It goes on when those who asked have left.
pub(crate) struct Flights<T> {
    under_way: Mutex<HashMap<String, watch::Receiver<Option<T>>>>,
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { under_way: Mutex::new(HashMap::new()) })
    }

    /// Joins the work of this name, or begins it. Nothing when it broke down.
    pub(crate) async fn join<W>(self: &Arc<Self>, name: &str, work: impl FnOnce() -> W) -> Option<T>
    where
        W: Future<Output = T> + Send + 'static,
    {
        let mut receiver = {
            let mut under_way = self.lock();
            match under_way.get(name) {
                Some(receiver) => receiver.clone(),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    under_way.insert(name.to_owned(), receiver.clone());
                    let landing = Landing { flights: Arc::clone(self), name: name.to_owned() };
                    let work = work();
                    tokio::spawn(async move {
                        let result = work.await;
                        // Who comes from here on begins anew: the result is only for those who
                        // asked before it was known.
                        drop(landing);
                        sender.send_replace(Some(result));
                    });
                    receiver
                }
            }
        };
        let result = receiver.wait_for(Option::is_some).await.ok()?;
        result.clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Option<T>>>> {
        // A map of receivers is whole after every instruction.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the work's name out, also when the work panics.
struct Landing<T: Clone + Send + Sync + 'static> {
    flights: Arc<Flights<T>>,
    name: String,
}

impl<T: Clone + Send + Sync + 'static> Drop for Landing<T> {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.name);
    }
}
