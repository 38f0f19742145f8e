//! The live view: groups × waves × steps, with the reason of every wait.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use cohort_core::phase::PhaseName;
use cohort_core::waiting::WaitingOn;
use cohort_trial::watch::app;
use cohort_view::{transfer, waiting};
use cohort_wire::agent::{AppStatus, GroupStatus};

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
        groups: &[GroupStatus],
    ) {
        if self.quiet {
            return;
        }
        let lines: Vec<String> = groups.iter().flat_map(lines_of).collect();
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

/// A group: its state, a sign per server, and what it waits on.
fn lines_of(status: &GroupStatus) -> Vec<String> {
    let Some(app) = app(status) else { return vec![format!("{:14} no app yet", status.group)] };
    let servers: String = app.servers.values().map(|server| sign(app, server)).collect();
    let target = app.target.as_ref().map_or(String::new(), |target| format!(" {target}"));
    let good = app.last_good.as_ref().map_or("nothing".to_owned(), ToString::to_string);
    let wave = if app.wave > 0 { format!(" wave {}", app.wave) } else { String::new() };
    let head = format!("{:14} {:8} {servers} {}{target}{wave}", status.group, good, app.state);
    let mut lines = vec![head];
    if let Some(reason) = &app.reason {
        lines.push(format!("{:14} because {reason}", ""));
    }
    for wait in &app.waiting {
        if app.state != PhaseName::Running || wait.on != WaitingOn::NewRelease {
            lines.push(format!("{:14} {}", "", waiting::sentence(&wait.on)));
        }
    }
    for transfer in status.transfers.iter().filter(|transfer| transfer.under_way) {
        lines.push(format!("{:14} {}", "", transfer::sentence(transfer)));
    }
    lines
}

/// `●` on the good release, `◉` on the target, `○` being changed, `·` out of service.
fn sign(app: &AppStatus, server: &cohort_wire::agent::ServerAppStatus) -> char {
    if server.activation.is_some() {
        '○'
    } else if !server.in_service {
        '·'
    } else if app.target.is_some() && server.running == app.target {
        '◉'
    } else {
        '●'
    }
}
