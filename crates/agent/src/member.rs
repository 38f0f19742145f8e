//! The member's shell: a thread that owns it, the queue in front of it, and who waits for what.
//!
//! What a member decides is in [`cohort_server::member`]. Here inputs are queued, requests get
//! their tickets, and outputs go where they belong.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cohort_consensus::{Envelope, RaftId};
use cohort_core::ids::{MemberId, ServerId};
use cohort_core::{Command, State};
use cohort_server::member::{Input, Member, Output, Proposed, Ticket, TransferFailure, serialized};
use tokio::sync::{oneshot, watch};

use crate::contacts::{SharedContacts, monotonic_ms};
use crate::metrics::TimedStore;

mod notes;

pub use cohort_server::member::MemberError;
pub(crate) use cohort_server::member::View;
pub(crate) use notes::Notes;

/// Inputs taken in one step, which become durable together. 256: one sync for a wave's worth of
/// reports, and heartbeats are not held up for long.
const INPUTS_PER_STEP_MAX: usize = 256;
/// Inputs that wait. 8,192: more than all servers of the largest group and all peers have to say
/// during a sync of the slowest disk.
const INPUTS_MAX: usize = 8_192;
/// Pause before trying again to put an input into a full queue.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// Who waits for the answer to a request.
#[derive(Debug)]
pub(crate) enum Waiter {
    Proposed(oneshot::Sender<Proposed>),
    Read(oneshot::Sender<bool>),
    Transferred(oneshot::Sender<Result<RaftId, TransferFailure>>),
    Claimed(oneshot::Sender<Option<bool>>),
}

/// An input, and who waits for its outcome.
#[derive(Debug)]
pub(crate) enum Queued {
    Plain(Input),
    Request(Input, Ticket, Waiter),
    Stop(oneshot::Sender<()>),
}

/// The way in: bounded, so that nobody can make a member run out of memory.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    queue: SyncSender<Queued>,
    tickets: Arc<AtomicU64>,
}

impl Inputs {
    /// A queue and its way in.
    pub(crate) fn queue() -> (Inputs, Receiver<Queued>) {
        let (queue, receiver) = sync_channel(INPUTS_MAX);
        (Inputs { queue, tickets: Arc::default() }, receiver)
    }

    /// Drops the input when the member is behind, or gone: for what is sent again.
    pub(crate) fn offer(&self, input: Input) {
        let _ = self.queue.try_send(Queued::Plain(input));
    }

    /// Waits for room: for what must not get lost. False when the member is gone.
    pub(crate) async fn put(&self, input: Input) -> bool {
        self.put_queued(Queued::Plain(input)).await
    }

    async fn put_queued(&self, mut input: Queued) -> bool {
        loop {
            match self.queue.try_send(input) {
                Ok(()) => return true,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(back)) => {
                    input = back;
                    tokio::time::sleep(FULL_PAUSE).await;
                }
            }
        }
    }

    /// None when the member is behind, or gone; certainly not taken then.
    fn ask<T>(
        &self,
        waiter: fn(oneshot::Sender<T>) -> Waiter,
        input: impl FnOnce(Ticket) -> Input,
    ) -> Option<oneshot::Receiver<T>> {
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        let (reply, answer) = oneshot::channel();
        let request = Queued::Request(input(ticket), ticket, waiter(reply));
        self.queue.try_send(request).ok().map(|()| answer)
    }

    /// Proposes a command, which only the leader accepts; `None` if this member is busy.
    pub(crate) fn propose(&self, command: Command) -> Option<oneshot::Receiver<Proposed>> {
        let command = Box::new(command);
        self.ask(Waiter::Proposed, |ticket| Input::Propose { ticket, command })
    }

    /// Reads through the leader: true when the view is at least as new as this call.
    pub(crate) fn read(&self) -> Option<oneshot::Receiver<bool>> {
        self.ask(Waiter::Read, |ticket| Input::Read { ticket })
    }

    /// Hands leadership over, to this member or to the one that is best prepared.
    pub(crate) fn transfer(
        &self,
        to: Option<RaftId>,
    ) -> Option<oneshot::Receiver<Result<RaftId, TransferFailure>>> {
        self.ask(Waiter::Transferred, |ticket| Input::Transfer { ticket, to })
    }

    /// Asks whether a server may create the member that it was given.
    pub(crate) fn claim(
        &self,
        server: ServerId,
        member: MemberId,
    ) -> Option<oneshot::Receiver<Option<bool>>> {
        self.ask(Waiter::Claimed, |ticket| Input::Claim { ticket, server, member })
    }

    /// Hands leadership over and ends the member. None when it is gone already.
    pub(crate) async fn stop(&self) -> Option<oneshot::Receiver<()>> {
        let (reply, done) = oneshot::channel();
        self.put_queued(Queued::Stop(reply)).await.then_some(done)
    }
}

/// Where messages, views and notes go.
pub(crate) struct Outputs {
    /// Messages to peers, in order.
    pub send: Box<dyn FnMut(&Envelope) + Send>,
    pub view: watch::Sender<Arc<View>>,
    pub notes: Notes,
}

/// A member, and who waits for its answers.
pub(crate) struct Shell {
    pub(crate) member: Member<TimedStore>,
    pub(crate) contacts: Arc<SharedContacts>,
    pub(crate) outputs: Outputs,
    waiters: BTreeMap<Ticket, Waiter>,
    stopped: Vec<oneshot::Sender<()>>,
    /// A snapshot being serialized on a thread of its own, and its position.
    snapshot: Option<(u64, JoinHandle<Vec<u8>>)>,
}

impl Shell {
    pub(crate) fn new(
        member: Member<TimedStore>,
        contacts: Arc<SharedContacts>,
        outputs: Outputs,
    ) -> Shell {
        let (waiters, stopped) = (BTreeMap::new(), Vec::new());
        Shell { member, contacts, outputs, waiters, stopped, snapshot: None }
    }

    /// Runs until it is stopped, or cannot go on.
    pub(crate) fn run(mut self, queue: &Receiver<Queued>) -> Result<(), MemberError> {
        loop {
            let now_ms = monotonic_ms();
            let wait_ms = self.member.wake_ms(now_ms).saturating_sub(now_ms);
            let mut inputs = Vec::new();
            match queue.recv_timeout(Duration::from_millis(wait_ms)) {
                Ok(first) => {
                    let more = queue.try_iter().take(INPUTS_PER_STEP_MAX - 1);
                    let all = std::iter::once(first).chain(more);
                    inputs.extend(all.map(|queued| self.admit(queued)));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            inputs.extend(self.snapshot_taken());
            let contacts = self.contacts.all();
            let (busy, begun) = (!inputs.is_empty(), Instant::now());
            let outputs = self.member.step(monotonic_ms(), &contacts, inputs)?;
            if busy {
                self.outputs
                    .notes
                    .metrics
                    .member_step_seconds
                    .observe(begun.elapsed().as_secs_f64());
            }
            let stopped = outputs.last() == Some(&Output::Stopped);
            for output in outputs {
                self.perform(output);
            }
            if stopped {
                return Ok(());
            }
        }
    }

    /// The snapshot that is serialized by now. Nothing waits for it: it is looked for whenever the
    /// member wakes.
    fn snapshot_taken(&mut self) -> Option<Input> {
        let (index, thread) = self.snapshot.take_if(|(_, thread)| thread.is_finished())?;
        let data = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Some(Input::Snapshot { index, data })
    }

    /// Serializes a state on a thread of its own. If the machine has no room for one, the member
    /// asks again after its next start; its log grows meanwhile.
    fn take_snapshot(&mut self, index: u64, state: Arc<State>) {
        let thread = std::thread::Builder::new().name("snapshot".into());
        match thread.spawn(move || serialized(&state)) {
            Ok(thread) => self.snapshot = Some((index, thread)),
            Err(error) => tracing::error!(%error, "cannot start a thread for a snapshot"),
        }
    }

    fn admit(&mut self, queued: Queued) -> Input {
        match queued {
            Queued::Plain(input) => input,
            Queued::Request(input, ticket, waiter) => {
                self.waiters.insert(ticket, waiter);
                input
            }
            Queued::Stop(done) => {
                self.stopped.push(done);
                Input::Stop
            }
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Send(envelope) => (self.outputs.send)(&envelope),
            Output::View(view) => {
                self.outputs.view.send_replace(view);
            }
            Output::Compact { index, state } => self.take_snapshot(index, state),
            Output::Happened { index, event, ended } => {
                self.outputs.notes.happened(index, &event, ended.as_deref());
            }
            Output::Restored { index } => self.outputs.notes.events.skipped(index),
            Output::Noted(note) => self.outputs.notes.noted(&note),
            Output::Answer { ticket, outcome } => {
                if let Some(Waiter::Proposed(reply)) = self.waiters.remove(&ticket) {
                    let _ = reply.send(outcome);
                }
            }
            Output::Read { ticket, fresh } => {
                if let Some(Waiter::Read(reply)) = self.waiters.remove(&ticket) {
                    let _ = reply.send(fresh);
                }
            }
            Output::Transferred { ticket, outcome } => {
                if let Some(Waiter::Transferred(reply)) = self.waiters.remove(&ticket) {
                    let _ = reply.send(outcome);
                }
            }
            Output::Claimed { ticket, granted } => {
                if let Some(Waiter::Claimed(reply)) = self.waiters.remove(&ticket) {
                    let _ = reply.send(granted);
                }
            }
            Output::Stopped => {
                for done in self.stopped.drain(..) {
                    let _ = done.send(());
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "member_test.rs"]
mod member_test;
