//! What a program may use, and what it uses: the kernel's files in its cgroups.

use std::fs;
use std::io;
use std::path::Path;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// The smallest memory in which a program can start at all.
const MEMORY_MIN: ByteSize = ByteSize::mib(1);

/// The range of `cpu.weight`, and its default (cgroups(7)).
const WEIGHT_MAX: u64 = 10_000;
const WEIGHT_DEFAULT: u64 = 100;

/// The default of `cpu.shares`, which version 1 has instead, and its smallest value.
const SHARES_DEFAULT: u64 = 1024;
const SHARES_MIN: u64 = 2;

/// The most processes of a Linux system.
const PIDS_MAX: u64 = 1 << 22;

/// What a program and all that it starts may use together. By default, as much as there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes of memory, of which nothing is swapped; beyond, the kernel kills.
    pub memory_max: Option<ByteSize>,
    /// Its share of the processors where they do not suffice, 1 to 10,000; others have 100.
    pub cpu_weight: Option<u64>,
    /// Processes and threads; beyond, it can start none.
    pub pids_max: Option<u64>,
}

/// What a program and all that it has started use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Bytes, including files in memory.
    pub memory: Option<u64>,
    /// Processor time since it started, in microseconds.
    pub cpu_us: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl Limits {
    /// # Errors
    /// If a value is out of range, for people.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.memory_max.is_some_and(|max| max < MEMORY_MIN) {
            return Err("service.memory_max is less than 1 MiB".to_owned());
        }
        if self.cpu_weight.is_some_and(|weight| !(1..=WEIGHT_MAX).contains(&weight)) {
            return Err(format!("service.cpu_weight is not 1 to {WEIGHT_MAX}"));
        }
        if self.pids_max.is_some_and(|max| !(1..=PIDS_MAX).contains(&max)) {
            return Err(format!("service.pids_max is not 1 to {PIDS_MAX}"));
        }
        Ok(())
    }

    /// Writes them into those files that a cgroup has: each version and each controller has others.
    pub(super) fn set(&self, cgroup: &Path) -> io::Result<()> {
        let shares = |weight: u64| (weight * SHARES_DEFAULT / WEIGHT_DEFAULT).max(SHARES_MIN);
        let memory = self.memory_max.map(|max| max.as_u64());
        // Nothing is swapped instead; in version 1, both together have the limit.
        let swap = memory.map(|_| 0);
        let files = [
            ("memory.max", memory),
            ("memory.swap.max", swap),
            ("memory.limit_in_bytes", memory),
            ("memory.memsw.limit_in_bytes", memory),
            ("cpu.weight", self.cpu_weight),
            ("cpu.shares", self.cpu_weight.map(shares)),
            ("pids.max", self.pids_max),
        ];
        for (name, value) in files {
            let file = cgroup.join(name);
            if let Some(value) = value.filter(|_| file.exists()) {
                fs::write(file, value.to_string())?;
            }
        }
        Ok(())
    }
}

impl Usage {
    /// Adds what the files of one cgroup say.
    pub(super) fn read(&mut self, cgroup: &Path) {
        let number = |name| read(cgroup, name)?.trim().parse::<u64>().ok();
        let memory = number("memory.current").or_else(|| number("memory.usage_in_bytes"));
        let nanoseconds = number("cpuacct.usage").map(|ns| ns / 1000);
        let cpu_us = field(cgroup, "cpu.stat", "usage_usec").or(nanoseconds);
        self.memory = self.memory.or(memory);
        self.cpu_us = self.cpu_us.or(cpu_us);
        self.pids = self.pids.or(number("pids.current"));
    }
}

/// Whether the kernel has killed something in this cgroup because memory ran out.
pub(super) fn ran_out_of_memory(cgroup: &Path) -> bool {
    let killed = |file| field(cgroup, file, "oom_kill").is_some_and(|count| count > 0);
    killed("memory.events") || killed("memory.oom_control")
}

fn read(cgroup: &Path, name: &str) -> Option<String> {
    fs::read_to_string(cgroup.join(name)).ok()
}

/// A number in a file of `NAME NUMBER` lines.
fn field(cgroup: &Path, file: &str, name: &str) -> Option<u64> {
    let text = read(cgroup, file)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_files_of_its_own() {
        let limits = Limits {
            memory_max: Some(ByteSize::mib(64)),
            cpu_weight: Some(50),
            pids_max: Some(20),
        };
        let all = [
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("memory.limit_in_bytes", "67108864"),
            ("memory.memsw.limit_in_bytes", "67108864"),
            ("cpu.weight", "50"),
            ("cpu.shares", "512"),
            ("pids.max", "20"),
        ];
        for (name, value) in all {
            let cgroup = tempfile::tempdir().unwrap();
            fs::write(cgroup.path().join(name), "max").unwrap();
            limits.set(cgroup.path()).unwrap();
            assert_eq!(read(cgroup.path(), name).unwrap(), value, "{name}");
            assert_eq!(fs::read_dir(cgroup.path()).unwrap().count(), 1, "{name}");
            Limits::default().set(cgroup.path()).unwrap();
            assert_eq!(read(cgroup.path(), name).unwrap(), value, "{name}");
        }
    }

    #[test]
    fn both_versions_say_what_is_used() {
        let version_2: &[_] = &[
            ("memory.current", "1000\n"),
            ("cpu.stat", "usage_usec 7000\nuser_usec 10\n"),
            ("pids.current", "3\n"),
            ("memory.events", "low 0\noom 1\noom_kill 1\noom_group_kill 0\n"),
        ];
        let version_1: &[_] = &[
            ("memory.usage_in_bytes", "1000\n"),
            ("cpuacct.usage", "7000999\n"),
            ("pids.current", "3\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        ];
        for files in [version_2, version_1] {
            let cgroup = tempfile::tempdir().unwrap();
            let mut usage = Usage::default();
            usage.read(cgroup.path());
            assert_eq!(usage, Usage::default());
            assert!(!ran_out_of_memory(cgroup.path()));
            for (name, text) in files {
                fs::write(cgroup.path().join(name), text).unwrap();
            }
            usage.read(cgroup.path());
            let used = Usage { memory: Some(1000), cpu_us: Some(7000), pids: Some(3) };
            assert_eq!(usage, used);
            assert!(ran_out_of_memory(cgroup.path()));
        }
    }

    #[test]
    fn limits_have_ranges() {
        let check = |memory: u64, weight, pids| {
            let memory_max = Some(ByteSize::b(memory));
            Limits { memory_max, cpu_weight: Some(weight), pids_max: Some(pids) }.check()
        };
        check(1 << 20, 1, 1).unwrap();
        check(u64::MAX, 10_000, 1 << 22).unwrap();
        check((1 << 20) - 1, 1, 1).unwrap_err();
        check(1 << 20, 0, 1).unwrap_err();
        check(1 << 20, 10_001, 1).unwrap_err();
        check(1 << 20, 1, 0).unwrap_err();
        check(1 << 20, 1, (1 << 22) + 1).unwrap_err();
    }
}
