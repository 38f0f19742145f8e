//! Shared by this crate's tests: releases made on the fly, an app's host with a real guard.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cohort_core::ids::{Generation, Incarnation};
use cohort_core::orders::{ActivationOrder, AppOrders, Fence, Purpose};
use cohort_core::policy::Check;
use cohort_core::release::{Release, Rollback};
use cohort_core::steps::{Moment, StepAction, Told, next_action};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::app_host::{Acted, AppHost, AppHostConfig, Controls};
use crate::cgroup::Cgroups;
use crate::guard::{GuardClient, GuardConfig};
use crate::launch::Launch;
use crate::own_values::OwnValues;
use crate::program::{Programs, RunAs};
use crate::record::HostError;
use crate::service::ServiceControl as _;

/// A file of an archive: path, mode, content.
pub(crate) type File<'a> = (&'a str, u32, &'a str);

/// A golden file of this crate.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A plain tar of some files; without any mode: a link, to the content.
pub(crate) fn tar_of(files: &[File<'_>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, mode, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(*mode);
        if *mode == 0 {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, path, text).unwrap();
            continue;
        }
        tar.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A release whose artifact exists nowhere.
pub(crate) fn release_of(version: &str) -> Release {
    Release {
        version: version.parse().unwrap(),
        platform: "linux/amd64".parse().unwrap(),
        artifact: blake3::hash(version.as_bytes()).to_hex().to_string().parse().unwrap(),
        manifest: "0".repeat(64).parse().unwrap(),
        length: 1,
        unpacked_bytes: 64 << 30,
        entries: 250_000,
        rollback: Rollback::Revert,
    }
}

/// Puts an artifact where the host expects it.
pub(crate) fn put(state_dir: &Path, version: &str, bytes: &[u8]) -> Release {
    let digest = blake3::hash(bytes).to_hex().to_string();
    let folder = state_dir.join("artifacts");
    fs::create_dir_all(&folder).unwrap();
    fs::File::create(folder.join(&digest)).unwrap().write_all(bytes).unwrap();
    let (artifact, length) = (digest.parse().unwrap(), bytes.len() as u64);
    Release { artifact, length, ..release_of(version) }
}

/// A service that prints its version and runs `script`, and hooks.
pub(crate) fn artifact(version: &str, script: &str, hooks: &[(&str, &str)]) -> Vec<u8> {
    let toml =
        "[service]\ncommand = [\"./run\"]\nstop_timeout = \"2s\"\n[hooks]\ntimeout = \"20s\"\n";
    let script = format!("#!/bin/sh\necho running {version}\n{script}\n");
    let mut files = vec![("cohort.toml", 0o644, toml.to_owned()), ("run", 0o755, script)];
    let hooks: Vec<(String, String)> = hooks
        .iter()
        .map(|(name, script)| (format!("hooks/{name}"), format!("#!/bin/sh\n{script}\n")))
        .collect();
    for (name, script) in &hooks {
        files.push((name, 0o755, script.clone()));
    }
    let files: Vec<File<'_>> = files.iter().map(|(p, m, t)| (*p, *m, t.as_str())).collect();
    tar_of(&files)
}

/// A service that runs until it is stopped.
pub(crate) const SLEEP: &str = "exec sleep 600";

/// A server: directories, and a guard in this process.
pub(crate) struct TestServer {
    pub(crate) folder: TempDir,
    pub(crate) guard: Arc<GuardClient>,
    running: JoinHandle<()>,
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (folder_of_guard, confine) = (folder.path().join("guard"), Launch::confine_for_tests());
        let config = GuardConfig { folder: folder_of_guard, detach: false, confine };
        let guard = Arc::new(GuardClient::new(config.folder.clone(), None));
        let running = tokio::spawn(async move { crate::guard::serve(&config).await.unwrap() });
        until("the guard listens", || async { guard.status("web").await.is_ok() }).await;
        TestServer { folder, guard, running }
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(crate) fn release(&self, version: &str, script: &str, hooks: &[(&str, &str)]) -> Release {
        put(&self.state_dir(), version, &artifact(version, script, hooks))
    }

    pub(crate) fn host(&self) -> AppHost {
        let config = AppHostConfig {
            state_dir: self.state_dir(),
            install_dir: self.folder.path().join("web"),
            server: "s1".parse().unwrap(),
            group: "intel.zone-a".parse().unwrap(),
            platform: "linux/amd64".parse().unwrap(),
            service_address: None,
            own_values: Arc::new(OwnValues::of(
                &"web".parse().unwrap(),
                Some(1),
                BTreeMap::new(),
                BTreeMap::new(),
            )),
            // The current user, which needs no privileges; so the code for another user runs too.
            run_as: Some(RunAs {
                uid: rustix::process::getuid().as_raw(),
                gid: rustix::process::getgid().as_raw(),
            }),
            home: None,
            files_dir: self.folder.path().join("files.d/web"),
            env_file: self.folder.path().join("env.d/web.env"),
            systemd_units: Arc::new(["web.service".to_owned()].into()),
            programs: Programs::new(
                Launch::confine_for_tests(),
                Cgroups::of(&self.state_dir()).unwrap_or_default(),
            ),
            host_programs: Arc::new(BTreeMap::new()),
        };
        let controls = Controls { guard: self.guard.clone(), systemd: None };
        AppHost::open(config, "web".parse().unwrap(), controls).unwrap()
    }

    /// The guard's events, as `kind key`.
    pub(crate) fn events(&self) -> Vec<String> {
        let path = self.folder.path().join("guard").join(crate::guard::EVENTS_FILE);
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .map(|line| {
                let event: crate::guard::Event = serde_json::from_str(line).unwrap();
                format!("{:?} {}", event.event, event.key).to_lowercase()
            })
            .collect()
    }

    pub(crate) async fn end(mut self) {
        self.end_guard().await;
    }

    /// Ends the service, then the guard.
    pub(crate) async fn end_guard(&mut self) {
        self.guard.stop("web", Duration::from_secs(10)).await.unwrap();
        self.running.abort();
        assert!((&mut self.running).await.is_err_and(|ended| ended.is_cancelled()));
    }
}

impl AppHost {
    /// What [`next_action`] needs to know besides the orders.
    pub(crate) fn moment(&self, told: Told) -> Moment {
        self.record().moment(told, self.reached(), self.now())
    }

    pub(crate) fn undo_left_ms(&self) -> Option<u64> {
        self.record().undo_left_ms(self.reached(), self.now())
    }
}

/// An order to run `release` under generation `generation`.
pub(crate) fn order(generation: u64, release: Option<&Release>) -> ActivationOrder {
    ActivationOrder {
        fence: Fence { incarnation: Incarnation(1), generation: Generation(generation) },
        release: release.cloned(),
        undo_to: None,
        purpose: Purpose::Wave,
        avoid: vec!["s2".parse().unwrap(), "s3".parse().unwrap()],
        drain_ms: 0,
        min_healthy_ms: 50,
        healthy_deadline_ms: 5_000,
        confirm_within_ms: 60_000,
        warm_up_ms: 0,
        stop_despite_hooks: false,
        checks: Vec::<Check>::new(),
        hold: None,
    }
}

pub(crate) fn orders(activation: &ActivationOrder) -> AppOrders {
    AppOrders {
        owes: false,
        in_service: Some(false),
        app: "web".parse().unwrap(),
        fetch: Vec::new(),
        activation: Some(activation.clone()),
        run: None,
        checks: Vec::new(),
        trial: None,
        keep: Vec::new(),
        holds: Vec::new(),
    }
}

/// Acts until only new orders could continue. Returns the last action.
pub(crate) async fn settle(
    host: &mut AppHost,
    order: &ActivationOrder,
) -> Result<StepAction, HostError> {
    let orders = orders(order);
    let cancel = CancellationToken::new();
    loop {
        let held: Vec<_> = order.release.iter().map(|release| release.artifact.clone()).collect();
        let moment = host.moment(Told { orders_fresh: true, confirmed: true, ..Told::default() });
        let action = next_action(Some(&orders), host.local(), &held, moment).step;
        if matches!(action, StepAction::Settled | StepAction::Wait(_)) {
            return Ok(action);
        }
        let acted = host.act(action, &cancel).await?;
        assert!(!matches!(acted, Acted::Nothing | Acted::Refused), "{acted:?}");
    }
}

/// Waits for a condition for at most ten seconds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "not seen: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
