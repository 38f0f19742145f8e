//! The rows, and in what order they are measured: zones are made once for as many as possible.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::faults::{self, Figures};
use super::rivals::{self, Compared};
use super::zone::{Links, Transfer, Zone};
use super::{DistributeArgs, PACKAGES};
use super::{delta, service};
use crate::bench::{Better, Row, median};
use crate::build::Programs;

/// Name, unit, goal, and which way is good. The goals are those of the design.
type Goal = (&'static str, &'static str, Option<f64>, Better);

const ROWS: &[Goal] = &[
    ("ratio.50_250.10", "", Some(1.07), Better::Lower),
    ("wan.50_250.10", "", Some(1.05), Better::Lower),
    ("cpu_seconds.10x64mib", "s", Some(3.0), Better::Lower),
    ("slow.others_percent", "%", Some(2.0), Better::Lower),
    ("slow.self_ratio", "", Some(1.08), Better::Lower),
    ("kill_head.delay_s", "s", Some(0.5), Better::Lower),
    ("kill_head.wan", "", Some(1.06), Better::Lower),
    ("kill_leader.delay_s", "s", Some(1.5), Better::Lower),
    ("kill_leader.wan", "", Some(1.08), Better::Lower),
    ("corrupt.forwarded_units", "", Some(0.0), Better::Lower),
    ("service_p99_ratio", "", Some(1.1), Better::Lower),
    ("delta.wan_reduction", "", Some(10.0), Better::Higher),
    ("ratio.flat.10", "", Some(1.12), Better::Lower),
    ("wan.flat.10", "", Some(1.05), Better::Lower),
    ("ratio.100_500.10", "", Some(1.06), Better::Lower),
    ("wan.100_500.10", "", Some(1.05), Better::Lower),
    ("ratio.50_250.20", "", Some(1.08), Better::Lower),
    ("wan.50_250.20", "", Some(1.05), Better::Lower),
    ("durable_ratio.50_250.10", "", None, Better::Lower),
];

/// Rows of `--quick`.
const QUICK: &[&str] = &["ratio.50_250.10", "wan.50_250.10", "cpu_seconds.10x64mib"];

/// What is sent, in MiB.
const MIB: usize = 64;

/// What is sent where the links are twice as fast.
const MIB_FAST: usize = 256;

const fn links(servers: usize, downlink_mbit: u32, nic_mbit: u32) -> Links {
    Links { servers, downlink_mbit, nic_mbit }
}

/// The rows that are asked for.
pub(super) fn rows(args: &DistributeArgs) -> impl Iterator<Item = &'static Goal> {
    ROWS.iter().filter(|(what, ..)| {
        (!args.quick || QUICK.contains(what))
            && (args.only.is_empty() || args.only.iter().any(|begin| what.starts_with(begin)))
    })
}

/// Everything that came out.
pub(super) struct Measured {
    pub rows: Vec<Row>,
    compared: Vec<(String, Compared)>,
}

impl Measured {
    /// The comparison, line by line.
    pub(super) fn comparison(&self) -> Vec<String> {
        if self.compared.is_empty() {
            return Vec::new();
        }
        let mut lines = vec![format!(
            "{:<12} {:<44} {:>7} {:>11} {:>6}",
            "links", "way", "ratio", "WAN copies", "CPU s"
        )];
        lines.extend(self.compared.iter().map(|(links, Compared { who, ratio, wan, cpu_s })| {
            format!("{links:<12} {who:<44} {ratio:>7.3} {wan:>11.4} {cpu_s:>6.2}")
        }));
        lines.push(String::new());
        lines
    }
}

/// Measures all rows that are asked for; what fails is told, and the others go on.
pub(super) fn measure(args: &DistributeArgs, programs: &Programs, folder: &Path) -> Measured {
    let wanted: Vec<&str> = rows(args).map(|(what, ..)| *what).collect();
    let mut work = Work {
        args,
        programs,
        folder,
        wanted,
        zone: None,
        zones: 0,
        figures: Figures::new(),
        compared: Vec::new(),
        base: Vec::new(),
    };
    work.all();
    let rows = rows(args).map(|(what, unit, goal, better)| {
        Row::new(what, work.figures.get(what).copied(), unit, *goal, *better)
    });
    Measured { rows: rows.collect(), compared: work.compared }
}

struct Work<'a> {
    args: &'a DistributeArgs,
    programs: &'a Programs,
    folder: &'a Path,
    wanted: Vec<&'static str>,
    /// The zone that is up, and whether its files are on the disk.
    zone: Option<(Zone, bool)>,
    zones: u32,
    figures: Figures,
    compared: Vec<(String, Compared)>,
    /// Transfers with nothing wrong, which others are compared with.
    base: Vec<Transfer>,
}

impl Work<'_> {
    fn all(&mut self) {
        let usual = links(10, 50, 250);
        let (runs, mib) = (self.args.runs(), MIB);
        let disturbed = ["slow.", "kill_head.", "kill_leader."];
        if self.wants(&QUICK.iter().copied().chain(disturbed).collect::<Vec<_>>()) {
            self.base(usual);
        }
        self.part(&["slow."], usual, |work| {
            let base = work.base.clone();
            faults::slow(work.zone(usual, false)?, &base, runs, mib)
        });
        self.part(&["kill_head."], usual, |work| {
            let base = work.base.clone();
            faults::kill_head(work.zone(usual, false)?, &base, runs, mib)
        });
        self.part(&["kill_leader."], usual, |work| {
            let base = work.base.clone();
            faults::kill_leader(work.zone(usual, false)?, &base, runs, mib)
        });
        self.part(&["corrupt."], usual, |work| faults::corrupt(work.zone(usual, false)?, mib));
        self.part(&["service_p99_ratio"], usual, |work| {
            let mut ratios = Vec::new();
            for _ in 0..runs {
                ratios.push(service::p99_ratio(work.zone(usual, false)?, mib)?);
            }
            Ok(BTreeMap::from([("service_p99_ratio", median(&mut ratios)?)]))
        });
        let packages = self.folder.join("disk").join(PACKAGES);
        self.part(&["delta."], usual, |work| {
            let reduction = delta::wan_reduction(work.zone(usual, false)?, &packages)?;
            Ok(BTreeMap::from([("delta.wan_reduction", reduction)]))
        });
        self.plain(["ratio.flat.10", "wan.flat.10"], links(10, 100, 100), mib);
        self.plain(["ratio.100_500.10", "wan.100_500.10"], links(10, 100, 500), MIB_FAST);
        self.plain(["ratio.50_250.20", "wan.50_250.20"], links(20, 50, 250), mib);
        self.part(&["durable_ratio."], usual, |work| {
            let zone = work.zone(usual, true)?;
            let transfers = repeat(runs, || zone.transfer("on the disk, synced", mib))?;
            let ratio = median_of(&transfers, Transfer::ratio)?;
            Ok(BTreeMap::from([("durable_ratio.50_250.10", ratio)]))
        });
        self.zone = None;
    }

    /// Whether a row is asked for whose name begins so.
    fn wants(&self, begins: &[&str]) -> bool {
        begins.iter().any(|begin| self.wanted.iter().any(|what| what.starts_with(begin)))
    }

    /// The usual case, with its rivals.
    fn base(&mut self, usual: Links) {
        let runs = self.args.runs();
        self.part(&[""], usual, |work| {
            let zone = work.zone(usual, false)?;
            let base = repeat(runs, || zone.transfer("10 servers, 50/250", MIB))?;
            let line = cohort(&base)?;
            let figures = BTreeMap::from([
                ("ratio.50_250.10", line.ratio),
                ("wan.50_250.10", line.wan),
                ("cpu_seconds.10x64mib", line.cpu_s),
            ]);
            work.base = base;
            work.compare(usual, MIB, line, work.wants(QUICK));
            Ok(figures)
        });
    }

    /// Ratio and WAN copies over some links.
    fn plain(&mut self, [ratio, wan]: [&'static str; 2], over: Links, mib: usize) {
        let runs = self.args.runs();
        self.part(&[ratio, wan], over, |work| {
            let zone = work.zone(over, false)?;
            let transfers = repeat(runs, || zone.transfer(ratio, mib))?;
            let line = cohort(&transfers)?;
            let figures = BTreeMap::from([(ratio, line.ratio), (wan, line.wan)]);
            // Four times the bytes would take them a quarter of an hour.
            work.compare(over, mib, line, mib == MIB);
            Ok(figures)
        });
    }

    /// Notes a line of the comparison, and its rivals'.
    fn compare(&mut self, over: Links, mib: usize, line: Compared, rivals: bool) {
        let Links { servers, downlink_mbit, nic_mbit } = over;
        let name = format!("{downlink_mbit}/{nic_mbit} × {servers}");
        self.compared.push((name.clone(), line));
        if self.args.no_rivals || !rivals {
            return;
        }
        // Only in the usual case does curl send everything: it takes time for every server.
        let short = self.args.quick || servers != 10 || nic_mbit == downlink_mbit;
        let measured = self.zone(over, false).and_then(|zone| rivals::measure(zone, mib, short));
        match measured {
            Ok(lines) => {
                self.compared.extend(lines.into_iter().map(|line| (name.clone(), line)));
            }
            Err(error) => {
                eprintln!("error: what it is compared with could not be measured: {error:#}");
                self.zone = None;
            }
        }
    }

    /// Measures some rows, if they are asked for.
    fn part(
        &mut self,
        begins: &[&str],
        over: Links,
        measure: impl FnOnce(&mut Self) -> Result<Figures>,
    ) {
        if !self.wants(begins) {
            return;
        }
        match measure(self) {
            Ok(figures) => self.figures.extend(figures),
            Err(error) => {
                let Links { servers, downlink_mbit, nic_mbit } = over;
                eprintln!(
                    "error: {} over {downlink_mbit}/{nic_mbit}, {servers} servers: {error:#}",
                    begins.join(" ")
                );
                // Nobody knows in which state it is.
                self.zone = None;
            }
        }
    }

    /// A zone with these links: the one that is up, if it can be changed to them.
    fn zone(&mut self, over: Links, on_disk: bool) -> Result<&mut Zone> {
        let fits =
            |(zone, disk): &(Zone, bool)| zone.links.servers == over.servers && *disk == on_disk;
        if !self.zone.as_ref().is_some_and(fits) {
            // The old one first: there is one switch.
            self.zone = None;
            self.zones += 1;
            let name = format!("zone-{}", self.zones);
            let place = if on_disk { "disk" } else { "memory" };
            let logs = self.args.logs.clone().unwrap_or_else(|| self.folder.join("logs"));
            let dir = self.folder.join(place).join(&name);
            let zone = Zone::start(self.programs, &dir, &logs.join(&name), over)?;
            self.zone = Some((zone, on_disk));
        }
        let (zone, _) = self.zone.as_mut().context("a zone was just made")?;
        if (zone.links.downlink_mbit, zone.links.nic_mbit) != (over.downlink_mbit, over.nic_mbit) {
            zone.relink(over.downlink_mbit, over.nic_mbit)?;
        }
        Ok(zone)
    }
}

/// Our own line of the comparison.
fn cohort(transfers: &[Transfer]) -> Result<Compared> {
    Ok(Compared {
        who: "cohort, mutual TLS",
        ratio: median_of(transfers, Transfer::ratio)?,
        wan: median_of(transfers, |transfer| transfer.wan)?,
        cpu_s: median_of(transfers, |transfer| transfer.cpu.all())?,
    })
}

fn median_of(transfers: &[Transfer], of: impl Fn(&Transfer) -> f64) -> Result<f64> {
    median(&mut transfers.iter().map(of).collect::<Vec<_>>())
}

fn repeat<T>(times: usize, mut once: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    (0..times).map(|_| once()).collect()
}
