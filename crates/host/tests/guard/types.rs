//! Services of each type, and what the guard holds for them.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;

use cohort_host::ServiceType;

use super::*;

/// `say TEXT`: what a service tells the guard.
const SAY: &str = r#"say() { perl -MSocket -e 'socket(S, PF_UNIX, SOCK_DGRAM, 0);
    send(S, $ARGV[0], 0, pack_sockaddr_un($ENV{NOTIFY_SOCKET})) or die $!' "$1"; };"#;

/// Answers each connection on the socket that it was given with its number.
const ANSWER: &str = r#"exec perl -e 'die "not mine" unless $ENV{LISTEN_PID} == $$;
    die $ENV{LISTEN_FDNAMES} unless "$ENV{LISTEN_FDS} $ENV{LISTEN_FDNAMES}" eq "1 http";
    open(my $l, "+<&=", 3) or die $!;
    while (accept(my $c, $l)) { syswrite($c, "$$\n"); close($c); }'"#;

fn command(spec: &mut ServiceSpec) -> &mut ServiceCommand {
    match &mut spec.run {
        RunService::Command(command) => command,
        RunService::Unit => unreachable!(),
    }
}

impl Bench {
    fn spec_of(&self, kind: ServiceType, script: &str) -> ServiceSpec {
        let mut spec = self.spec("1.1", script);
        let command = command(&mut spec);
        command.kind = kind;
        command.notify = Some(self.folder.path().join("notify"));
        spec
    }

    async fn state(&self) -> ServiceState {
        self.client.status("web").await.unwrap().state
    }

    fn touch(&self, name: &str) {
        fs::write(self.folder.path().join(name), "").unwrap();
    }

    async fn until_it_exits(&self, exit: &Exit) {
        until(&exit.to_string(), || async {
            self.client.status("web").await.unwrap().last_exit.as_ref() == Some(exit)
        })
        .await;
    }
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn answer(at: SocketAddr) -> String {
    let mut text = String::new();
    TcpStream::connect(at).unwrap().read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn a_service_that_notifies_is_ready_when_it_says_so_and_not_while_it_stops() {
    let bench = Bench::start().await;
    let folder = bench.folder.path().display();
    let script = format!(
        "{SAY} say STATUS=loading; until [ -e {folder}/go ]; do sleep 0.02; done; say READY=1; \
         until [ -e {folder}/stop ]; do sleep 0.02; done; say STOPPING=1; exec sleep 600"
    );
    bench.client.start(&bench.spec_of(ServiceType::Notify, &script)).await.unwrap();
    until("it loads", || async { bench.client.status("web").await.unwrap().says == "loading" })
        .await;
    assert!(matches!(bench.state().await, ServiceState::Unready { .. }));
    // It may say that it is ready while nobody listens: the next guard starts it again.
    bench.kill_guard(Signal::KILL).await;
    bench.touch("go");
    until("it is ready", || async { bench.service_pid().await.is_some() }).await;
    let service = bench.service_pid().await;

    // The next guard knows that it is ready, and hears what it says.
    bench.kill_guard(Signal::KILL).await;
    assert_eq!(bench.service_pid().await, service);
    bench.touch("stop");
    until("it stops", || async { matches!(bench.state().await, ServiceState::Unready { .. }) })
        .await;
    bench.end().await;
}

#[tokio::test]
async fn a_service_that_its_watchdog_does_not_hear_from_is_killed_and_started_again() {
    let bench = Bench::start().await;
    let script = format!("{SAY} say READY=1; exec sleep 600");
    let mut spec = bench.spec_of(ServiceType::Notify, &script);
    command(&mut spec).watchdog_ms = Some(200);
    bench.client.start(&spec).await.unwrap();
    until("it runs", || async { bench.service_pid().await.is_some() }).await;
    let first = bench.service_pid().await;
    bench.until_it_exits(&Exit::Watchdog).await;
    until("another one runs", || async {
        bench.service_pid().await.is_some_and(|next| Some(next) != first)
    })
    .await;
    bench.end().await;
}

#[tokio::test]
async fn a_forking_service_is_the_process_that_its_file_names() {
    let bench = Bench::start().await;
    let file = bench.folder.path().join("pid");
    let script = format!("setsid sh -c 'echo $$ > {}; exec sleep 600' & sleep 0.1", file.display());
    let mut spec = bench.spec_of(ServiceType::Forking, &script);
    command(&mut spec).pid_file = Some(file.clone());
    bench.client.start(&spec).await.unwrap();
    until("it runs", || async { bench.service_pid().await.is_some() }).await;
    let daemon = pid(&fs::read_to_string(&file).unwrap());
    assert_eq!(bench.service_pid().await, Some(daemon));

    bench.kill_guard(Signal::KILL).await;
    assert_eq!(bench.service_pid().await, Some(daemon), "the next guard watches it too");
    bench.client.stop("web", Duration::from_secs(10)).await.unwrap();
    assert!(gone(daemon));
    bench.end().await;
}

#[tokio::test]
async fn a_forking_service_is_never_a_process_of_somebody_else() {
    let bench = Bench::start().await;
    let file = bench.folder.path().join("pid");
    // This test's own process: of the same user, and older.
    fs::write(&file, std::process::id().to_string()).unwrap();
    let mut spec = bench.spec_of(ServiceType::Forking, "exit 0");
    command(&mut spec).pid_file = Some(file.clone());
    bench.client.start(&spec).await.unwrap();
    let reason = format!(
        "pid_file {}: process {} is not one of this service",
        file.display(),
        std::process::id()
    );
    bench.until_it_exits(&Exit::NotStarted { reason }).await;
    bench.end().await;
}

#[tokio::test]
async fn a_service_that_goes_into_the_background_unasked_is_named_and_ended() {
    let bench = Bench::start().await;
    let file = bench.folder.path().join("pid");
    let script = format!("setsid sh -c 'echo $$ > {}; exec sleep 600' & sleep 0.1", file.display());
    bench.client.start(&bench.spec("1.1", &script)).await.unwrap();
    bench.until_it_exits(&Exit::Background).await;
    bench.client.stop("web", Duration::from_secs(10)).await.unwrap();
    if !Cgroups::of(bench.folder.path()).unwrap_or_default().is_empty() {
        assert!(gone(pid(&fs::read_to_string(&file).unwrap())));
    }
    bench.end().await;
}

#[tokio::test]
async fn a_oneshot_runs_once_and_is_done() {
    let bench = Bench::start().await;
    let runs = bench.folder.path().join("runs");
    let script = format!("echo ran >> {}; exit 0", runs.display());
    bench.client.start(&bench.spec_of(ServiceType::Oneshot, &script)).await.unwrap();
    until("it is done", || async { bench.state().await == ServiceState::Finished }).await;
    bench.kill_guard(Signal::KILL).await;
    assert_eq!(bench.state().await, ServiceState::Finished, "the next guard runs it no more");
    assert_eq!(fs::read_to_string(&runs).unwrap(), "ran\n");
    bench.end().await;
}

#[tokio::test]
async fn a_oneshot_that_fails_is_tried_again() {
    let bench = Bench::start().await;
    bench.client.start(&bench.spec_of(ServiceType::Oneshot, "exit 3")).await.unwrap();
    until("two tries", || async { bench.client.status("web").await.unwrap().exits >= 2 }).await;
    assert_eq!(bench.client.status("web").await.unwrap().last_exit, Some(Exit::Status(3)));
    bench.end().await;
}

#[tokio::test]
async fn nobody_is_refused_while_a_service_with_a_socket_is_replaced_or_its_guard_killed() {
    let bench = Bench::start().await;
    let at = free_port();
    let mut first = bench.spec("1.1", ANSWER);
    command(&mut first).listen.insert("http".to_owned(), at);
    bench.client.start(&first).await.unwrap();
    let old = answer(at);
    assert_eq!(bench.service_pid().await, Some(pid(&old)));

    // A rollout stops a release before it starts the next one. Whoever connects in between waits.
    bench.kill_guard(Signal::KILL).await;
    bench.client.stop("web", Duration::from_secs(10)).await.unwrap();
    let mut waiting = TcpStream::connect(at).unwrap();
    let mut second = bench.spec("1.2", ANSWER);
    command(&mut second).listen.insert("http".to_owned(), at);
    bench.client.start(&second).await.unwrap();
    let mut new = String::new();
    waiting.read_to_string(&mut new).unwrap();
    assert_ne!(new, old);
    assert_eq!(bench.service_pid().await, Some(pid(&new)));

    // A release that listens itself gets the port.
    let mut third = bench.spec("1.3", "exec sleep 600");
    command(&mut third).ports.push(at);
    bench.client.start(&third).await.unwrap();
    assert!(TcpStream::connect(at).is_err());
    bench.end().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_its_holder_and_nothing_starts() {
    let bench = Bench::start().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let mut own = bench.spec("1.1", "exec sleep 600");
    command(&mut own).ports.push(at);
    let mut given = bench.spec("1.2", "exec sleep 600");
    command(&mut given).listen.insert("http".to_owned(), at);
    for spec in [own, given] {
        let error = bench.client.start(&spec).await.unwrap_err();
        let ServiceError::Taken { reason } = &error else { panic!("{error}") };
        assert!(reason.contains(&format!("process {}", std::process::id())), "{reason}");
        assert!(reason.contains(&at.to_string()), "{reason}");
        assert!(bench.is_empty().await);
    }
    bench.end().await;
}

#[tokio::test]
async fn a_service_opens_its_output_by_name_as_any_user() {
    let bench = Bench::start().await;
    fs::set_permissions(bench.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let start = async |key: &str, script: &str| {
        let mut spec = bench.spec(key, script);
        if rustix::process::geteuid().is_root() {
            command(&mut spec).run_as = Some(cohort_host::RunAs { uid: 65_534, gid: 65_534 });
        }
        bench.client.start(&spec).await.unwrap();
    };
    // One release closes its output to its own user: the next one has it all the same.
    start("1.1", "chmod 0 /dev/stdout && echo closed; exec sleep 600").await;
    until("it is closed", || async {
        bench.client.status("web").await.unwrap().output == "closed\n"
    })
    .await;
    bench.client.stop("web", Duration::from_secs(5)).await.unwrap();
    start("1.2", "echo to stdout > /dev/stdout; echo to stderr >> /dev/stderr; exec sleep 600")
        .await;
    until("both lines", || async {
        bench.client.status("web").await.unwrap().output == "to stdout\nto stderr\n"
    })
    .await;
    bench.end().await;
}
