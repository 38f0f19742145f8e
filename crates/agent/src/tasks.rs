//! The agent's background tasks. None of them ends unnoticed: an error or a panic ends the agent,
//! which is then started again.

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::AgentError;

/// Starts tasks that the agent cannot do without; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    ended: mpsc::Sender<AgentError>,
    pub stop: CancellationToken,
}

impl Tasks {
    /// The tasks of one run of the agent, and the errors that end it early.
    pub(crate) fn new() -> (Tasks, mpsc::Receiver<AgentError>) {
        let (ended, ends) = mpsc::channel(4);
        (Tasks { ended, stop: CancellationToken::new() }, ends)
    }

    /// Runs a task until the agent stops, which ends it at its next await.
    pub(crate) fn spawn(
        &self,
        what: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn_or_end(what, async move {
            task.await;
            Ok(())
        });
    }

    /// The same for a task that can fail.
    pub(crate) fn spawn_or_end(
        &self,
        what: &'static str,
        task: impl Future<Output = Result<(), AgentError>> + Send + 'static,
    ) {
        let stop = self.stop.clone();
        self.spawn_on(&Handle::current(), what, async move {
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                ended = task => ended,
            }
        });
    }

    /// The same on another runtime, for a task that watches `stop` itself.
    pub(crate) fn spawn_on(
        &self,
        runtime: &Handle,
        what: &'static str,
        task: impl Future<Output = Result<(), AgentError>> + Send + 'static,
    ) {
        let task = runtime.spawn(task);
        let tasks = self.clone();
        tokio::spawn(async move {
            match task.await {
                Ok(Err(error)) => tasks.end(error),
                Err(join) if join.is_panic() => tasks.end(AgentError::Panicked(what)),
                Ok(Ok(())) | Err(_) => {}
            }
        });
    }

    /// Ends the agent; only the first error counts.
    pub(crate) fn end(&self, error: AgentError) {
        let _ = self.ended.try_send(error);
    }
}

#[cfg(test)]
mod tasks_test {
    use super::*;

    #[tokio::test]
    async fn a_panic_or_an_error_of_a_task_ends_the_agent() {
        let (tasks, mut ends) = Tasks::new();
        tasks.spawn("reporter", async { panic!("a bug") });
        assert!(matches!(ends.recv().await, Some(AgentError::Panicked("reporter"))));
        tasks.spawn_or_end("starter", async { Err(AgentError::Panicked("member")) });
        assert!(matches!(ends.recv().await, Some(AgentError::Panicked("member"))));
    }

    #[tokio::test]
    async fn a_stopped_agent_ends_its_tasks_without_an_error() {
        let (tasks, mut ends) = Tasks::new();
        let (dropped, was_dropped) = tokio::sync::oneshot::channel::<()>();
        tasks.spawn("duties", async move {
            let _held = dropped;
            std::future::pending::<()>().await;
        });
        tasks.stop.cancel();
        assert!(was_dropped.await.is_err(), "the task is gone");
        drop(tasks);
        assert!(ends.recv().await.is_none());
    }
}
