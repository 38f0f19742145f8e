//! What happens to the machine of a virtual server: its disk, its clock, its address.

use std::sync::Arc;

use cohort_core::kill::Registers;
use cohort_core::machine::{DiskSpace, Machine};
use cohort_core::steps::AppRecord;

use super::{Disk, Kill, Server};
use crate::fleet::place::Place;

/// Unix time at the start of a run, in milliseconds.
const UNIX_START_MS: u64 = 1_800_000_000_000;
const DAY_MS: i64 = 86_400_000;
/// How far a clock may be ahead before the metadata of the repository has expired, in milliseconds.
const METADATA_MS: i64 = DAY_MS;
/// The same of certificates; they are as old at the start of a run.
const CERTIFICATES_MS: i64 = 90 * DAY_MS;

/// A part of an agent's data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Artifacts,
    /// The records of its apps.
    Apps,
    Kill,
    BootEpoch,
    /// Its log, too.
    Everything,
}

impl Server {
    /// A part of the data directory is lost while the agent is down. Services and releases are
    /// elsewhere.
    pub(crate) fn wipe(&mut self, part: Part) {
        self.crash();
        let is = |of| part == of || part == Part::Everything;
        if is(Part::Artifacts) {
            self.disk.held.clear();
            self.disk.parts.clear();
            self.disk.manifests.clear();
        }
        if is(Part::Apps) {
            for (app, record) in &mut self.disk.apps {
                let mut found = AppRecord::default();
                let service = self.services.get(app);
                found.local.current = service.and_then(|service| service.release.clone());
                *record = found;
            }
            // Without its fences it obeys whatever is fresh.
            self.earlier.clear();
            self.accepted.clear();
        }
        if is(Part::Kill) {
            self.disk.kill = Kill::new(Registers::new(Some(self.setup.group.clone())));
            self.acknowledged = Kill::default();
        }
        if is(Part::BootEpoch) {
            self.disk.boot_epoch = self.unix_ms() / 1_000;
        }
        if part == Part::Everything {
            let Disk { apps, kill, boot_epoch, .. } = std::mem::take(&mut self.disk);
            self.disk = Disk { apps, kill: Arc::clone(&kill), boot_epoch, ..Disk::default() };
        }
        self.start();
    }

    /// The machine starts again somewhere else, or only its agent does.
    pub(crate) fn move_to(&mut self, place: Place, reboots: bool) {
        if reboots {
            self.power_off();
        } else {
            self.crash();
        }
        self.place = place;
        self.start();
    }

    /// Its disk and its clock are as they should be.
    pub(crate) fn repair(&mut self) {
        (self.full, self.read_only, self.sync_ms) = (false, false, 0);
        self.ability.disk = true;
        self.clock_ahead_ms = 0;
    }

    /// Nothing fits on its disk any more.
    pub(crate) fn fill(&mut self) {
        self.full = true;
        self.ability.disk = false;
    }

    fn unix_ms(&self) -> u64 {
        (UNIX_START_MS + self.now_ms).saturating_add_signed(self.clock_ahead_ms)
    }

    /// What its agent says of it.
    pub(super) fn machine_report(&self) -> Machine {
        let disk = if self.ability.disk { DiskSpace::Enough } else { DiskSpace::Exhausted };
        let (unix_ms, vouched) = (self.unix_ms(), self.own_log().vouched());
        Machine { unix_ms, disk, vouched, stopped: false }
    }

    /// Whether the repository's metadata is still valid by its clock.
    pub(crate) fn is_refreshed(&self) -> bool {
        self.clock_ahead_ms < METADATA_MS
    }

    /// Whether certificates are valid by its clock.
    pub(super) fn trusts_certificates(&self) -> bool {
        self.clock_ahead_ms.abs() < CERTIFICATES_MS
    }
}
