//! The process that a forking service names in a file of its own.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use cohort_base::chain;
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

use super::state::Started;
use crate::cgroup::Cgroup;
use crate::process::{Watched, start_ticks, user_of};

/// Most of a file that is read, in bytes: a number.
const BYTES_MAX: u64 = 32;

/// The process that a file names, if it is one of the service's: of its user, in its cgroup, or at
/// least younger than its `first` process. The error says what is wrong, for people.
///
/// The file is the service's: it may be anything, and change at any time.
pub(super) fn named(
    file: &Path,
    user: Option<u32>,
    first: Option<Started>,
    cgroup: Option<&Cgroup>,
) -> Result<Watched, String> {
    let number = number_in(file)?;
    let pid = Pid::from_raw(number).ok_or("it contains no process number")?;
    let not_its = || format!("process {number} is not one of this service");
    let ticks = start_ticks(pid).ok_or_else(|| format!("there is no process {number}"))?;
    let watched = Watched::started_at(pid, ticks).ok_or_else(not_its)?;
    let is_its = user_of(pid) == user
        && match cgroup {
            Some(cgroup) => cgroup.has(pid),
            None => first.is_some_and(|first| ticks >= first.start_ticks),
        };
    is_its.then_some(watched).ok_or_else(not_its)
}

fn number_in(file: &Path) -> Result<i32, String> {
    // No link, and nothing that keeps a reader waiting.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = rustix::fs::open(file, flags, Mode::empty()).map_err(|error| chain(&error))?;
    let mut text = String::new();
    let read = File::from(open).take(BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| chain(&error))?;
    text.trim().parse().map_err(|_| "it contains no process number".to_owned())
}
