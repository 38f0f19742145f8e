//! Services of a guard whose directory was removed. They still hold their ports.

use std::time::Duration;

use super::state::{GROUND, INSTANCE, RELEASES, by_environment};
use crate::process::Watched;
use crate::service::{RunService, ServiceCommand, ServiceSpec};

/// Ends processes of this service that the guard of another directory than `ground` started: nobody
/// else will.
pub(super) async fn end(spec: &ServiceSpec, ground: &str) {
    let RunService::Command(command) = &spec.run else { return };
    for process in find(&spec.name, command, ground) {
        let (service, pid) = (&spec.name, process.pid().as_raw_nonzero());
        tracing::warn!(service, pid, "ending what a guard left behind that lost its directory");
        let grace = Duration::from_millis(command.stop_timeout_ms);
        process.stop_group(command.stop_signal.into(), grace).await;
    }
}

/// By the name of the service, because others may run from the same directory of releases; and by
/// the latter, because another server on this machine may have a service of this name. What a
/// service of this guard started, and left running, is the service's own affair.
fn find(name: &str, command: &ServiceCommand, ground: &str) -> Vec<Watched> {
    let Some(releases) = releases(command) else { return Vec::new() };
    let (instance, releases) = (format!("{INSTANCE}={name}."), format!("{RELEASES}={releases}"));
    let ground = format!("{GROUND}={ground}");
    by_environment(|entries| {
        entries.contains(&releases.as_str())
            && !entries.contains(&ground.as_str())
            && entries.iter().any(|entry| entry.starts_with(&instance))
    })
}

/// The directory of the app's releases, as text.
pub(super) fn releases(command: &ServiceCommand) -> Option<&str> {
    command.folder.parent()?.to_str()
}
