//! Who listens on a TCP port of this server.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::FDTarget;
use rustix::process::Pid;

use crate::cgroup::Cgroups;
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
    find(|entry| entry.state == TcpState::Listen && keeps_out(entry.local_address, wanted))
}

fn find(holds: impl Fn(&TcpNetEntry) -> bool) -> Option<Holder> {
    let mut all = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
    let TcpNetEntry { local_address: at, inode, .. } = all.find(|entry| holds(entry))?;
    Some(Holder { at, process: owner_of(inode) })
}

/// Ends what in these cgroups keeps others from listening on `at`. Returns who else does, if
/// anybody; nobody, if the port may be free by now. Blocking.
///
/// A service that listens nowhere, and only has the port, is in no table: if nobody is found, all
/// of them are ended.
#[must_use]
pub fn take_port(at: SocketAddr, cgroups: &Cgroups) -> Option<String> {
    let holder = holder_of(at).or_else(|| {
        // Connections that left from this port. Those that have ended keep nobody out.
        find(|entry| entry.state != TcpState::TimeWait && keeps_out(entry.local_address, at))
    });
    let pid = holder.as_ref().and_then(|it| Pid::from_raw(it.process.as_ref()?.pid));
    match (holder, pid) {
        (None, _) => cgroups.kill(|_| true),
        (Some(_), Some(pid)) if cgroups.kill(|members| members.contains(&pid)) => true,
        (Some(holder), _) => return Some(holder.to_string()),
    };
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

    /// What a hostile service does while the agent is away, in a cgroup of its own.
    async fn thief(cgroups: &Cgroups, at: SocketAddr, listens: bool) -> std::process::Child {
        let cgroup = cgroups.fresh("web", None).await.unwrap().unwrap();
        // Many processes have the one socket.
        let script = format!(
            "use Socket; socket(S, PF_INET, SOCK_STREAM, 0); bind(S, pack_sockaddr_in({}, \
             INADDR_LOOPBACK)) or die; {} for (1..20) {{ fork or last }} $| = 1; \
             print \"it has the port\\n\"; sleep 600",
            at.port(),
            if listens { "listen(S, 5);" } else { "" },
        );
        let file = cgroup.paths()[0].join("cgroup.procs");
        let script = format!("echo $$ > {}; exec perl -e '{script}'", file.display());
        let mut thief = std::process::Command::new("sh")
            .args(["-c", &script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 16];
        thief.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        thief
    }

    #[tokio::test]
    async fn a_port_is_taken_from_services_and_from_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let cgroups = Cgroups::of(folder.path()).unwrap_or_default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let named = take_port(at, &cgroups).unwrap();
        assert!(named.contains(&format!("process {}", std::process::id())), "{named}");
        drop(listener);
        assert_eq!(take_port(at, &cgroups), None, "it is free");
        if cgroups.is_empty() {
            return;
        }
        for listens in [true, false] {
            let mut thief = thief(&cgroups, at, listens).await;
            TcpListener::bind(at).unwrap_err();
            assert_eq!(take_port(at, &cgroups), None);
            thief.wait().unwrap();
            crate::testing::until("it is free", || async { TcpListener::bind(at).is_ok() }).await;
            cgroups.sweep().await;
        }
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
