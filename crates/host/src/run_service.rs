//! From a release to its service, and the variables for its programs.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cohort_core::release::Release;
use cohort_core::report::Blame;

use crate::app_host::AppHost;
use crate::interrupt::{Interrupt, failure};
use crate::own_values::names_port;
use crate::program::base_environment;
use crate::service::{
    RunService, ServiceCommand, ServiceControl, ServiceError, ServiceSpec, ServiceType,
};
use crate::service_file::{STOP_TIMEOUT_DEFAULT, Service, address};
use crate::{own_env, own_files};

/// A service and the manager that runs it.
#[derive(Debug)]
pub(crate) struct RunningService {
    pub(crate) control: Arc<dyn ServiceControl>,
    pub(crate) spec: ServiceSpec,
}

impl AppHost {
    /// The manager that runs the current release's service, and the service's name there, for
    /// [`RunningChecks`](crate::RunningChecks). `None` if the release has no service.
    #[must_use]
    pub fn running_service(&self) -> Option<(Arc<dyn ServiceControl>, String)> {
        let current = self.record.local.current.as_ref()?;
        let service = self.service_of(current, "status").ok()??;
        Some((service.control, service.spec.name))
    }

    /// The service of a release, to be run under `key`.
    pub(crate) fn service_of(
        &self,
        release: &Release,
        key: &str,
    ) -> Result<Option<RunningService>, Interrupt> {
        let Some(service) = self.service_file(release)?.service else { return Ok(None) };
        let (control, name, run) = match &service.systemd_unit {
            Some(unit) if !self.config.systemd_units.contains(unit) => {
                let reason = format!(
                    "this server lets no release run {unit}: `systemd_units` in agent.toml is the \
                     list of those that one may"
                );
                return Err(failure(Blame::Surroundings, reason).into());
            }
            Some(unit) => {
                let systemd = self.controls.systemd.as_ref().ok_or_else(|| {
                    let reason = format!("this server has no systemd to run {unit}");
                    failure(Blame::Surroundings, reason)
                })?;
                (systemd, unit.clone(), RunService::Unit)
            }
            None => {
                let command = self.command(release, &service)?;
                (&self.controls.guard, self.app.to_string(), RunService::Command(Box::new(command)))
            }
        };
        let (key, release) = (key.to_owned(), release.artifact.to_string());
        let spec = ServiceSpec { name, key, release, run };
        Ok(Some(RunningService { control: Arc::clone(control), spec }))
    }

    /// Starts a service, with the server's own variables.
    pub(crate) async fn start_service(&self, service: RunningService) -> Result<(), ServiceError> {
        let RunningService { control, mut spec } = service;
        if let RunService::Command(command) = &mut spec.run {
            // Cohort's own stay what they are: the file has none of them.
            command.env.extend(self.own_env()?);
            self.own_files()?;
        }
        control.start(&spec).await
    }

    /// The server's own variables for the app.
    pub(crate) fn own_env(&self) -> Result<BTreeMap<String, String>, ServiceError> {
        let read = own_env::read(&self.config.env_file, self.config.run_as);
        read.map_err(|source| ServiceError::Environment { source })
    }

    /// Checks that nobody else can read the server's own files for the app.
    pub(crate) fn own_files(&self) -> Result<(), ServiceError> {
        let checked = own_files::check(&self.config.files_dir, self.config.run_as);
        checked.map_err(|source| ServiceError::Environment { source })
    }

    fn command(&self, release: &Release, service: &Service) -> Result<ServiceCommand, Interrupt> {
        let folder = self.releases.path_of(release);
        let config = &self.config;
        let variables = self.service_variables(release);
        let filled = |text: &String| config.own_values.fill_in(text, &variables);
        let words: Vec<String> = service.command.iter().map(filled).collect::<Result<_, _>>()?;
        let (program, args) =
            words.split_first().expect("cohort.toml is refused when it has no command and no unit");
        let mut env = base_environment(config.home.as_deref());
        for (name, value) in &service.env {
            env.insert(name.clone(), filled(value)?);
        }
        let mut listen = BTreeMap::new();
        for (name, at) in &service.listen {
            let at = filled(at)?;
            let address = address(&at, config.service_address).ok_or_else(|| {
                let reason = format!("service.listen.{name}: `{at}` is no address and port");
                failure(Blame::Release, reason)
            })?;
            listen.insert(name.clone(), address);
        }
        env.extend(variables);
        let notifies = service.kind == ServiceType::Notify;
        let in_runtime_dir = |name: &String| self.releases.runtime_dir().join(name);
        Ok(ServiceCommand {
            program: program_path(&folder, program),
            args: args.to_vec(),
            env,
            folder,
            kind: service.kind,
            pid_file: service.pid_file.as_ref().map(in_runtime_dir),
            notify: notifies.then(|| self.releases.notify_socket()),
            watchdog_ms: service.watchdog.map(|most| most.ms),
            ports: self.ports_of(service, &listen),
            listen,
            stop_signal: service.stop_signal,
            stop_timeout_ms: service.stop_timeout.ms,
            run_as: config.run_as,
            capabilities: service.capabilities.clone(),
            isolation: service.isolation(&self.releases.own_dirs()),
            limits: service.limits(),
        })
    }

    /// Where the service listens itself, as far as it says so: at the app's own port.
    fn ports_of(
        &self,
        service: &Service,
        listen: &BTreeMap<String, SocketAddr>,
    ) -> Vec<SocketAddr> {
        let port = self.config.own_values.port();
        let mut words = service.command.iter().chain(service.env.values());
        let is_named = words.any(|word| names_port(word));
        let own = port.filter(|port| is_named && listen.values().all(|at| at.port() != *port));
        let address = self.config.service_address.unwrap_or(Ipv4Addr::LOCALHOST.into());
        own.map(|port| SocketAddr::new(address, port)).into_iter().collect()
    }

    /// Stops the app's service: the unit that `release` names, or the command.
    pub(crate) async fn stop_service(&self, release: Option<&Release>) -> Result<(), ServiceError> {
        // A release whose file is no longer readable is stopped too.
        let service = release.and_then(|release| self.service_file(release).ok()?.service);
        let at_most = service.as_ref().map_or(STOP_TIMEOUT_DEFAULT, |service| service.stop_timeout);
        let at_most = Duration::from_millis(at_most.ms);
        // One that no release may name was never started for one; the list may have changed since
        // the current one started.
        let is_current = release == self.record.local.current.as_ref();
        let may_run = |unit: &String| is_current || self.config.systemd_units.contains(unit);
        let unit = service.and_then(|service| service.systemd_unit);
        if let Some(unit) = unit.filter(may_run) {
            let source = || format!("it did not answer the agent's start, and runs {unit}").into();
            let gone = || ServiceError::Unreachable { manager: "systemd", source: source() };
            let systemd = self.controls.systemd.as_ref().ok_or_else(gone)?;
            return systemd.stop(&unit, at_most).await;
        }
        self.controls.guard.stop(self.app.as_str(), at_most).await
    }

    /// Variables for a release's service and its checks.
    pub(crate) fn service_variables(&self, release: &Release) -> BTreeMap<String, String> {
        let config = &self.config;
        let mut variables = config.own_values.variables();
        let mut set = |name: &str, value: String| variables.insert(name.to_owned(), value);
        set("COHORT_APP", self.app.to_string());
        set("COHORT_VERSION", release.version.to_string());
        set("COHORT_PLATFORM", config.platform.to_string());
        set("COHORT_SERVER", config.server.to_string());
        set("COHORT_GROUP", config.group.to_string());
        set("COHORT_RELEASE_DIR", self.releases.path_of(release).display().to_string());
        set("COHORT_STATE_DIR", self.releases.state_dir().display().to_string());
        set("COHORT_CACHE_DIR", self.releases.cache_dir().display().to_string());
        set("COHORT_RUNTIME_DIR", self.releases.runtime_dir().display().to_string());
        set("COHORT_FILES_DIR", config.files_dir.display().to_string());
        variables
    }
}

/// A relative path with a `/` is inside the release; a bare name is looked up in `PATH`.
pub(crate) fn program_path(folder: &Path, program: &str) -> PathBuf {
    if program.contains('/') { folder.join(program) } else { PathBuf::from(program) }
}
