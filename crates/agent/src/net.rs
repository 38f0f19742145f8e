//! Raft's connections: one ordered, numbered connection per pair and direction.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use cohort_base::chain::chain;
use cohort_base::retry;
use cohort_consensus::{Envelope, RaftId};
use cohort_core::ids::{Incarnation, MemberId};
use cohort_identity::{Alpn, Peer, Role};
use cohort_server::member::Input;
use cohort_wire::frame::{Connections, FrameReceiver, FrameSender, Hello, connection_number};
use cohort_wire::http::Target;
use cohort_wire::limits::FRAME_BYTES_MAX;
use cohort_wire::tls::{ClientStream, ServerStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::complaint::Complaint;
use crate::member::Inputs;
use crate::shared::Shared;

/// Messages that may wait for one peer: more than Raft has in flight. Beyond that they are dropped:
/// Raft resends what matters, and a longer queue would only hold older messages.
const QUEUE_MAX: usize = 4096;
/// Bytes that may wait for one peer: at least one message of the largest size.
const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Messages taken from the queue at once, so that a burst costs few writes.
const TAKEN_MAX: usize = 256;

/// Attempts to reach a peer that are not worth a line in the log: those within some five seconds,
/// in which an agent restarts.
const DIALS_MAX: usize = 8;

// The largest message fits into an empty queue, or it could never be sent.
const _: () = assert!(QUEUE_BYTES_MAX >= FRAME_BYTES_MAX);

/// What every connection of one member needs.
#[derive(Clone)]
pub(crate) struct Net {
    pub shared: Arc<Shared>,
    pub incarnation: Incarnation,
    pub inputs: Inputs,
}

impl Net {
    async fn stopped(&self) {
        self.shared.tasks.stop.cancelled().await;
    }
}

/// Sends to each peer through a task of its own.
pub(crate) struct Senders {
    net: Net,
    connections: Arc<AtomicU32>,
    peers: BTreeMap<RaftId, Queue>,
    runtime: tokio::runtime::Handle,
}

/// The way to one peer's task, and how many bytes more may wait there.
struct Queue {
    messages: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
}

/// A message, and the room that it takes until it is sent.
type Waiting = (Bytes, OwnedSemaphorePermit);

impl Senders {
    pub(crate) fn new(net: Net, runtime: tokio::runtime::Handle) -> Senders {
        let connections = Arc::new(AtomicU32::new(0));
        Senders { net, connections, peers: BTreeMap::new(), runtime }
    }

    /// Hands a message to the peer's task; drops it when that one is behind.
    pub(crate) fn send(&mut self, envelope: &Envelope) {
        let peer = envelope.to;
        let (net, connections, runtime) = (&self.net, &self.connections, &self.runtime);
        let queue = self.peers.entry(peer).or_insert_with(|| {
            let (messages, receiver) = mpsc::channel(QUEUE_MAX);
            runtime.spawn(feed(net.clone(), Arc::clone(connections), peer, receiver));
            Queue { messages, room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)) }
        });
        let message = Bytes::from(envelope.encode());
        let bytes = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let room = Arc::clone(&queue.room).try_acquire_many_owned(bytes);
        if !room.is_ok_and(|room| queue.messages.try_send((message, room)).is_ok()) {
            // If it is the member itself that is behind, it finds out by its own ticks.
            self.net.inputs.offer(Input::Unreachable(peer));
        }
    }
}

/// Keeps a connection to one peer and feeds it.
async fn feed(
    net: Net,
    connections: Arc<AtomicU32>,
    peer: RaftId,
    mut queue: mpsc::Receiver<Waiting>,
) {
    let mut pauses = retry::NEAR.pauses();
    let mut first_connection = true;
    let mut lost = false;
    let mut unreached = Complaint::default();
    loop {
        let mut waiting = Vec::new();
        // Dial only when there is something to send, or to learn whether a peer whose connection
        // ended still lives: connections can be reset on the way.
        if !lost && queue.recv_many(&mut waiting, TAKEN_MAX).await == 0 {
            return;
        }
        let dialled = tokio::select! {
            () = net.stopped() => return,
            dialled = dial(&net, &connections, peer, &mut unreached) => dialled,
        };
        let ended = std::mem::take(&mut lost);
        let Some(mut connection) = dialled else {
            // Messages for a connection that was never made are void. Those that are sent after the
            // member knows are not.
            waiting.clear();
            while queue.try_recv().is_ok() {}
            let gone = if ended { Input::Disconnected(peer) } else { Input::Unreachable(peer) };
            let _ = net.inputs.put(gone).await;
            tokio::select! {
                () = net.stopped() => return,
                () = tokio::time::sleep(pauses.next_pause()) => {}
            }
            continue;
        };
        pauses.reset();
        if !std::mem::take(&mut first_connection) {
            // From here on messages are numbered for this connection; older ones are void.
            waiting.clear();
            while queue.try_recv().is_ok() {}
            if !net.inputs.put(Input::Connected(peer)).await {
                return;
            }
        }
        let revoked = net.shared.identity.revocations().subscribe();
        let carried = tokio::select! {
            () = net.stopped() => return,
            carried = carry(&mut connection, &mut queue, waiting, peer, revoked) => carried,
        };
        let Some(carried) = carried else { return };
        let _ = net.inputs.put(Input::Unreachable(peer)).await;
        // One that ends before it has carried anything tells nothing, and must not be dialled in a
        // circle.
        lost = carried;
    }
}

/// Sends over a connection until it ends; returns whether it carried anything. `None` once the
/// queue is closed.
async fn carry(
    connection: &mut FrameSender<ClientStream>,
    queue: &mut mpsc::Receiver<Waiting>,
    mut waiting: Vec<Waiting>,
    peer: RaftId,
    mut revoked: watch::Receiver<u64>,
) -> Option<bool> {
    let mut carried = false;
    loop {
        carried |= !waiting.is_empty();
        let (messages, rooms): (Vec<Bytes>, Vec<_>) = waiting.drain(..).unzip();
        let sent = connection.send(messages).await;
        drop(rooms);
        if let Err(error) = sent {
            tracing::debug!(error = chain(&error), peer = peer.0, "cannot send to a peer");
            return Some(carried);
        }
        tokio::select! {
            () = connection.closed() => return Some(carried),
            // It is dialled again, and refused if it is the peer's certificate.
            _ = revoked.changed() => return Some(carried),
            taken = queue.recv_many(&mut waiting, TAKEN_MAX) => if taken == 0 { return None },
        }
    }
}

async fn dial(
    net: &Net,
    connections: &AtomicU32,
    peer: RaftId,
    unreached: &mut Complaint,
) -> Option<FrameSender<ClientStream>> {
    let (server, address) = net.shared.whereabouts(MemberId(peer.0))?;
    let target =
        Target { address, peer: Peer::new(Role::Agent, server.as_str()).ok()?, alpn: Alpn::Raft };
    let count = connections.fetch_add(1, Ordering::Relaxed) + 1;
    let hello = Hello {
        group: net.shared.group.clone(),
        incarnation: net.incarnation,
        from: net.shared.server().clone(),
        to: server,
        life: net.shared.life,
        connection: connection_number(net.shared.boot_epoch.0, count),
    };
    match FrameSender::connect(&net.shared.client, &target, &hello).await {
        Ok(connection) => {
            unreached.ended("a member of the group is reachable again");
            Some(connection)
        }
        Err(error) => {
            unreached.after(DIALS_MAX, "cannot reach a member of the group", &error);
            net.shared.book.lock().missed(&hello.to, &target.address);
            None
        }
    }
}

/// Receives a peer's messages until the connection ends.
pub(crate) async fn take(net: Net, newest: Arc<Connections>, peer: Peer, stream: ServerStream) {
    let (server, group) = (net.shared.server(), &net.shared.group);
    let accepted =
        FrameReceiver::accept(stream, &peer, server, group, net.incarnation, &newest).await;
    let mut connection = match accepted {
        Ok(connection) => connection,
        Err(error) => {
            tracing::debug!(error = chain(&error), %peer, "raft connection refused");
            return;
        }
    };
    loop {
        let received = tokio::select! {
            () = net.stopped() => return,
            received = connection.recv() => received,
        };
        let Ok(Some(bytes)) = received else { return };
        let envelope = match Envelope::decode(&bytes) {
            Ok(envelope) => envelope,
            Err(error) => {
                tracing::warn!(%error, %peer, "unreadable raft message");
                return;
            }
        };
        // Nobody speaks for another member.
        let owner = net.shared.whereabouts(MemberId(envelope.from.0)).map(|(server, _)| server);
        if owner.as_ref() != Some(&connection.hello.from) {
            // This server may not have heard of the member yet; its orders will name it.
            tracing::warn!(%peer, member = envelope.from.0, "message from an unknown member");
            return;
        }
        if !net.inputs.put(Input::Received(Box::new(envelope))).await {
            return;
        }
    }
}

#[cfg(test)]
#[path = "net_test.rs"]
mod net_test;
