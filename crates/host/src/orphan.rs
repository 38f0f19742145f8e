//! Hooks that outlive a killed agent: found through a note, ended before a hook runs again.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::process::{Watched, start_ticks};

/// Time for an orphan between TERM and KILL.
const GRACE: Duration = Duration::from_secs(2);

/// Notes a running process: version 1, number, start time, boot. Not synced: after a reboot, no
/// such process exists.
pub(crate) fn note(path: &Path, pid: Pid) {
    if let Some(ticks) = start_ticks(pid) {
        let text = format!("1 {} {ticks} {}", pid.as_raw_nonzero(), crate::clock::boot_id());
        if let Err(error) = fs::write(path, text) {
            tracing::warn!(path = %path.display(), %error, "cannot note a running hook");
        }
    }
}

pub(crate) fn forget(path: &Path) {
    let _absent = fs::remove_file(path);
}

/// Ends the noted process group, if that same process is still running.
pub(crate) async fn end(path: &Path) {
    let Ok(text) = fs::read_to_string(path) else { return };
    if let Some(watched) = noted(&text) {
        tracing::info!(pid = %watched.pid().as_raw_nonzero(), "ending a hook of an earlier agent");
        watched.stop_group(Signal::TERM, GRACE, None).await;
    }
    forget(path);
}

fn noted(text: &str) -> Option<Watched> {
    let mut words = text.strip_prefix("1 ")?.split(' ');
    let pid = Pid::from_raw(words.next()?.parse().ok()?)?;
    let ticks: u64 = words.next()?.parse().ok()?;
    if words.next()? != crate::clock::boot_id() {
        return None;
    }
    Watched::started_at(pid, ticks)
}
