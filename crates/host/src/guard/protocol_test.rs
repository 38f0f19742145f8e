use std::collections::BTreeMap;

use bytesize::ByteSize;
use cohort_base::golden::hold;

use super::*;
use crate::cgroup::{Limits, Usage};
use crate::confine::Capability;
use crate::isolation::Isolation;
use crate::process::{Exit, StopSignal};
use crate::program::RunAs;
use crate::service::{RunService, ServiceCommand, ServiceState, ServiceType};
use crate::testing::golden;

/// A service with every field set.
pub(crate) fn spec() -> ServiceSpec {
    ServiceSpec {
        name: "web".into(),
        key: "1.4".into(),
        release: "ab".repeat(32),
        run: RunService::Command(Box::new(ServiceCommand {
            program: "/srv/web/run".into(),
            args: vec!["--port".into(), "80".into()],
            env: BTreeMap::from([("PATH".into(), "/bin".into())]),
            folder: "/srv/web".into(),
            kind: ServiceType::Forking,
            pid_file: Some("/srv/web/run/pid".into()),
            notify: Some("/srv/web/notify".into()),
            watchdog_ms: Some(20_000),
            listen: BTreeMap::from([("http".into(), "[::]:80".parse().unwrap())]),
            ports: vec!["127.0.0.1:8080".parse().unwrap()],
            stop_signal: StopSignal::Int,
            stop_timeout_ms: 10_000,
            run_as: Some(RunAs { uid: 33, gid: 33 }),
            capabilities: vec![Capability::CapNetBindService],
            isolation: Isolation { private_tmp: true, writable: Some(vec!["/srv/web".into()]) },
            limits: Limits {
                memory_max: Some(ByteSize::mib(512)),
                cpu_weight: Some(50),
                pids_max: Some(100),
            },
        })),
    }
}

#[test]
fn requests_and_answers() {
    let request = |ask| Request { version: VERSION, ask };
    let requests = [
        request(Ask::Start(Box::new(spec()))),
        request(Ask::Start(Box::new(ServiceSpec { run: RunService::Unit, ..spec() }))),
        request(Ask::Stop { name: "web".into() }),
        request(Ask::Status { name: "web".into() }),
    ];
    hold(&golden("guard-requests.jsonl"), &requests);
    let status = |state, last_exit| {
        Answer::Status(ServiceStatus {
            release: Some("ab".repeat(32)),
            state,
            exits: 2,
            last_exit,
            says: "warming up".into(),
            output: "listening\n".into(),
            usage: Usage { memory: Some(1 << 20), cpu_us: Some(1500), pids: Some(3) },
        })
    };
    let answers = [
        Answer::Done,
        Answer::Status(ServiceStatus::default()),
        status(ServiceState::Running { pid: 7 }, Some(Exit::Status(1))),
        status(ServiceState::Unready { pid: 7 }, None),
        status(ServiceState::Finished, Some(Exit::Status(0))),
        status(ServiceState::Waiting, Some(Exit::Background)),
        status(ServiceState::Waiting, Some(Exit::Watchdog)),
        status(ServiceState::Waiting, Some(Exit::Signal(9))),
        status(ServiceState::Waiting, Some(Exit::OutOfMemory)),
        status(ServiceState::Waiting, Some(Exit::Unknown)),
        status(ServiceState::Waiting, Some(Exit::NotStarted { reason: "no memory".into() })),
        Answer::CannotStart("no such file".into()),
        Answer::Taken("port 80 is taken by nginx (process 7)".into()),
        Answer::Refused("a guard runs at most 64 services".into()),
    ];
    let answers = answers.map(|answer| Response { version: VERSION, answer });
    hold(&golden("guard-answers.jsonl"), &answers);
}
