//! Sockets that the guard listens on for a service, which accepts on them (`LISTEN_FDS`,
//! sd_listen_fds(3)): whoever connects while the service restarts waits instead of being refused.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::process::Watched;

/// Connections that wait to be accepted, while the service restarts too. The kernel's own limit
/// (`somaxconn`) may be lower.
const BACKLOG: i32 = 4096;

/// The first descriptor that a service is given.
const FIRST: i32 = 3;

/// One socket.
#[derive(Debug)]
pub(super) struct Listening {
    name: String,
    at: SocketAddr,
    socket: Socket,
}

/// Those of one service, in the order in which it is given them.
#[derive(Debug, Default)]
pub(super) struct Sockets(Vec<Listening>);

impl Sockets {
    /// Listens where it is wanted, and nowhere else. The error is of the address with it.
    pub(super) fn want(
        &mut self,
        wanted: &BTreeMap<String, SocketAddr>,
    ) -> Result<(), (SocketAddr, io::Error)> {
        // A service may have shut one down.
        let is_right = |it: &Listening| {
            wanted.get(&it.name) == Some(&it.at) && it.socket.is_listener().unwrap_or(false)
        };
        self.0.retain(is_right);
        for (name, at) in wanted {
            if self.0.iter().all(|it| it.name != *name) {
                let socket = listen(*at).map_err(|error| (*at, error))?;
                self.0.push(Listening { name: name.clone(), at: *at, socket });
            }
        }
        self.0.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    /// Takes back the sockets that an earlier guard gave to a process which still has them.
    pub(super) fn take_back(&mut self, process: &Watched, wanted: &BTreeMap<String, SocketAddr>) {
        for ((name, at), number) in wanted.iter().zip(FIRST..) {
            let taken = process.descriptor(number).map(Socket::from);
            // The service may have put something else there.
            let socket = taken.ok().filter(|socket| {
                socket.is_listener().unwrap_or(false)
                    && local(socket).is_some_and(|it| it.port() == at.port())
            });
            match socket {
                Some(socket) => self.0.push(Listening { name: name.clone(), at: *at, socket }),
                None => tracing::warn!(name, %at, "cannot take back a socket of a service"),
            }
        }
    }

    /// Copies for a new process. How a socket waits is the same for all copies: the next process
    /// may expect another way than the last one.
    pub(super) fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        let copy = |it: &Listening| {
            it.socket.set_nonblocking(false)?;
            it.socket.try_clone().map(OwnedFd::from)
        };
        self.0.iter().map(copy).collect()
    }

    /// What tells the process of them. The number of the process is set by its wrapper.
    pub(super) fn variables(&self) -> Vec<(&'static str, String)> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let names: Vec<&str> = self.0.iter().map(|it| it.name.as_str()).collect();
        vec![("LISTEN_FDS", self.0.len().to_string()), ("LISTEN_FDNAMES", names.join(":"))]
    }

    pub(super) fn close(&mut self) {
        self.0.clear();
    }

    /// Closes those at these ports.
    pub(super) fn release(&mut self, ports: &[u16]) {
        self.0.retain(|it| !ports.contains(&it.at.port()));
    }
}

fn local(socket: &Socket) -> Option<SocketAddr> {
    socket.local_addr().ok()?.as_socket()
}

/// Listens; on all addresses of both kinds, if asked for all of IPv6.
fn listen(at: SocketAddr) -> io::Result<Socket> {
    let everywhere = at.ip().is_unspecified() && at.is_ipv6();
    match bind(at) {
        // A machine without IPv6.
        Err(error)
            if everywhere && error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) =>
        {
            bind((Ipv4Addr::UNSPECIFIED, at.port()).into())
        }
        bound => bound,
    }
}

fn bind(at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if at.is_ipv6() {
        socket.set_only_v6(!at.ip().is_unspecified())?;
    }
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}
