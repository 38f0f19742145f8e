//! What a program of a release cannot do, tried by such a program.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use rustix::process::Pid;
use tempfile::TempDir;

use super::{Capability, Confined};
use crate::cgroup::{Cgroups, Limits};
use crate::isolation::Isolation;
use crate::launch::Launch;
use crate::output::Tail;
use crate::process::{Exit, start_ticks};
use crate::program::{End, Program, ProgramError, Programs, RunAs, run};
use crate::testing::until;

/// Somebody who owns nothing.
const NOBODY: RunAs = RunAs { uid: 65_534, gid: 65_534 };

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

struct Bench {
    folder: TempDir,
    programs: std::sync::Arc<Programs>,
}

impl Bench {
    fn new() -> Self {
        Bench::of(tempfile::tempdir().unwrap())
    }

    fn in_folder(folder: &str) -> Self {
        Bench::of(tempfile::tempdir_in(folder).unwrap())
    }

    fn of(folder: TempDir) -> Self {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let cgroups = Cgroups::of(folder.path()).unwrap_or_default();
        Bench { folder, programs: Programs::new(Launch::confine_for_tests(), cgroups) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a script, as nobody if this is root.
    fn script(&self, script: &str) -> Confined {
        let path = std::env::var("PATH").unwrap();
        Confined {
            args: vec!["-c".to_owned(), script.to_owned()],
            env: BTreeMap::from([("PATH".to_owned(), path)]),
            run_as: is_root().then_some(NOBODY),
            ..Confined::new("/bin/sh".into(), self.folder.path().to_owned())
        }
    }

    async fn try_run(&self, confined: Confined) -> (Result<End, ProgramError>, String) {
        self.try_run_within(confined, Limits::default()).await
    }

    async fn try_run_within(
        &self,
        confined: Confined,
        limits: Limits,
    ) -> (Result<End, ProgramError>, String) {
        let (programs, limit) = (&*self.programs, Duration::from_secs(20));
        let mut tail = Tail::new(64 * 1024);
        let end = run(&Program { programs, confined, limits, limit, note: None }, &mut tail).await;
        (end, tail.text())
    }

    async fn output(&self, confined: Confined) -> String {
        let (end, output) = self.try_run(confined).await;
        assert_eq!(end.unwrap(), End::Exited(Exit::Status(0)), "{output}");
        output
    }
}

fn field<'t>(status: &'t str, name: &str) -> &'t str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim()
}

#[tokio::test]
async fn nothing_of_roots_is_left() {
    let bench = Bench::new();
    let status = bench.output(bench.script("cat /proc/self/status; umask")).await;
    assert_eq!(field(&status, "NoNewPrivs:"), "1");
    assert!(status.trim_end().ends_with("0022"), "{status}");
    if !is_root() {
        return;
    }
    assert_eq!(field(&status, "Uid:").split_whitespace().collect::<Vec<_>>(), ["65534"; 4]);
    assert_eq!(field(&status, "Gid:").split_whitespace().collect::<Vec<_>>(), ["65534"; 4]);
    assert_eq!(field(&status, "Groups:"), "");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(field(&status, set), 16), Ok(0), "{set}");
    }
}

#[tokio::test]
async fn a_capability_that_the_release_names_is_kept_and_no_other() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let capabilities = vec![Capability::CapNetBindService];
    let status =
        bench.output(Confined { capabilities, ..bench.script("cat /proc/self/status") }).await;
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(field(&status, set), 16), Ok(1 << 10), "{set}");
    }
}

/// An agent that is not root, and may become other users.
#[tokio::test]
async fn an_agents_own_capabilities_are_not_passed_on() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let words = "--reuid 65534 --regid 65534 --clear-groups --inh-caps +setuid,+setgid \
                 --ambient-caps +setuid,+setgid";
    let mut args: Vec<std::ffi::OsString> = words.split_whitespace().map(Into::into).collect();
    args.push(Launch::confine_for_tests().program.into());
    let launch = Launch { program: "setpriv".into(), args };
    let programs = Programs::new(launch, Cgroups::default());
    for run_as in [None, Some(NOBODY), Some(RunAs { uid: 12_345, gid: 12_345 })] {
        let confined = Confined { run_as, ..bench.script("cat /proc/self/status") };
        let (limits, limit) = (Limits::default(), Duration::from_secs(20));
        let mut tail = Tail::new(64 * 1024);
        let program = Program { programs: &programs, confined, limits, limit, note: None };
        let end = run(&program, &mut tail).await.unwrap();
        let status = tail.text();
        assert_eq!(end, End::Exited(Exit::Status(0)), "{status}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(u64::from_str_radix(field(&status, set), 16), Ok(0), "{set}");
        }
    }
}

/// A terminal takes what is put into it for its owner's: a program of a release has none.
#[tokio::test]
async fn a_program_leads_a_session_of_its_own() {
    let bench = Bench::new();
    let stat = bench
        .output(bench.script("cat /proc/$$/stat; echo; true < /dev/tty && exit 1; exit 0"))
        .await;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let pid = stat.split_whitespace().next().unwrap();
    assert_eq!((fields[2], fields[3], fields[4]), (pid, pid, "0"), "{stat}");
}

/// A descriptor that the starter of an agent left open, such as one of a file of root's.
#[tokio::test]
async fn a_program_gets_no_descriptor_of_the_agents() {
    let bench = Bench::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    let left_open = rustix::io::dup(&file).unwrap();
    let open = bench.output(bench.script("readlink /proc/self/fd/*; true")).await;
    assert!(!open.contains(file.path().to_str().unwrap()), "{open}");
    drop(left_open);
}

/// A program with the setuid bit does not lead back to root.
#[tokio::test]
async fn a_setuid_program_gives_nothing() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let id = bench.path("id");
    fs::copy("/usr/bin/id", &id).unwrap();
    fs::set_permissions(&id, fs::Permissions::from_mode(0o4755)).unwrap();
    assert_eq!(bench.output(bench.script("./id -u")).await.trim(), "65534");
}

/// The wrapper is root for a moment: nothing that a release writes is in its environment.
#[tokio::test]
async fn the_environment_of_a_release_reaches_no_root_process() {
    let bench = Bench::new();
    let mut confined = bench.script("exit 0");
    let trace = bench.path("trace");
    // The loader writes one file per process that has these variables.
    confined.env.insert("LD_DEBUG".into(), "statistics".into());
    confined.env.insert("LD_DEBUG_OUTPUT".into(), trace.display().to_string());
    fs::set_permissions(bench.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    bench.output(confined).await;
    let traces: Vec<_> = fs::read_dir(bench.folder.path()).unwrap().flatten().collect();
    let traces: Vec<_> =
        traces.iter().filter(|it| it.file_name().to_string_lossy().starts_with("trace")).collect();
    assert_eq!(traces.len(), 1, "{traces:?}");
    if is_root() {
        assert_eq!(traces[0].metadata().unwrap().uid(), NOBODY.uid);
    }
}

/// What leaves its process group, session and parent behind ends with the program.
#[tokio::test]
async fn what_a_program_starts_ends_with_it() {
    let bench = Bench::new();
    if Cgroups::of(bench.folder.path()).is_err() {
        eprintln!("no cgroups here: not tested");
        return;
    }
    fs::set_permissions(bench.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let script = "env -i /bin/sh -c 'setsid -f /bin/sh -c \"echo \\$\\$ > pid; exec sleep 600\"'; \
                  until [ -s pid ]; do :; done";
    bench.output(bench.script(script)).await;
    let pid = fs::read_to_string(bench.path("pid")).unwrap().trim().parse().unwrap();
    let pid = Pid::from_raw(pid).unwrap();
    // Whether or not somebody waits for it.
    until("it has ended", || async { start_ticks(pid).is_none() }).await;
}

#[tokio::test]
async fn a_program_that_cannot_run_is_the_releases_fault() {
    let bench = Bench::new();
    let folder = bench.folder.path();
    fs::write(bench.path("text"), "text").unwrap();
    for program in ["absent", "text"] {
        let (end, _) = bench.try_run(Confined::new(bench.path(program), folder.to_owned())).await;
        assert!(matches!(end, Err(ProgramError::Spawn { .. })), "{end:?}");
    }
}

#[tokio::test]
async fn what_the_machine_refuses_is_not_the_releases_fault() {
    let bench = Bench::new();
    let absent =
        Programs::new(Launch { program: "/absent".into(), args: Vec::new() }, Cgroups::default());
    let nowhere = Confined::new("/bin/true".into(), "/absent".into());
    let (end, _) = bench.try_run(nowhere).await;
    assert!(matches!(end, Err(ProgramError::Watch { .. })), "{end:?}");
    let (confined, limits) = (bench.script("exit 0"), Limits::default());
    let limit = Duration::from_secs(20);
    let program = Program { programs: &absent, confined, limits, limit, note: None };
    let end = run(&program, &mut Tail::new(1024)).await;
    assert!(matches!(end, Err(ProgramError::Watch { .. })), "{end:?}");
}

#[test]
fn a_request_is_bounded() {
    let is_read = |confined: &Confined| {
        let request = serde_json::to_vec(confined).unwrap();
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let sent = std::thread::spawn(move || ours.write_all(&request));
        let mut theirs = fs::File::from(std::os::fd::OwnedFd::from(theirs));
        let read = super::read(&mut theirs).is_ok();
        drop(theirs);
        let _broken = sent.join().unwrap();
        read
    };
    let confined = Confined::new("/bin/true".into(), "/".into());
    assert!(is_read(&confined));
    let args = vec!["a".repeat(1024); 256];
    assert!(!is_read(&Confined { args, ..confined }));
}

/// A bench where the kernel can limit what programs use; none where it cannot.
fn limiting() -> Option<Bench> {
    let bench = Bench::new();
    let lacking = bench.programs.cgroups.lacking();
    if !lacking.is_empty() {
        eprintln!("{lacking:?} cannot be limited here: not tested");
    }
    lacking.is_empty().then_some(bench)
}

#[tokio::test]
async fn a_program_that_needs_more_memory_than_it_may_have_is_killed() {
    let Some(bench) = limiting() else { return };
    let of_mib = |mib| Limits { memory_max: Some(ByteSize::mib(mib)), ..Limits::default() };
    let script = || bench.script("exec perl -e '$x = \"a\" x (64 << 20); print length $x'");
    let (end, output) = bench.try_run_within(script(), of_mib(32)).await;
    assert_eq!(end.unwrap(), End::Exited(Exit::OutOfMemory), "{output}");
    let (end, output) = bench.try_run_within(script(), of_mib(512)).await;
    assert_eq!(end.unwrap(), End::Exited(Exit::Status(0)), "{output}");
}

#[tokio::test]
async fn a_program_starts_no_more_processes_than_it_may() {
    let Some(bench) = limiting() else { return };
    let limits = |max| Limits { pids_max: Some(max), ..Limits::default() };
    let script = || bench.script("sleep 60 & sleep 60 & sleep 60 & echo three");
    let (end, output) = bench.try_run_within(script(), limits(3)).await;
    assert_ne!(end.unwrap(), End::Exited(Exit::Status(0)), "{output}");
    let (end, output) = bench.try_run_within(script(), limits(4)).await;
    assert_eq!(end.unwrap(), End::Exited(Exit::Status(0)), "{output}");
}

#[tokio::test]
async fn a_private_tmp_is_empty_and_its_files_are_seen_by_nobody_else() {
    if !is_root() {
        return;
    }
    // Not below `/tmp`, which is another one inside.
    let bench = Bench::in_folder("/run");
    let outside = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    let isolation = Isolation { private_tmp: true, writable: None };
    let shared = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    let script = "ls -A /dev/shm /tmp /var/tmp; echo x > /tmp/cohort-private; \
                  cat /tmp/cohort-private; touch /dev/shm/cohort-private";
    let output = bench.output(Confined { isolation, ..bench.script(script) }).await;
    assert_eq!(output, "/dev/shm:\n\n/tmp:\n\n/var/tmp:\nx\n");
    assert!(!PathBuf::from("/dev/shm/cohort-private").exists());
    assert!(shared.path().exists());
    assert!(!PathBuf::from("/tmp/cohort-private").exists());
    assert!(outside.path().exists());
}

#[tokio::test]
async fn a_protected_system_is_read_only_but_for_the_state() {
    if !is_root() {
        return;
    }
    let bench = Bench::in_folder("/run");
    let (state, other) = (bench.path("state"), bench.path("other"));
    for folder in [&state, &other] {
        fs::create_dir(folder).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let writable = Some(vec![state.clone()]);
    let script =
        "echo x > state/file && touch other/file /var/tmp/cohort-file /dev/shm/cohort-file";
    let isolation = Isolation { private_tmp: false, writable: writable.clone() };
    let script = Confined { isolation, ..bench.script(script) };
    let (end, output) = bench.try_run(script).await;
    assert_eq!(end.unwrap(), End::Exited(Exit::Status(1)), "{output}");
    assert_eq!(output.matches("Read-only file system").count(), 2, "{output}");
    fs::remove_file("/dev/shm/cohort-file").unwrap();
    assert_eq!(fs::read_to_string(state.join("file")).unwrap(), "x\n");
    // With a `/tmp` of its own it may write there, too; and nothing changes outside.
    let isolation = Isolation { private_tmp: true, writable };
    bench.output(Confined { isolation, ..bench.script("touch /tmp/x /var/tmp/x") }).await;
    fs::write(other.join("file"), "").unwrap();
}
