//! The rows, and how they are measured: rows share transfers and zones where they can.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use cohort_trial::Programs;

use super::zone::{Links, Transfer, Zone};
use super::{DistributeArgs, PACKAGES, delta, faults, service};
use crate::bench::Better::{Higher, Lower};
use crate::bench::{Goal, Row, median};

/// Plays a fault: the zone, the transfers of the base case, runs, and bytes of a MiB.
type Fault = fn(&mut Zone, &[Transfer], usize, usize) -> Result<Vec<f64>>;

/// Rows that are measured together.
struct Part {
    rows: &'static [Goal],
    links: Links,
    /// Files on disk and synced, instead of in memory.
    on_disk: bool,
    /// The figures of all rows, in order.
    measure: fn(&mut Work<'_>, &Part) -> Result<Vec<f64>>,
}

impl Part {
    const fn new(
        rows: &'static [Goal],
        links: Links,
        measure: fn(&mut Work<'_>, &Part) -> Result<Vec<f64>>,
    ) -> Part {
        Part { rows, links, on_disk: false, measure }
    }
}

const fn links(servers: usize, downlink_mbit: u32, nic_mbit: u32) -> Links {
    Links { servers, downlink_mbit, nic_mbit }
}

/// Ten servers at 250 Mbit/s behind 50 Mbit/s.
const USUAL: Links = links(10, 50, 250);

/// Size of a transfer, in MiB.
const MIB: usize = 64;

/// Size of a transfer over links that are twice as fast, in MiB.
const MIB_FAST: usize = 256;

/// Everything that can be measured, in order. `--quick` is the first part.
const PARTS: &[Part] = &[
    Part::new(
        &[
            ("ratio.50_250.10", "", Some(1.07), Lower),
            ("wan.50_250.10", "", Some(1.05), Lower),
            ("cpu_seconds.10x64mib", "s", Some(3.0), Lower),
        ],
        USUAL,
        |work, part| work.usual(part),
    ),
    Part::new(
        &[
            ("slow.others_percent", "%", Some(2.0), Lower),
            ("slow.self_ratio", "", Some(1.08), Lower),
        ],
        USUAL,
        |work, part| work.disturbed(part, faults::slow),
    ),
    Part::new(
        &[("kill_head.delay_s", "s", Some(0.5), Lower), ("kill_head.wan", "", Some(1.06), Lower)],
        USUAL,
        |work, part| work.disturbed(part, faults::kill_head),
    ),
    Part::new(
        &[
            ("kill_leader.delay_s", "s", Some(1.5), Lower),
            ("kill_leader.wan", "", Some(1.08), Lower),
        ],
        USUAL,
        |work, part| work.disturbed(part, faults::kill_leader),
    ),
    Part::new(&[("corrupt.forwarded_units", "", Some(0.0), Lower)], USUAL, |work, part| {
        Ok(vec![faults::corrupt(work.zone(part)?, MIB)?])
    }),
    Part::new(&[("service_p99_ratio", "", Some(1.1), Lower)], USUAL, |work, part| {
        let runs = work.args.runs();
        let zone = work.zone(part)?;
        Ok(vec![median(&mut repeat(runs, || service::p99_ratio(zone, MIB))?)?])
    }),
    Part::new(&[("delta.wan_reduction", "", Some(10.0), Higher)], USUAL, |work, part| {
        let packages = work.folder.join("disk").join(PACKAGES);
        Ok(vec![delta::wan_reduction(work.zone(part)?, &packages)?])
    }),
    Part::new(
        &[("ratio.flat.10", "", Some(1.12), Lower), ("wan.flat.10", "", Some(1.05), Lower)],
        links(10, 100, 100),
        |work, part| work.plain(part, MIB),
    ),
    Part::new(
        &[("ratio.100_500.10", "", Some(1.06), Lower), ("wan.100_500.10", "", Some(1.05), Lower)],
        links(10, 100, 500),
        |work, part| work.plain(part, MIB_FAST),
    ),
    Part::new(
        &[("ratio.50_250.20", "", Some(1.08), Lower), ("wan.50_250.20", "", Some(1.05), Lower)],
        links(20, 50, 250),
        |work, part| work.plain(part, MIB),
    ),
    Part {
        rows: &[("durable_ratio.50_250.10", "", None, Lower)],
        links: USUAL,
        on_disk: true,
        measure: |work, part| {
            let transfers = work.transfers(part, "on disk, synced", MIB)?;
            Ok(vec![median_of(&transfers, Transfer::ratio)?])
        },
    },
];

pub(super) fn rows(args: &DistributeArgs) -> impl Iterator<Item = &'static Goal> {
    PARTS.iter().flat_map(move |part| wanted(args, part))
}

fn wanted(args: &DistributeArgs, part: &Part) -> impl Iterator<Item = &'static Goal> {
    part.rows.iter().filter(move |(what, ..)| {
        (!args.quick || PARTS[0].rows.iter().any(|(quick, ..)| quick == what))
            && (args.only.is_empty() || args.only.iter().any(|prefix| what.starts_with(prefix)))
    })
}

/// Measures all requested rows; a failing part is reported, and the others continue.
pub(super) fn measure(args: &DistributeArgs, programs: &Programs, folder: &Path) -> Vec<Row> {
    let mut work = Work { args, programs, folder, zone: None, zones: 0, base: Vec::new() };
    let mut figures: BTreeMap<&str, f64> = BTreeMap::new();
    for part in PARTS.iter().filter(|part| wanted(args, part).next().is_some()) {
        let names = part.rows.iter().map(|(what, ..)| *what);
        match (part.measure)(&mut work, part) {
            Ok(values) => figures.extend(names.zip(values)),
            Err(error) => {
                let Links { servers, downlink_mbit, nic_mbit } = part.links;
                let names = names.collect::<Vec<_>>().join(", ");
                eprintln!(
                    "error: {names} over {downlink_mbit}/{nic_mbit}, {servers} servers: {error:#}"
                );
                // Its state is unknown.
                work.zone = None;
            }
        }
    }
    let row = |(what, unit, goal, better): &Goal| {
        Row::new(what, figures.get(what).copied(), unit, *goal, *better)
    };
    rows(args).map(row).collect()
}

struct Work<'a> {
    args: &'a DistributeArgs,
    programs: &'a Programs,
    folder: &'a Path,
    /// The running zone, and whether its files are on disk.
    zone: Option<(Zone, bool)>,
    zones: u32,
    /// Undisturbed transfers, the baseline of the others.
    base: Vec<Transfer>,
}

impl Work<'_> {
    /// The base case: ratio, WAN copies and CPU seconds.
    fn usual(&mut self, part: &Part) -> Result<Vec<f64>> {
        let base = self.baseline(part)?;
        let cpu_s = median_of(&base, |transfer| transfer.cpu.all())?;
        Ok([ratio_and_wan(&base)?, vec![cpu_s]].concat())
    }

    /// A fault in the base case.
    fn disturbed(&mut self, part: &Part, fault: Fault) -> Result<Vec<f64>> {
        let base = self.baseline(part)?;
        let runs = self.args.runs();
        fault(self.zone(part)?, &base, runs, MIB)
    }

    /// Ratio and WAN copies over some links.
    fn plain(&mut self, part: &Part, mib: usize) -> Result<Vec<f64>> {
        ratio_and_wan(&self.transfers(part, part.rows[0].0, mib)?)
    }

    fn baseline(&mut self, part: &Part) -> Result<Vec<Transfer>> {
        if self.base.is_empty() {
            self.base = self.transfers(part, "10 servers, 50/250", MIB)?;
        }
        Ok(self.base.clone())
    }

    fn transfers(&mut self, part: &Part, what: &str, mib: usize) -> Result<Vec<Transfer>> {
        let runs = self.args.runs();
        let zone = self.zone(part)?;
        repeat(runs, || zone.transfer(what, mib))
    }

    /// A zone for this part: the running one, if its links can be changed to the part's.
    fn zone(&mut self, part: &Part) -> Result<&mut Zone> {
        let Part { links, on_disk, .. } = part;
        let fits =
            |(zone, disk): &(Zone, bool)| zone.links.servers == links.servers && disk == on_disk;
        if !self.zone.as_ref().is_some_and(fits) {
            // Stop the old one first: there is one switch.
            self.zone = None;
            self.zones += 1;
            let name = format!("zone-{}", self.zones);
            let place = if *on_disk { "disk" } else { "memory" };
            let logs = self.args.logs.clone().unwrap_or_else(|| self.folder.join("logs"));
            let dir = self.folder.join(place).join(&name);
            let zone = Zone::start(self.programs, &dir, &logs.join(&name), *links)?;
            self.zone = Some((zone, *on_disk));
        }
        let (zone, _) = self.zone.as_mut().context("a zone was just started")?;
        if (zone.links.downlink_mbit, zone.links.nic_mbit) != (links.downlink_mbit, links.nic_mbit)
        {
            zone.relink(links.downlink_mbit, links.nic_mbit)?;
        }
        Ok(zone)
    }
}

fn ratio_and_wan(transfers: &[Transfer]) -> Result<Vec<f64>> {
    let wan = median_of(transfers, |transfer| transfer.wan)?;
    Ok(vec![median_of(transfers, Transfer::ratio)?, wan])
}

fn median_of(transfers: &[Transfer], of: impl Fn(&Transfer) -> f64) -> Result<f64> {
    median(&mut transfers.iter().map(of).collect::<Vec<_>>())
}

fn repeat<T>(times: usize, mut once: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    (0..times).map(|_| once()).collect()
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod plan_test;
