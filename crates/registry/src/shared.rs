//! The registry's state in memory, as its readers, its one writer and its watchers share it.

use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::api::{RegistryError, WATCH_WAIT_MS_MAX, WatchAnswer, WatchRequest};
use crate::state::State;

#[derive(Debug)]
pub(crate) struct SharedState {
    state: RwLock<State>,
    revision: watch::Sender<u64>,
}

impl SharedState {
    pub(crate) fn new(state: State) -> Self {
        let revision = watch::Sender::new(state.revision());
        SharedState { state: RwLock::new(state), revision }
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read())
    }

    /// Changes the state and wakes all watchers.
    pub(crate) fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.write();
        let result = change(&mut state);
        self.revision.send_replace(state.revision());
        result
    }

    /// Waits until something selected has changed, or the wait is over.
    pub(crate) async fn watch(&self, request: WatchRequest) -> Result<WatchAnswer, RegistryError> {
        let wait = Duration::from_millis(request.wait_ms.min(WATCH_WAIT_MS_MAX));
        let deadline = tokio::time::Instant::now() + wait;
        let mut revision = self.revision.subscribe();
        let mut from = match request.from_revision {
            0 => self.read(State::revision) + 1,
            from => from,
        };
        loop {
            revision.mark_unchanged();
            let answer = self.read(|state| state.events_since(&request.select, from))?;
            if !answer.events.is_empty() {
                return Ok(answer);
            }
            // Nothing up to here was selected: skip it next time.
            from = answer.revision + 1;
            match tokio::time::timeout_at(deadline, revision.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Ok(answer),
            }
        }
    }
}
