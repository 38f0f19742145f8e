//! The guard as a separate process: killed, replaced, attacked.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use cohort_host::guard::{EVENTS_FILE, Event, EventKind, GuardClient, GuardConfig, GuardError};
use cohort_host::{
    Cgroups, Exit, Launch, RunService, ServiceCommand, ServiceControl as _, ServiceError,
    ServiceSpec, ServiceState, ServiceStatus,
};
use rustix::process::{Pid, Signal, getsid, kill_process, kill_process_group, test_kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

#[path = "guard/types.rs"]
mod types;

const GUARD_FOLDER: &str = "COHORT_TEST_GUARD_FOLDER";

/// Not a test on its own: the other tests start this program again, as a guard.
#[test]
fn guard_process() {
    let Some(folder) = std::env::var_os(GUARD_FOLDER) else { return };
    let folder = PathBuf::from(folder);
    let config = GuardConfig { folder, detach: true, confine: confine() };
    cohort_host::guard::run(&config).unwrap();
}

fn confine() -> Launch {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_cohort-host-confine"));
    Launch { program, args: Vec::new() }
}

/// A client that starts this program as the guard of a directory.
fn client(guard: PathBuf) -> GuardClient {
    let mut variable = OsString::from(format!("{GUARD_FOLDER}="));
    variable.push(&guard);
    let this = std::env::current_exe().unwrap().into();
    let args = vec![variable, this, "--exact".into(), "guard_process".into()];
    GuardClient::new(guard, Some(Launch { program: PathBuf::from("/usr/bin/env"), args }))
}

struct Bench {
    folder: TempDir,
    client: GuardClient,
}

impl Bench {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("releases/1.0.0")).unwrap();
        let client = client(folder.path().join("guard"));
        client.status("web").await.unwrap();
        Bench { folder, client }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("guard").join(name)
    }

    /// The process that listens on the socket, as the kernel knows it.
    async fn guard_pid(&self) -> Pid {
        let stream = match UnixStream::connect(self.path("guard.sock")).await {
            Ok(stream) => stream,
            Err(error) => panic!("nobody listens ({error}); the guards said:\n{}", self.said()),
        };
        let listener = stream.peer_cred().unwrap().pid();
        listener.and_then(Pid::from_raw).expect("a unix socket's listener is a process")
    }

    /// The guards' own log. No test may leave a panic in it.
    fn said(&self) -> String {
        fs::read_to_string(self.path("guard.log")).unwrap_or_default()
    }

    /// Kills the guard, as a crash would, and waits until it is gone.
    async fn kill_guard(&self, signal: Signal) {
        let guard = self.guard_pid().await;
        kill_process(guard, signal).unwrap();
        until("the guard is gone", || async { gone(guard) }).await;
    }

    fn spec(&self, key: &str, script: &str) -> ServiceSpec {
        let command = ServiceCommand {
            program: PathBuf::from("/bin/sh"),
            args: vec!["-c".to_owned(), script.to_owned()],
            env: BTreeMap::from([("PATH".to_owned(), std::env::var("PATH").unwrap())]),
            folder: self.folder.path().join("releases/1.0.0"),
            stop_timeout_ms: 300,
            ..ServiceCommand::default()
        };
        let run = RunService::Command(Box::new(command));
        ServiceSpec { name: "web".into(), key: key.into(), release: "d".repeat(64), run }
    }

    async fn service_pid(&self) -> Option<Pid> {
        match self.client.status("web").await.unwrap().state {
            ServiceState::Running { pid } => Pid::from_raw(i32::try_from(pid).unwrap()),
            ServiceState::Stopped
            | ServiceState::Unready { .. }
            | ServiceState::Waiting
            | ServiceState::Finished => None,
        }
    }

    fn events(&self) -> Vec<Event> {
        let text = fs::read_to_string(self.path(EVENTS_FILE)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Whether `web` is stopped, apart from its old output.
    async fn is_empty(&self) -> bool {
        let status = self.client.status("web").await.unwrap();
        ServiceStatus { output: String::new(), ..status } == ServiceStatus::default()
    }

    async fn end(self) {
        self.client.stop("web", Duration::from_secs(10)).await.unwrap();
        self.kill_guard(Signal::TERM).await;
        let said = self.said();
        assert!(!said.contains("panicked") && !said.contains("FAILED"), "a guard failed:\n{said}");
    }
}

impl Drop for Bench {
    /// Ends processes left by a failed test.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let (client, socket) = (&self.client, self.path("guard.sock"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut builder = tokio::runtime::Builder::new_current_thread();
                let runtime = builder.enable_all().build().unwrap();
                runtime.block_on(async {
                    // A killed guard leaves its services to the next one.
                    let _ = client.status("web").await;
                    let _ = client.stop("web", Duration::from_secs(10)).await;
                    if let Ok(stream) = UnixStream::connect(&socket).await
                        && let Some(guard) =
                            stream.peer_cred().unwrap().pid().and_then(Pid::from_raw)
                    {
                        let _gone = kill_process(guard, Signal::TERM);
                    }
                });
            });
        });
    }
}

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

/// Whether a process has ended; its parent, or init, reaps it.
fn gone(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.map_or(true, |stat| stat.contains(") Z "))
}

async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "not seen: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Counts endlessly, one number per line of output.
const COUNT: &str = "n=0; while true; do n=$((n+1)); echo line $n || exit 9; sleep 0.02; done";

#[tokio::test]
async fn a_killed_guard_leaves_its_services_and_the_next_one_takes_them_over() {
    let bench = Bench::start().await;
    let guard = bench.guard_pid().await;
    // Not compared with our own session: its leader may be outside of a container's view.
    assert_eq!(getsid(Some(guard)), Ok(guard), "detached");
    bench.client.start(&bench.spec("1.1", COUNT)).await.unwrap();
    let service = bench.service_pid().await.unwrap();
    let log = bench.path("logs/web.log");
    let lines = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    until("it writes", || async { lines() > 3 }).await;

    bench.kill_guard(Signal::KILL).await;
    assert!(test_kill_process(service).is_ok(), "the service lives on");
    // The client starts another guard on its own.
    assert_eq!(bench.service_pid().await, Some(service), "the very same process");
    let before = lines();
    until("it still writes", || async { lines() > before + 3 }).await;
    let text = fs::read_to_string(&log).unwrap();
    let numbers: Vec<usize> =
        text.lines().filter_map(|line| line.split_once("Z line ")?.1.parse().ok()).collect();
    // If killed between reading and writing, a guard loses the one line that it had read.
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
    assert!(numbers.len() + 1 >= *numbers.last().unwrap(), "{numbers:?}");

    // The same key starts nothing; the service's exit is detected although it is not the guard's
    // child.
    bench.client.start(&bench.spec("1.1", COUNT)).await.unwrap();
    assert_eq!(bench.service_pid().await, Some(service));
    kill_process_group(service, Signal::KILL).unwrap();
    until("it is started again", || async {
        bench.service_pid().await.is_some_and(|pid| pid != service)
    })
    .await;
    assert_eq!(bench.client.status("web").await.unwrap().exits, 1);

    // Asked to stop, the guard leaves the services running too.
    let service = bench.service_pid().await.unwrap();
    bench.kill_guard(Signal::TERM).await;
    assert_eq!(bench.service_pid().await, Some(service));
    bench.client.stop("web", Duration::from_secs(5)).await.unwrap();
    until("it is gone", || async { gone(service) }).await;
    let kinds: Vec<EventKind> = bench.events().iter().map(|event| event.event).collect();
    let expected = [
        EventKind::Started,
        EventKind::Adopted,
        EventKind::Exited,
        EventKind::Started,
        EventKind::Adopted,
        EventKind::Stopped,
    ];
    assert_eq!(kinds, expected);

    // No service should run now, so that the next guard starts nothing.
    bench.kill_guard(Signal::KILL).await;
    assert!(bench.is_empty().await);
    bench.end().await;
}

#[tokio::test]
async fn a_guard_that_comes_while_the_last_one_lets_go_is_started_again() {
    let bench = Bench::start().await;
    bench.kill_guard(Signal::TERM).await;
    let lock = fs::File::open(bench.path("guard.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let refused = || async { bench.said().contains("AlreadyRuns") };
    let (ensured, ()) = tokio::join!(bench.client.status("web"), async {
        until("one came too early", refused).await;
        drop(lock);
    });
    ensured.unwrap();
    // Not `end`: this test is about a failing guard.
    bench.kill_guard(Signal::TERM).await;
}

#[tokio::test]
async fn a_guard_whose_directory_is_removed_goes_and_the_next_one_ends_what_it_left() {
    let bench = Bench::start().await;
    bench.client.start(&bench.spec("1.1", "exec sleep 600")).await.unwrap();
    let (guard, left) = (bench.guard_pid().await, bench.service_pid().await.unwrap());
    fs::remove_dir_all(bench.path("")).unwrap();
    assert!(bench.is_empty().await, "the next guard has no record of it");
    until("the guard is gone", || async { gone(guard) }).await;
    assert!(!gone(left), "its service serves until another one is to run");
    bench.client.start(&bench.spec("1.2", "exec sleep 600")).await.unwrap();
    assert!(gone(left), "two would want the same port");
    assert!(bench.service_pid().await.is_some_and(|pid| pid != left));
    bench.end().await;
}

#[tokio::test]
async fn a_guard_whose_directory_was_moved_leaves_its_services_to_the_one_there() {
    let mut bench = Bench::start().await;
    bench.client.start(&bench.spec("1.1", "exec sleep 600")).await.unwrap();
    let (guard, service) = (bench.guard_pid().await, bench.service_pid().await.unwrap());
    let moved = bench.folder.path().join("moved");
    fs::rename(bench.path(""), &moved).unwrap();
    bench.client = client(moved.clone());
    assert_eq!(bench.service_pid().await, Some(service), "the very same process");
    until("the guard is gone", || async { gone(guard) }).await;
    bench.client.stop("web", Duration::from_secs(10)).await.unwrap();
    assert!(gone(service));
    fs::rename(&moved, bench.path("")).unwrap();
    bench.client = client(bench.path(""));
    assert!(bench.is_empty().await);
    bench.end().await;
}

#[tokio::test]
async fn what_a_service_detaches_ends_before_the_next_one_starts() {
    let bench = Bench::start().await;
    let file = bench.folder.path().join("detached");
    let script = format!("setsid sleep 600 & echo $! > {}; exec sleep 600", file.display());
    bench.client.start(&bench.spec("1.1", &script)).await.unwrap();
    let written = || fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'));
    until("it has detached one", || async { written() }).await;
    let detached = pid(&fs::read_to_string(&file).unwrap());
    until("it leads its group", || async { getsid(Some(detached)) == Ok(detached) }).await;
    let next = format!("[ -e /proc/{detached}/exe ] && touch still-there; exec sleep 600");
    bench.client.start(&bench.spec("1.2", &next)).await.unwrap();
    until("it is gone", || async { gone(detached) }).await;
    assert!(!bench.folder.path().join("releases/1.0.0/still-there").exists());
    bench.end().await;
}

/// Attacks: a service that tries to be in another process group than its own, and one whose child
/// traces it, so that the kernel keeps its end from its parent.
#[tokio::test]
async fn a_service_that_hides_from_its_end_is_ended() {
    let moves = "my $c = fork; if (!$c) { setpgrp(0, 0); sleep 600; exit } \
                 select(undef, undef, undef, 0.2); setpgrp(0, $c);";
    // ptrace(PTRACE_SEIZE, …) on x86-64; elsewhere another call that fails.
    let is_traced = "use POSIX; my $p = $$; my $c = fork; if (!$c) { POSIX::setsid(); \
                     syscall(101, 0x4206, $p, 0, 0); open(F, \">ready\"); close F; sleep 600 }";
    for attack in [moves, is_traced] {
        let bench = Bench::start().await;
        if Cgroups::of(&bench.path("")).is_err() && attack == is_traced {
            eprintln!("no cgroups here: not tested");
            return bench.end().await;
        }
        let ready = bench.folder.path().join("releases/1.0.0/ready");
        let script = format!(
            "exec perl -e '$SIG{{TERM}} = \"IGNORE\"; {attack} open(F, \">ready\"); sleep 600'"
        );
        bench.client.start(&bench.spec("1.1", &script)).await.unwrap();
        until("it has hidden", || async { ready.exists() }).await;
        let service = bench.service_pid().await.unwrap();
        let began = std::time::Instant::now();
        bench.client.stop("web", Duration::from_secs(60)).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(30), "{attack}");
        until("it is gone", || async { gone(service) }).await;
        bench.end().await;
    }
}

/// An attack: another user's process with the variables of a service.
#[tokio::test]
async fn a_process_of_another_user_is_not_taken_for_a_leftover() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let bench = Bench::start().await;
    let releases = bench.folder.path().join("releases");
    let mut fake = std::process::Command::new("sleep");
    use std::os::unix::process::CommandExt as _;
    let mut fake = fake
        .arg("600")
        .env("COHORT_GUARD_INSTANCE", "web.1.1")
        .env("COHORT_GUARD_RELEASES", releases)
        .process_group(0)
        .uid(12_345)
        .spawn()
        .unwrap();
    bench.client.start(&bench.spec("1.1", "exec sleep 600")).await.unwrap();
    assert_eq!(fake.try_wait().unwrap(), None, "it runs on");
    fake.kill().unwrap();
    fake.wait().unwrap();
    bench.end().await;
}

#[tokio::test]
async fn what_a_service_uses_is_counted_also_by_the_next_guard() {
    let bench = Bench::start().await;
    let cgroups = Cgroups::of(&bench.path("")).unwrap_or_default();
    if cgroups.is_empty() || !cgroups.lacking().is_empty() {
        eprintln!("nothing is counted here: not tested");
        return bench.end().await;
    }
    bench.client.start(&bench.spec("1.1", "sleep 600 & exec sleep 600")).await.unwrap();
    let all = async || {
        let usage = bench.client.status("web").await.unwrap().usage;
        (usage.pids == Some(2)).then_some((usage.memory?, usage.cpu_us?))
    };
    until("both processes are counted", || async { all().await.is_some() }).await;
    let (memory, cpu_us) = all().await.unwrap();
    assert!(memory > 0 && cpu_us > 0, "{memory} {cpu_us}");
    bench.kill_guard(Signal::KILL).await;
    until("the next guard counts them", || async { all().await.is_some() }).await;
    bench.client.stop("web", Duration::from_secs(60)).await.unwrap();
    assert!(bench.is_empty().await);
    bench.end().await;
}

#[tokio::test]
async fn what_a_service_detached_ends_when_it_dies_and_the_guard_was_killed() {
    let bench = Bench::start().await;
    if Cgroups::of(&bench.path("")).is_err() {
        eprintln!("no cgroups here: not tested");
        return bench.end().await;
    }
    let file = bench.folder.path().join("detached");
    let script = format!(
        "env -i setsid -f sh -c 'echo $$ >> {}; exec sleep 600'; exec sleep 600",
        file.display()
    );
    bench.client.start(&bench.spec("1.1", &script)).await.unwrap();
    let written = || fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'));
    until("it has detached one", || async { written() }).await;
    let detached = pid(&fs::read_to_string(&file).unwrap());
    let service = bench.service_pid().await.unwrap();
    bench.kill_guard(Signal::KILL).await;
    kill_process_group(service, Signal::KILL).unwrap();
    bench.client.status("web").await.unwrap();
    until("it is gone", || async { gone(detached) }).await;
    bench.end().await;
}

#[tokio::test]
async fn a_service_of_another_server_on_this_machine_is_not_taken_for_a_leftover() {
    let (one, other) = (Bench::start().await, Bench::start().await);
    one.client.start(&one.spec("1.1", "exec sleep 600")).await.unwrap();
    let service = one.service_pid().await.unwrap();
    other.client.start(&other.spec("1.1", "exec sleep 600")).await.unwrap();
    assert!(!gone(service));
    one.end().await;
    other.end().await;
}

#[tokio::test]
async fn what_died_with_the_guard_is_brought_back() {
    let bench = Bench::start().await;
    bench.client.start(&bench.spec("1.1", "exec sleep 600")).await.unwrap();
    let service = bench.service_pid().await.unwrap();
    bench.kill_guard(Signal::KILL).await;
    kill_process_group(service, Signal::KILL).unwrap();
    until("it is gone", || async { gone(service) }).await;
    until("it is brought back", || async {
        bench.service_pid().await.is_some_and(|pid| pid != service)
    })
    .await;
    bench.end().await;
}

#[tokio::test]
async fn a_crashing_service_is_started_again_more_and_more_slowly() {
    let bench = Bench::start().await;
    bench.client.start(&bench.spec("1.1", "echo no config; exit 4")).await.unwrap();
    until("three crashes", || async { bench.client.status("web").await.unwrap().exits >= 3 }).await;
    let status = bench.client.status("web").await.unwrap();
    assert_eq!(status.last_exit, Some(Exit::Status(4)));
    assert!(status.output.contains("no config"));
    let starts: Vec<u64> = bench
        .events()
        .into_iter()
        .filter(|event| event.event == EventKind::Started)
        .map(|event| event.boot_ms)
        .collect();
    assert!(starts[1] - starts[0] >= 50 && starts[2] - starts[1] >= 100, "{starts:?}");

    // Another release replaces it immediately, whatever it is waiting for.
    bench.client.start(&bench.spec("1.2", "exec sleep 600")).await.unwrap();
    let status = bench.client.status("web").await.unwrap();
    assert_eq!((status.release.is_some(), status.exits), (true, 0));
    bench.end().await;
}

#[tokio::test]
async fn a_stop_ends_all_processes_of_the_service() {
    let bench = Bench::start().await;
    let child = bench.folder.path().join("child");
    let script = format!("trap '' TERM; sleep 600 & echo $! > {}; wait; wait", child.display());
    bench.client.start(&bench.spec("1.1", &script)).await.unwrap();
    let read = || fs::read_to_string(&child).unwrap_or_default();
    until("it is up", || async { read().ends_with('\n') }).await;
    let child = pid(&read());
    bench.client.stop("web", Duration::from_secs(5)).await.unwrap();
    until("the child is gone", || async { gone(child) }).await;
    let exit = bench.events().pop().unwrap().exit;
    assert_eq!(exit, Some(Exit::Signal(9)), "it ignored TERM");
    bench.end().await;
}

#[tokio::test]
async fn a_flood_of_output_stays_within_its_files() {
    let bench = Bench::start().await;
    let script = "head -c 12000000 /dev/zero | tr '\\0' '\\n'; echo the end; exec sleep 600";
    bench.client.start(&bench.spec("1.1", script)).await.unwrap();
    until("all is written", || async {
        bench.client.status("web").await.unwrap().output.ends_with("the end\n")
    })
    .await;
    for name in ["logs/web.log", "logs/web.log.1"] {
        let length = fs::metadata(bench.path(name)).unwrap().len();
        assert!(length < 3 * 1024 * 1024, "{name}: {length}");
    }
    assert_eq!(fs::read_dir(bench.path("logs")).unwrap().count(), 2);
    bench.end().await;
}

#[tokio::test]
async fn a_program_that_cannot_run_is_told_apart() {
    let bench = Bench::start().await;
    let mut spec = bench.spec("1.1", "");
    let RunService::Command(command) = &mut spec.run else { panic!() };
    command.program = PathBuf::from("/nowhere/at/all");
    let error = bench.client.start(&spec).await.unwrap_err();
    assert!(
        matches!(&error, ServiceError::Start { reason } if reason.contains("/nowhere")),
        "{error}"
    );
    assert!(bench.is_empty().await, "and it is not retried forever");
    bench.end().await;
}

#[tokio::test]
async fn the_socket_is_ours_alone_and_survives_nonsense() {
    let bench = Bench::start().await;
    let socket = bench.path("guard.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let say = async |bytes: Vec<u8>| {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        let (reader, mut writer) = stream.split();
        // It may close the connection before everything is sent.
        let _hung_up = writer.write_all(&bytes).await;
        let mut answer = String::new();
        let _hung_up = BufReader::new(reader).read_line(&mut answer).await;
        answer
    };
    assert!(say(b"hello\n".to_vec()).await.contains("refused"));
    assert!(say(b"{\"version\":7,\"ask\":\"list\"}\n".to_vec()).await.contains("refused"));
    assert!(say(b"{\"version\":1,\"ask\":\"dance\"}\n".to_vec()).await.contains("refused"));
    let name = b"{\"version\":1,\"ask\":{\"stop\":{\"name\":\"../../etc\"}}}\n".to_vec();
    assert!(say(name).await.contains("refused"));
    assert_eq!(say(vec![b'x'; 1024 * 1024]).await, "", "too long: hung up");
    assert!(bench.is_empty().await, "and it still answers");

    // One too many is turned away; the others get responses.
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(UnixStream::connect(&socket).await.unwrap());
    }
    drop(idle);
    until("it answers again", || async { bench.client.status("web").await.is_ok() }).await;
    bench.end().await;
}

#[tokio::test]
async fn one_guard_per_folder() {
    let bench = Bench::start().await;
    let folder = bench.folder.path().join("guard");
    let config = GuardConfig { folder, detach: false, confine: confine() };
    let error = cohort_host::guard::serve(&config).await.unwrap_err();
    assert!(matches!(error, GuardError::AlreadyRuns { .. }), "{error}");
    assert!(bench.client.status("web").await.is_ok(), "the first one is not harmed");
    bench.end().await;
}

#[tokio::test]
async fn a_long_path_to_the_socket_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("d".repeat(120)).join("guard");
    let config = GuardConfig { folder: long.clone(), detach: false, confine: confine() };
    let client = GuardClient::new(long, None);
    let guard = tokio::spawn(async move { cohort_host::guard::serve(&config).await });
    until("it listens", || async { client.status("web").await.is_ok() }).await;
    guard.abort();
    assert!(guard.await.unwrap_err().is_cancelled());
}
