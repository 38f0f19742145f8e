//! Who listens on a TCP port of this server.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::FDTarget;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::process::{age, user_of};

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

/// Ends the process of `user` that keeps others from listening on `at`, or names the one that does
/// and is somebody else's. `None`: nobody does any more. Blocking.
#[must_use]
pub fn take_port(at: SocketAddr, user: Option<u32>) -> Option<String> {
    let holder = holder_of(at)?;
    let named = Some(holder.to_string());
    let Some(pid) = holder.process.and_then(|process| Pid::from_raw(process.pid)) else {
        return named;
    };
    // Held first, looked at second: the number cannot be reused in between.
    let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { return named };
    if user.is_none() || user_of(pid) != user {
        return named;
    }
    tracing::error!(pid = %pid.as_raw_nonzero(), %at, "killed a service's process: it took a port");
    let _gone = pidfd_send_signal(held, Signal::KILL);
    None
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
    use std::io::Read as _;
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

    /// A service that took the agent's port while the agent was away.
    #[test]
    fn a_port_is_taken_from_the_service_user_and_from_nobody_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap();
        let user = Some(65_534);
        assert!(take_port(own, user).unwrap().contains(&std::process::id().to_string()));
        drop(listener);
        assert_eq!(take_port(own, user), None, "it is free");
        if crate::trusted_folder::own_user() != 0 {
            return;
        }
        let script = format!(
            "use Socket; socket(S, PF_INET, SOCK_STREAM, 0); bind(S, pack_sockaddr_in({}, \
             INADDR_LOOPBACK)); listen(S, 5); $| = 1; print \"listens\\n\"; sleep 600",
            own.port()
        );
        let mut thief = std::process::Command::new("setpriv")
            .args(["--reuid", "65534", "--clear-groups", "perl", "-e", &script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 8];
        thief.stdout.take().unwrap().read_exact(&mut line).unwrap();
        assert!(take_port(own, None).is_some());
        assert_eq!(take_port(own, user), None);
        thief.wait().unwrap();
        TcpListener::bind(own).unwrap();
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
