//! A hostile release, run as a user who owns nothing: its hooks and its service try to change what
//! root runs, and to outlive their service.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use anyhow::{Context as _, Result, ensure};
use cohort_trial::release::WebRelease;
use cohort_trial::watch::runs;

use crate::trial::{GROUP, ONE_BY_ONE, PATIENCE, PLATFORM, Trial, Wanted, policy};

/// Nobody and nogroup.
const NOBODY: u32 = 65_534;

/// Each line tries one thing and notes it if it worked. What it starts at the end belongs to no
/// process group, session or parent of the service's; its duration is unique.
const ATTACK: &str = r#"#!/bin/sh
log="$COHORT_STATE_DIR/attack"
: > "$log"
won() { echo "$1" >> "$log"; }
root=$(dirname "$(dirname "$COHORT_RELEASE_DIR")")
echo x 2>/dev/null > "$COHORT_RELEASE_DIR/new" && won "wrote into its release"
echo x 2>/dev/null >> "$COHORT_RELEASE_DIR/cohort.toml" && won "changed its cohort.toml"
mv "$COHORT_RELEASE_DIR/bin" "$COHORT_RELEASE_DIR/old" 2>/dev/null && won "moved its programs"
marker="$COHORT_RELEASE_DIR/.cohort-release.json"
rm -f "$marker" 2>/dev/null; [ -e "$marker" ] || won "removed the marker"
mkdir "$root/releases/9.9.9-000000000000" 2>/dev/null && won "made a release"
ln -sfn /tmp "$root/current" 2>/dev/null && won "moved the current link"
mv "$root" "$root-old" 2>/dev/null && won "moved the app"
ls "$root/../../data" >/dev/null 2>&1 && won "read the agent's data"
[ "$(id -u)" = 65534 ] || won "runs as $(id)"
[ "$(grep NoNewPrivs /proc/self/status | tr -dc 0-9)" = 1 ] || won "may gain privileges"
echo hello > "$COHORT_STATE_DIR/kept" || won "could not write where it may"
exit 0
"#;
const STAYS: &str = "86391";

#[test]
fn a_release_that_runs_as_another_user_changes_nothing_of_roots_and_ends_whole() -> Result<()> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        eprintln!("not root: not tested");
        return Ok(());
    }
    let agent_toml = "service_user = \"65534:65534\"\n".to_owned();
    let trial =
        Trial::start("service-user", &Wanted { servers: 3, agent_toml, ..Wanted::default() })?;
    for agent in trial.agents().values() {
        for above in agent.dir.ancestors().take_while(|above| above.starts_with(trial.dir())) {
            fs::set_permissions(above, Permissions::from_mode(0o755))?;
        }
    }
    let stays = format!(
        "#!/bin/sh\nenv -i setsid -f sleep {STAYS}\nexec ./bin/web --port $COHORT_SERVICE_PORT\n"
    );
    let mut release = WebRelease::new("1.0.0").hook("after-install", ATTACK).hook("run", &stays);
    release.cohort_toml = Some(
        "[service]\ncommand = [\"./hooks/run\"]\nstop_timeout = \"3s\"\npids_max = 50\n".to_owned(),
    );
    trial.first_release(&policy(ONE_BY_ONE, ""), &release)?;
    for (server, agent) in trial.agents() {
        let app = agent.dir.join("apps/web");
        let won = fs::read_to_string(app.join("state/attack"))
            .with_context(|| format!("{server}: the attack did not run"))?;
        ensure!(won.is_empty(), "{server}: {won}");
        ensure!(fs::metadata(app.join("state"))?.uid() == NOBODY);
        for own in ["", "releases", "current/", "current/bin/web", "current/cohort.toml"] {
            let owner = fs::metadata(app.join(own))?.uid();
            ensure!(owner == 0, "{server}: {own} belongs to {owner}");
        }
    }
    let started =
        || trial.processes_left().into_iter().filter(|(_, it)| it.contains(STAYS)).count();
    let confined = started() == 3;
    for server in trial.agents().keys() {
        let lacks = trial.figure(server, "cohort_lacking_info")?;
        let count = trial.figure(server, "cohort_service_processes{app=\"web\"}")?;
        let memory = trial.figure(server, "cohort_service_memory_bytes")?;
        // Where the machine counts: the server, and what it left behind on purpose.
        ensure!(lacks > 0.0 || count >= 2.0 && memory > 0.0, "{server}: {count} in {memory}");
    }
    trial.publish(&WebRelease::new("1.1.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0"))?;
    for agent in trial.agents().values() {
        let kept = fs::read_to_string(agent.dir.join("apps/web/state/kept"))?;
        ensure!(kept == "hello\n", "a release keeps what an earlier one wrote");
    }
    ensure!(confined, "the service did not start what should outlive it");
    ensure!(started() == 0, "what the service started outlived it");
    trial.pass()
}
