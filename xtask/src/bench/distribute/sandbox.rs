//! Namespaces for everything that a measurement creates, so that nothing of it can be left over.
//!
//! The benchmark runs itself again inside: its network (where it is the switch), its mounts (files
//! in memory) and its processes end with it, however it ends. A shell that outlives both processes
//! removes what is on the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::build::succeed;
use crate::packages;

/// Set inside the namespaces: the directory of this run.
const FOLDER: &str = "COHORT_BENCH_FOLDER";

/// Runs `"$@"` in namespaces, and then removes `$COHORT_BENCH_FOLDER`: all of it on success or
/// interruption, otherwise all but the logs.
const GUARDIAN: &str = r#"
unshare --mount --net --pid --fork --kill-child --mount-proc -- "$@" &
child=$!
stopped=
trap 'stopped=yes; kill -9 "$child" 2>/dev/null' INT TERM HUP
wait "$child"
status=$?
if [ "$stopped" ]; then
    # Processes of the namespace end now.
    sleep 0.5
    status=130
fi
if [ "$status" = 0 ] || [ "$stopped" ]; then
    rm -rf "$COHORT_BENCH_FOLDER"
else
    rm -rf "$COHORT_BENCH_FOLDER/memory" "$COHORT_BENCH_FOLDER/disk"
fi
exit "$status"
"#;

/// Limit of files in memory, so that a bug does not take the machine down.
const MEMORY: &str = "size=70%";

/// The directory of this run, if this process is inside.
pub(super) fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// Runs this command again inside, after `prepare` has put into its directory what has to come from
/// outside. True on success.
pub(super) fn enter(disk: &Path, prepare: impl FnOnce(&Path)) -> Result<bool> {
    ensure!(
        packages::is_root(),
        "network namespaces with limited links take root: run it as root, or in a container that \
         has CAP_NET_ADMIN and CAP_SYS_ADMIN"
    );
    for tool in ["ip", "tc", "ss"] {
        packages::need(tool, "-V", "iproute2")?;
    }
    let folder = disk.join(format!("cohort-bench-{}", std::process::id()));
    for part in ["memory", "disk", "logs"] {
        fs::create_dir_all(folder.join(part))?;
    }
    prepare(&folder.join("disk"));
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "sh", "-c", GUARDIAN, "guardian"])
        .arg(std::env::current_exe().context("this program's own path")?)
        .args(std::env::args_os().skip(1))
        .env(FOLDER, &folder)
        .status()
        .context("setpriv (of the package util-linux)")?;
    if folder.exists() {
        bail!("some rows could not be measured; logs are in {}", folder.join("logs").display());
    }
    Ok(status.success())
}

/// Sets up the inside: files in memory, and private named network namespaces.
pub(super) fn furnish(folder: &Path) -> Result<()> {
    let named = Path::new("/run/netns");
    fs::create_dir_all(named)?;
    for place in [folder.join("memory").as_path(), named] {
        let mut mount = Command::new("mount");
        succeed(mount.args(["-t", "tmpfs", "-o", MEMORY, "tmpfs"]).arg(place))?;
    }
    succeed(Command::new("ip").args(["link", "set", "lo", "up"]))
}
