//! CPU time of processes, as the kernel counts it.

use std::collections::BTreeMap;
use std::fs;

/// Clock ticks per second in `/proc`; 100 on every architecture since Linux 2.6.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seconds {
    pub user: f64,
    pub system: f64,
}

impl Seconds {
    pub(super) fn all(self) -> f64 {
        self.user + self.system
    }

    pub(super) fn since(self, before: Seconds) -> Seconds {
        Seconds { user: self.user - before.user, system: self.system - before.system }
    }
}

/// Seconds used by these processes and their living descendants; exited processes do not count.
pub(super) fn seconds_of(pids: impl IntoIterator<Item = u32>) -> Seconds {
    let all = processes();
    let (mut user, mut system) = (0, 0);
    let mut open: Vec<u32> = pids.into_iter().collect();
    while let Some(pid) = open.pop() {
        let Some(process) = all.get(&pid) else { continue };
        user += process.user_ticks;
        system += process.system_ticks;
        open.extend(all.iter().filter(|(_, other)| other.parent == pid).map(|(pid, _)| *pid));
    }
    let seconds = |ticks: u64| ticks as f64 / TICKS_PER_SECOND;
    Seconds { user: seconds(user), system: seconds(system) }
}

struct Process {
    parent: u32,
    user_ticks: u64,
    system_ticks: u64,
}

fn processes() -> BTreeMap<u32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Fields after the name, which may contain anything: state, parent, …
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
        let parent = u32::try_from(number(1)?).ok()?;
        Some((pid, Process { parent, user_ticks: number(11)?, system_ticks: number(12)? }))
    })
    .collect()
}
