//! A flood of connections from one address.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Connections that the flood holds open to each target; older ones are closed.
const HELD_MAX: usize = 1000;

/// A flood of connections to some addresses, until it is dropped. Every second connection starts a
/// handshake but never ends it, which makes a server with TLS sign; the others say nothing.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    /// Starts a flood from `from`, `per_s` connections a second to each target, whether or not the
    /// target accepts them.
    ///
    /// # Errors
    /// If no runtime starts.
    pub fn start(from: Ipv4Addr, targets: &[SocketAddr], per_s: u32) -> Result<Flood> {
        let (stop, made) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut threads = Vec::new();
        for target in targets.iter().copied() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.context("start the flood")?;
            let (stop, made) = (Arc::clone(&stop), Arc::clone(&made));
            let flood = move || runtime.block_on(flood(from.into(), target, per_s, &stop, &made));
            threads.push(std::thread::spawn(flood));
        }
        Ok(Flood { stop, made, threads })
    }

    /// Connections that were established so far.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

async fn flood(from: IpAddr, target: SocketAddr, per_s: u32, stop: &AtomicBool, made: &AtomicU64) {
    let (begun, mut held) = (Instant::now(), VecDeque::new());
    let interval = Duration::from_secs(1) / per_s;
    let hello = client_hello();
    for nth in 0u32.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        tokio::time::sleep_until((begun + interval * nth).into()).await;
        let Ok(socket) = tokio::net::TcpSocket::new_v4() else { continue };
        let bound = socket.set_reuseaddr(true).and_then(|()| socket.bind((from, 0).into()));
        if bound.is_err() {
            continue;
        }
        let Ok(Ok(stream)) = tokio::time::timeout(interval * 20, socket.connect(target)).await
        else {
            continue;
        };
        made.fetch_add(1, Ordering::SeqCst);
        let Ok(mut stream) = stream.into_std() else { continue };
        if nth % 2 == 0 {
            // A socket takes these few bytes at once, or the server has closed it.
            let _ = stream.write_all(&hello);
        }
        held.push_back(stream);
        if held.len() > HELD_MAX {
            held.pop_front();
        }
    }
}

/// The first message of a TLS 1.3 handshake with the hub or an agent.
fn client_hello() -> Vec<u8> {
    let with_length = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).expect("a hello is short");
        [&length.to_be_bytes()[..], bytes].concat()
    };
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &with_length(body)].concat();
    let protocols = [&b"cohort-control/1"[..], b"cohort-hub/1"]
        .map(|name| [&[u8::try_from(name.len()).expect("a name is short")], name].concat());
    // Any 32 bytes are a key of X25519.
    let key = [&[0x00, 0x1d][..], &with_length(&[9; 32])].concat();
    let extensions = [
        extension(43, &[2, 0x03, 0x04]),
        extension(10, &with_length(&[0x00, 0x1d])),
        extension(51, &with_length(&key)),
        extension(13, &with_length(&[0x04, 0x03])),
        extension(16, &with_length(&protocols.concat())),
    ];
    let body = [
        &[0x03, 0x03][..],
        &[7; 32],
        &[0],
        &with_length(&[0x13, 0x01]),
        &[1, 0],
        &with_length(&extensions.concat()),
    ]
    .concat();
    let handshake = [&[1, 0][..], &with_length(&body)].concat();
    [&[0x16, 0x03, 0x01][..], &with_length(&handshake)].concat()
}
