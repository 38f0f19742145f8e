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
        let is_right =
            |it: &Listening| wanted.get(&it.name) == Some(&it.at) && is_unspoiled(&it.socket);
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
                is_unspoiled(socket)
                    && local(socket).is_some_and(|it| it.port() == at.port())
                    && is_of_this_network(socket)
            });
            match socket {
                Some(socket) => self.0.push(Listening { name: name.clone(), at: *at, socket }),
                None => tracing::warn!(name, %at, "cannot take back a socket of a service"),
            }
        }
    }

    /// Copies for a new process. How a socket waits, and how many connections wait in it, is the
    /// same for all copies: the next process may expect another way than the last one.
    pub(super) fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        let copy = |it: &Listening| {
            it.socket.set_nonblocking(false)?;
            it.socket.listen(BACKLOG)?;
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

/// Whether a socket that a service has had still takes every connection. The service may have shut
/// it down, bound it to one network device, or put a filter before it that cannot be taken off; the
/// next release would have to bear that.
fn is_unspoiled(socket: &Socket) -> bool {
    let has_filter = match socket.detach_filter() {
        Ok(()) => false,
        Err(error) => error.raw_os_error() != Some(Errno::NOENT.raw_os_error()),
    };
    let is_bound = socket.device().is_ok_and(|device| device.is_some_and(|it| !it.is_empty()));
    socket.is_listener().unwrap_or(false) && !is_bound && !has_filter
}

/// Whether a socket is of this process's network namespace: the service may have made one of its
/// own, in which nobody connects.
fn is_of_this_network(socket: &Socket) -> bool {
    let Ok(stat) = rustix::fs::fstat(socket) else { return false };
    let all = [procfs::net::tcp(), procfs::net::tcp6()];
    all.into_iter().flatten().flatten().any(|entry| entry.inode == stat.st_ino)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_did_to_a_socket_does_not_reach_the_next_one() {
        let free = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = local(&free).unwrap();
        drop(free);
        let wanted = BTreeMap::from([("http".to_owned(), at)]);
        let mut sockets = Sockets::default();
        sockets.want(&wanted).unwrap();
        for spoil in [
            |socket: &Socket| socket.bind_device(Some(b"lo")),
            |socket: &Socket| socket.shutdown(std::net::Shutdown::Both),
        ] {
            let given = Socket::from(sockets.copies().unwrap().remove(0));
            spoil(&given).unwrap();
            drop(given);
            sockets.want(&wanted).unwrap();
            let next = Socket::from(sockets.copies().unwrap().remove(0));
            assert!(is_unspoiled(&next));
            std::net::TcpStream::connect(at).unwrap();
        }
        // One that is as it was stays, with whoever waits in it.
        let waiting = std::net::TcpStream::connect(at).unwrap();
        sockets.want(&wanted).unwrap();
        let given = Socket::from(sockets.copies().unwrap().remove(0));
        assert!(is_of_this_network(&given));
        let from = |stream: &std::net::TcpStream| stream.local_addr().unwrap();
        while given.accept().unwrap().1.as_socket() != Some(from(&waiting)) {}
    }
}
