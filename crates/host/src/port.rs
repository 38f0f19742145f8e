//! Who listens on a TCP port of this server.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::FDTarget;
use rustix::process::Pid;

use crate::process::age;

/// A program that holds a port that a service wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Where it listens.
    pub(crate) at: SocketAddr,
    /// `None` if this process may not see whose socket it is.
    pub(crate) process: Option<HolderProcess>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HolderProcess {
    pub(crate) pid: i32,
    /// As the kernel names it.
    pub(crate) program: String,
    pub(crate) since: Option<Timestamp>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {} is taken by ", self.at.port())?;
        match &self.process {
            Some(HolderProcess { pid, program, since }) => {
                write!(f, "{} (process {pid}", program.escape_debug())?;
                if let Some(since) = since {
                    write!(f, ", running since {since:.0}")?;
                }
                write!(f, "), which listens on {}", self.at)
            }
            None => write!(f, "a program that listens on {}", self.at),
        }
    }
}

/// Who keeps others from listening on `wanted`, if anybody does. Blocking: looks at every socket.
pub(crate) fn holder_of(wanted: SocketAddr) -> Option<Holder> {
    let mut listening = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
    let holds = |entry: &TcpNetEntry| {
        entry.state == TcpState::Listen && keeps_out(entry.local_address, wanted)
    };
    let TcpNetEntry { local_address: at, inode, .. } = listening.find(holds)?;
    Some(Holder { at, process: owner_of(inode) })
}

/// Whether a socket that listens on `held` keeps another one from listening on `wanted`. Two
/// addresses of one server may share a port.
fn keeps_out(held: SocketAddr, wanted: SocketAddr) -> bool {
    let covers = |one: IpAddr, other: IpAddr| one.is_unspecified() || one == other;
    let (held_ip, wanted_ip) = (held.ip().to_canonical(), wanted.ip().to_canonical());
    held.port() == wanted.port() && (covers(held_ip, wanted_ip) || covers(wanted_ip, held_ip))
}

fn owner_of(inode: u64) -> Option<HolderProcess> {
    let has = |process: &procfs::process::Process| {
        let mut descriptors = process.fd().into_iter().flatten().flatten();
        descriptors.any(|it| it.target == FDTarget::Socket(inode))
    };
    let owner = procfs::process::all_processes().ok()?.flatten().find(has)?;
    let program = owner.stat().map(|stat| stat.comm).unwrap_or_default();
    let since = Pid::from_raw(owner.pid).and_then(age);
    let since = since.and_then(|age| Timestamp::now().checked_sub(age).ok());
    Some(HolderProcess { pid: owner.pid, program, since })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_holder_of_a_port_is_this_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let holder = holder_of(at).unwrap();
        assert_eq!(holder.at, at);
        let process = holder.process.unwrap();
        assert_eq!(process.pid.unsigned_abs(), std::process::id());
        assert!(process.since.unwrap() <= Timestamp::now());
        drop(listener);
        assert_eq!(holder_of(at), None);
    }

    #[test]
    fn addresses_of_their_own_share_a_port() {
        let keeps =
            |held: &str, wanted: &str| keeps_out(held.parse().unwrap(), wanted.parse().unwrap());
        assert!(keeps("0.0.0.0:80", "127.0.0.1:80"));
        assert!(keeps("[::]:80", "127.0.0.1:80"));
        assert!(keeps("127.0.0.1:80", "0.0.0.0:80"));
        assert!(keeps("[::ffff:127.0.0.1]:80", "127.0.0.1:80"));
        assert!(!keeps("10.0.0.1:80", "127.0.0.1:80"));
        assert!(!keeps("127.0.0.1:80", "127.0.0.1:81"));
    }
}
