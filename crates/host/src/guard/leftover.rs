//! Services of a guard whose directory was removed. They still hold their ports.

use std::time::Duration;

use super::state::{INSTANCE, RELEASES, by_environment};
use crate::process::Watched;
use crate::service::{RunService, ServiceCommand, ServiceSpec};

/// Ends processes of this service that an earlier guard started, and that this one, which has none,
/// knows nothing of.
pub(super) async fn end(spec: &ServiceSpec) {
    let RunService::Command(command) = &spec.run else { return };
    for process in find(&spec.name, command) {
        let (service, pid) = (&spec.name, process.pid().as_raw_nonzero());
        tracing::warn!(service, pid, "ending what a guard left behind that lost its directory");
        let grace = Duration::from_millis(command.stop_timeout_ms);
        process.stop_group(command.stop_signal.into(), grace).await;
    }
}

/// By the name of the service, because others may run from the same directory; and by the
/// directory, because another server on this machine may have a service of this name.
fn find(name: &str, command: &ServiceCommand) -> Vec<Watched> {
    let Some(releases) = releases(command) else { return Vec::new() };
    let (instance, releases) = (format!("{INSTANCE}={name}."), format!("{RELEASES}={releases}"));
    by_environment(|entries| {
        entries.contains(&releases.as_str())
            && entries.iter().any(|entry| entry.starts_with(&instance))
    })
}

/// The directory of the app's releases, as text.
pub(super) fn releases(command: &ServiceCommand) -> Option<&str> {
    command.folder.parent()?.to_str()
}
