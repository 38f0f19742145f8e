//! Sends bulk bytes in small pieces.
//!
//! Bytes in the kernel's send buffer cannot be taken back when a child switches its parent, and an
//! auto-tuned buffer holds megabytes: seconds on a slow link. So a bulk connection writes one TLS
//! record at a time and waits while a few are unsent.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The payload of one TLS record, in bytes.
const PIECE_BYTES: usize = 16 * 1024;

/// The socket accepts more once fewer bytes than this are unsent: 5 ms at 100 Mbit/s, the time a
/// busy machine may take to schedule the sender again. With less, the link would idle.
const UNSENT_BYTES: u32 = 64 * 1024;

/// Slices per piece. The server writes a few: a chunk's length, its bytes, its end.
const SLICES_MAX: usize = 8;

/// A TLS stream that sends in pieces.
#[derive(Debug)]
pub(crate) struct Piecewise<S>(S);

impl<S> Piecewise<S> {
    /// Wraps `stream`, whose socket `socket` returns.
    pub(crate) fn new(stream: S, socket: impl FnOnce(&S) -> &TcpStream) -> io::Result<Self> {
        socket2::SockRef::from(socket(&stream)).set_tcp_notsent_lowat(UNSENT_BYTES)?;
        Ok(Self(stream))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Piecewise<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Piecewise<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.get_mut().0);
        let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
        poll_piece(stream, context, &[IoSlice::new(piece)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut piece = [IoSlice::new(&[]); SLICES_MAX];
        let mut room = PIECE_BYTES;
        for (part, slice) in piece.iter_mut().zip(slices) {
            let count = slice.len().min(room);
            *part = IoSlice::new(&slice[..count]);
            room -= count;
        }
        poll_piece(Pin::new(&mut self.get_mut().0), context, &piece)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(context)
    }
}

/// Writes after the previous piece has gone to the kernel.
fn poll_piece<S: AsyncWrite>(
    mut stream: Pin<&mut S>,
    context: &mut Context<'_>,
    piece: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    ready!(stream.as_mut().poll_flush(context))?;
    stream.poll_write_vectored(context, piece)
}

#[cfg(test)]
#[path = "piecewise_test.rs"]
mod piecewise_test;
