//! The live view: `cohort status` of the whole fleet.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use cohort_view::report::{Asked, FleetReport, Origin, Picture};
use cohort_view::status::fleet;
use cohort_view::table::Look;
use cohort_wire::agent::GroupStatus;

/// Redraws itself on a terminal; prints only changes elsewhere.
pub(crate) struct View {
    live: bool,
    lines: usize,
    last: Vec<String>,
    quiet: bool,
}

impl View {
    pub(crate) fn new(exit: bool) -> View {
        let live = !exit && std::io::stdout().is_terminal();
        View { live, lines: 0, last: Vec::new(), quiet: exit }
    }

    pub(crate) fn draw(
        &mut self,
        act: u32,
        release: &str,
        elapsed: Duration,
        groups: Vec<GroupStatus>,
    ) {
        if self.quiet {
            return;
        }
        let lines: Vec<String> = text(groups).lines().map(str::to_owned).collect();
        if !self.live {
            for line in lines.iter().filter(|line| !self.last.contains(line)) {
                println!("{line}");
            }
            self.last = lines;
            return;
        }
        let mut out = std::io::stdout().lock();
        if self.lines > 0 {
            let _ = write!(out, "\x1b[{}A\x1b[J", self.lines);
        }
        let _ = writeln!(out, "act {act}, {release}, {} s", elapsed.as_secs());
        for line in &lines {
            let _ = writeln!(out, "{line}");
        }
        self.lines = lines.len() + 1;
    }
}

fn text(groups: Vec<GroupStatus>) -> String {
    let asked = |status: GroupStatus| Asked {
        group: status.group.clone(),
        status: Ok(status),
        registry: BTreeMap::new(),
        joined: BTreeSet::new(),
    };
    let groups = groups.into_iter().map(asked).collect();
    let picture = Picture { origin: Origin::Agent, apps: BTreeSet::new(), groups };
    fleet(&FleetReport::of(picture, 0), Look::PLAIN, true)
}
