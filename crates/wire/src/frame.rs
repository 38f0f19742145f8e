//! Raft messages over one ordered connection, framed as length, version, payload.
//!
//! ```text
//! u32 big-endian: length of the rest | u8: version (1) | payload
//! ```
//! The client's first frame is a [`Hello`], the server's only one a [`Welcome`]: messages flow in
//! one direction. Connections are numbered; for a pair of servers, only the highest number counts,
//! so that a message delayed on an older connection never follows one from a newer.

use std::collections::HashMap;
use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use cohort_core::ids::{GroupId, Incarnation, ServerId};
use cohort_identity::{Peer, Role};
use futures_util::StreamExt;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;

use crate::http::{CallError, Client, Target};
use crate::limits::{FRAME_BATCH_BYTES, FRAME_BYTES_MAX, HELLO_BYTES_MAX, HELLO_TIMEOUT};

#[cfg(test)]
#[path = "frame_test.rs"]
mod frame_test;

/// The frame format's version.
const VERSION: u8 = 1;

/// The client's first frame: who it is, and which server it expects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Must be the server's own group.
    pub group: GroupId,
    /// Must be the server's own incarnation.
    pub incarnation: Incarnation,
    /// The client; must match its certificate.
    pub from: ServerId,
    /// The server that the client expects.
    pub to: ServerId,
    /// The client's process: a random number. Connections of different processes are unrelated.
    pub life: u64,
    /// Increases with each connection; see [`connection_number`].
    pub connection: u64,
}

/// The response to a [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Welcome {
    Welcome,
    /// Rejected; the connection closes.
    Refused {
        reason: String,
    },
}

/// A connection's number: it increases with the client's boot epoch, and within one with every
/// connection.
#[must_use]
pub fn connection_number(boot_epoch: u64, count: u32) -> u64 {
    (boot_epoch << 32) | u64::from(count)
}

/// The newest connection from each server's process.
#[derive(Debug, Default)]
pub struct Connections {
    newest: Mutex<HashMap<ServerId, Vec<Newest>>>,
}

/// Processes of one server that are remembered: the one that runs, one that has ended, and a copy.
const LIVES_MAX: usize = 4;

/// The newest connection of one process.
#[derive(Debug)]
struct Newest {
    life: u64,
    number: u64,
    superseded: CancellationToken,
}

impl Connections {
    /// Makes this connection the newest from its server and closes the previous one; rejects an
    /// older one.
    fn supersede(&self, hello: &Hello, superseded: CancellationToken) -> Result<(), String> {
        let mut newest = self.newest.lock();
        let lives = newest.entry(hello.from.clone()).or_default();
        if let Some(older) = lives.iter_mut().find(|known| known.life == hello.life) {
            let number = older.number;
            if hello.connection <= number {
                return Err(format!(
                    "connection {} from {} arrived after connection {number}",
                    hello.connection, hello.from
                ));
            }
            older.superseded.cancel();
            (older.number, older.superseded) = (hello.connection, superseded);
            return Ok(());
        }
        if lives.len() == LIVES_MAX {
            lives.remove(0).superseded.cancel();
        }
        lives.push(Newest { life: hello.life, number: hello.connection, superseded });
        Ok(())
    }
}

/// The client's end of a connection after the greetings: it only sends.
#[derive(Debug)]
pub struct FrameSender<S> {
    write: WriteHalf<S>,
    /// Receives nothing but the end of the connection.
    frames: FramedRead<ReadHalf<S>, LengthDelimitedCodec>,
    batch: BytesMut,
}

impl FrameSender<crate::tls::ClientStream> {
    /// Connects and exchanges greetings. `target` must be the agent `hello.to` with
    /// [`cohort_identity::Alpn::Raft`].
    ///
    /// # Errors
    /// If the connection fails or is rejected.
    pub async fn connect(
        client: &Client,
        target: &Target,
        hello: &Hello,
    ) -> Result<Self, FrameError> {
        let stream =
            client.open(target).await.map_err(|error| FrameError::Dial(Box::new(error)))?;
        Self::dial_over(stream, hello).await
    }
}

impl<S: AsyncRead + AsyncWrite> FrameSender<S> {
    /// Exchanges greetings over a stream, as the client.
    ///
    /// # Errors
    /// If the stream breaks or the server rejects the greeting.
    pub async fn dial_over(stream: S, hello: &Hello) -> Result<Self, FrameError> {
        let (read, mut write) = tokio::io::split(stream);
        let mut frames = FramedRead::new(read, codec(HELLO_BYTES_MAX));
        let welcome = timeout(HELLO_TIMEOUT, async {
            write_greeting(&mut write, hello).await?;
            read_greeting::<Welcome, _>(&mut frames).await
        })
        .await
        .map_err(|_| FrameError::HelloTimedOut)??;
        match welcome {
            Welcome::Welcome => Ok(Self { write, frames, batch: BytesMut::new() }),
            Welcome::Refused { reason } => Err(FrameError::Refused { reason }),
        }
    }

    /// Sends messages, in batches of at least [`FRAME_BATCH_BYTES`]; returns once the kernel has
    /// them. The kernel disconnects a server that does not read (`TCP_USER_TIMEOUT_MS`). If dropped
    /// early, it leaves half a frame behind: the connection is then unusable.
    ///
    /// # Errors
    /// If a message is too large or the connection breaks.
    pub async fn send(
        &mut self,
        messages: impl IntoIterator<Item = Bytes>,
    ) -> Result<(), FrameError> {
        for message in messages {
            if message.len() + 1 > FRAME_BYTES_MAX {
                return Err(FrameError::TooLarge { bytes: message.len() });
            }
            put_frame(&mut self.batch, &message);
            if self.batch.len() >= FRAME_BATCH_BYTES {
                self.flush().await?;
            }
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), FrameError> {
        self.write.write_all(&self.batch).await.map_err(FrameError::Broken)?;
        self.batch.clear();
        self.write.flush().await.map_err(FrameError::Broken)
    }

    /// Waits until the server has closed the connection. Cancel-safe.
    pub async fn closed(&mut self) {
        // A server that sends something breaks the protocol, which ends the connection too.
        let _ = self.frames.next().await;
    }
}

/// The server's end of a connection after the greetings: it only receives. Dropping it closes the
/// connection.
#[derive(Debug)]
pub struct FrameReceiver<S> {
    pub hello: Hello,
    frames: FramedRead<ReadHalf<S>, LengthDelimitedCodec>,
    _write: WriteHalf<S>,
    superseded: CancellationToken,
}

impl<S: AsyncRead + AsyncWrite> FrameReceiver<S> {
    /// Exchanges greetings over a stream from `peer`, as the server. The greeting must be for this
    /// server, group and incarnation, match the peer's certificate, and be newer than the previous
    /// connection.
    ///
    /// # Errors
    /// If the greeting is rejected (the client gets the reason) or the stream breaks.
    pub async fn accept(
        stream: S,
        peer: &Peer,
        me: &ServerId,
        group: &GroupId,
        incarnation: Incarnation,
        connections: &Connections,
    ) -> Result<Self, FrameError> {
        let (read, mut write) = tokio::io::split(stream);
        let mut frames = FramedRead::new(read, codec(HELLO_BYTES_MAX));
        let superseded = CancellationToken::new();
        let greeting = async {
            let hello: Hello = read_greeting(&mut frames).await?;
            let verdict = judge(&hello, peer, me, group, incarnation)
                .and_then(|()| connections.supersede(&hello, superseded.clone()));
            let welcome = match &verdict {
                Ok(()) => Welcome::Welcome,
                Err(reason) => Welcome::Refused { reason: reason.clone() },
            };
            write_greeting(&mut write, &welcome).await?;
            verdict.map(|()| hello).map_err(|reason| FrameError::Refused { reason })
        };
        let hello =
            timeout(HELLO_TIMEOUT, greeting).await.map_err(|_| FrameError::HelloTimedOut)??;
        // Bytes received after the greeting stay in the buffer.
        let frames = frames.map_decoder(|_| codec(FRAME_BYTES_MAX));
        Ok(Self { hello, frames, _write: write, superseded })
    }

    /// The next message; `None` after the client closed the connection or a newer one superseded
    /// it. Cancel-safe.
    ///
    /// # Errors
    /// If a frame is too large, has another version, or is truncated.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, FrameError> {
        let next = tokio::select! {
            biased;
            () = self.superseded.cancelled() => return Ok(None),
            next = self.frames.next() => next,
        };
        match next {
            None => Ok(None),
            Some(Ok(frame)) => payload_of(frame).map(Some),
            Some(Err(error)) => Err(read_error(error)),
        }
    }
}

fn put_frame(batch: &mut BytesMut, payload: &[u8]) {
    let length = u32::try_from(payload.len() + 1).expect("the largest frame is far below 4 GiB");
    batch.reserve(payload.len() + 5);
    batch.put_u32(length);
    batch.put_u8(VERSION);
    batch.put_slice(payload);
}

fn codec(bytes_max: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .length_field_type::<u32>()
        .big_endian()
        .max_frame_length(bytes_max)
        .new_codec()
}

fn payload_of(mut frame: BytesMut) -> Result<Bytes, FrameError> {
    match frame.first() {
        None => Err(FrameError::Empty),
        Some(&VERSION) => Ok(frame.split_off(1).freeze()),
        Some(&version) => Err(FrameError::Version { version }),
    }
}

fn read_error(error: io::Error) -> FrameError {
    let too_large = error
        .get_ref()
        .is_some_and(|inner| inner.is::<tokio_util::codec::LengthDelimitedCodecError>());
    if too_large { FrameError::FrameTooLarge } else { FrameError::Broken(error) }
}

async fn write_greeting<W: AsyncWrite + Unpin>(
    write: &mut W,
    greeting: &impl Serialize,
) -> Result<(), FrameError> {
    let text = serde_json::to_vec(greeting).expect("names and numbers always become JSON");
    let mut batch = BytesMut::new();
    put_frame(&mut batch, &text);
    write.write_all(&batch).await.map_err(FrameError::Broken)?;
    write.flush().await.map_err(FrameError::Broken)
}

async fn read_greeting<T, R>(
    frames: &mut FramedRead<R, LengthDelimitedCodec>,
) -> Result<T, FrameError>
where
    T: for<'de> Deserialize<'de>,
    R: AsyncRead + Unpin,
{
    let frame = match frames.next().await {
        None => return Err(FrameError::Closed),
        Some(frame) => frame.map_err(read_error)?,
    };
    let payload = payload_of(frame)?;
    serde_json::from_slice(&payload).map_err(FrameError::Greeting)
}

fn judge(
    hello: &Hello,
    peer: &Peer,
    me: &ServerId,
    group: &GroupId,
    incarnation: Incarnation,
) -> Result<(), String> {
    if peer.role != Role::Agent || peer.name.as_str() != hello.from.as_str() {
        return Err(format!("the certificate is for {peer}, the greeting is from {}", hello.from));
    }
    if hello.to != *me {
        return Err(format!("this is {me}, the greeting is for {}", hello.to));
    }
    if hello.group != *group || hello.incarnation != incarnation {
        return Err(format!(
            "this is group {group}, incarnation {incarnation}, the greeting is for {}, {}",
            hello.group, hello.incarnation
        ));
    }
    Ok(())
}

/// Why a framed connection failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    #[error("cannot connect")]
    Dial(#[source] Box<CallError>),
    #[error("greeting rejected: {reason}")]
    Refused { reason: String },
    #[error("no greeting within {} ms", HELLO_TIMEOUT.as_millis())]
    HelloTimedOut,
    /// The first frame is not a greeting.
    #[error("malformed greeting")]
    Greeting(#[source] serde_json::Error),
    #[error("message is {bytes} bytes, the limit is {FRAME_BYTES_MAX}")]
    TooLarge { bytes: usize },
    /// A received frame announces more than the limit.
    #[error("frame announces more than {FRAME_BYTES_MAX} bytes (a greeting {HELLO_BYTES_MAX})")]
    FrameTooLarge,
    #[error("frame has version {version}, only {VERSION} is supported")]
    Version { version: u8 },
    #[error("frame is empty")]
    Empty,
    #[error("connection is closed")]
    Closed,
    #[error("connection broke")]
    Broken(#[source] io::Error),
}
