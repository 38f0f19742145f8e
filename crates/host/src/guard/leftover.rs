//! Services of a guard whose directory was removed. They still hold their ports.

use std::time::Duration;

use super::state::{GROUND, INSTANCE, RELEASES, by_environment};
use crate::process::Watched;
use crate::service::{RunService, ServiceCommand, ServiceSpec};

/// Ends processes of this service that the guard of another directory than `ground` started: nobody
/// else will. All at the same time: others could give their processes the same variables.
pub(super) async fn end(spec: &ServiceSpec, ground: &str) {
    let RunService::Command(command) = &spec.run else { return };
    let grace = Duration::from_millis(command.stop_timeout_ms);
    let found = find(spec, command, ground);
    let ended = found.iter().map(|process| {
        let (service, pid) = (&spec.name, process.pid().as_raw_nonzero());
        tracing::warn!(service, pid, "ending what a guard left behind that lost its directory");
        process.stop_group(command.stop_signal.into(), grace, None)
    });
    futures_util::future::join_all(ended).await;
}

/// By the name of the service, because others may run from the same directory of releases; and by
/// the latter, because another server on this machine may have a service of this name.
fn find(spec: &ServiceSpec, command: &ServiceCommand, ground: &str) -> Vec<Watched> {
    let (Some(releases), Some(uid)) = (releases(command), spec.user()) else { return Vec::new() };
    let instance = format!("{INSTANCE}={}.*", spec.name);
    let releases = format!("{RELEASES}={releases}");
    by_environment(&[uid], &[&instance, &releases], &[&format!("{GROUND}={ground}")])
}

/// The directory of the app's releases, as text.
pub(super) fn releases(command: &ServiceCommand) -> Option<&str> {
    command.folder.parent()?.to_str()
}
