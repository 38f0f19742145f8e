use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::{BTreeMap, Exit, INSTANCE, Kept, Process, Services, Started};
use crate::process::start_ticks;
use rustix::process::Pid;

#[tokio::test]
async fn a_process_is_found_by_its_number_only_when_it_is_the_very_same() {
    let mut child = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let ticks = start_ticks(Pid::from_raw(pid).unwrap()).unwrap();
    let process = |start_ticks| Process {
        instance: "x".to_owned(),
        cgroups: Vec::new(),
        started: Some(Started { pid, start_ticks }),
        ready: true,
    };
    assert!(process(ticks).find(Some(crate::trusted_folder::own_user())).is_some());
    assert!(
        process(ticks + 1).find(Some(crate::trusted_folder::own_user())).is_none(),
        "the number was given to another"
    );
    child.kill().unwrap();
    let found = process(ticks).find(Some(crate::trusted_folder::own_user()));
    drop(found);
    child.wait().unwrap();
    assert!(process(ticks).find(Some(crate::trusted_folder::own_user())).is_none(), "it has ended");
}

#[tokio::test]
async fn a_process_whose_number_was_not_written_down_is_found_by_its_environment() {
    let instance = format!("web.test.{}", std::process::id());
    let mut child = Command::new("sh")
        .args(["-c", "sleep 600 & wait"])
        .env(INSTANCE, &instance)
        .process_group(0)
        .spawn()
        .unwrap();
    let process = Process { instance, cgroups: Vec::new(), started: None, ready: true };
    crate::testing::until("it is found", || async {
        process.find(Some(crate::trusted_folder::own_user())).is_some()
    })
    .await;
    let found = process.find(Some(crate::trusted_folder::own_user())).unwrap();
    let pid = found.pid().as_raw_nonzero().get().unsigned_abs();
    assert_eq!(pid, child.id(), "the leader, not its child");
    found.signal_group(rustix::process::Signal::KILL);
    child.wait().unwrap();
}

#[test]
fn the_record() {
    use super::super::protocol::protocol_test::spec;
    let process = |started| {
        let cgroups = vec!["/sys/fs/cgroup/cohort-ab/web".into()];
        Some(Process { instance: "web.12.34".into(), cgroups, started, ready: false })
    };
    let kept = |last_exit, process| {
        let services = BTreeMap::from([(
            "web".to_owned(),
            Kept { spec: spec(), exits: 2, last_exit, process, finished: false },
        )]);
        Services { boot_id: "b".into(), services }
    };
    let records = [
        Services::default(),
        kept(None, None),
        kept(Some(Exit::Status(1)), process(None)),
        kept(Some(Exit::Signal(9)), process(Some(Started { pid: 7, start_ticks: 8 }))),
    ];
    cohort_base::golden::hold(&crate::testing::golden("guard-services.jsonl"), &records);
}
