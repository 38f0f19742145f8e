//! The simulated set-up, and the results.

use std::collections::BTreeMap;

/// How a server lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// It claims from the start to hold everything, and sends nothing.
    Holds,
    /// It takes part normally, but sends nothing to any server.
    Hoards,
    /// It sends its children one unit per second, whatever it has.
    Trickles,
    /// It reports a thousand times the bytes it receives.
    Counts,
    /// It holds everything in one report and nothing in the next.
    Wavers,
    /// It complains about every other server.
    Complains,
}

impl Lie {
    pub(crate) const ALL: [(&'static str, Lie); 6] = [
        ("holds", Lie::Holds),
        ("hoards", Lie::Hoards),
        ("trickles", Lie::Trickles),
        ("counts", Lie::Counts),
        ("wavers", Lie::Wavers),
        ("complains", Lie::Complains),
    ];
}

/// The simulated zone: size, links and faults.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) servers: usize,
    pub(crate) units: u32,
    /// The zone's downlink, in bytes per second.
    pub(crate) downlink: u64,
    /// Every server's link, each way, in bytes per second.
    pub(crate) link: u64,
    /// Servers with another link.
    pub(crate) links: BTreeMap<usize, u64>,
    /// Servers per rack; `None`: racks are unknown.
    pub(crate) rack: Option<usize>,
    /// Servers that die, and when, in milliseconds.
    pub(crate) die: BTreeMap<usize, u64>,
    /// When the first head dies, in milliseconds.
    pub(crate) head_dies: Option<u64>,
    /// Start and length of a time without a leader, in milliseconds; then there is another one.
    pub(crate) no_leader: Option<(u64, u64)>,
    pub(crate) lies: BTreeMap<usize, Lie>,
}

impl Setup {
    pub(crate) fn new(servers: usize, mib: u32, downlink_mbit: u64, link_mbit: u64) -> Self {
        Self {
            servers,
            units: mib * 16,
            downlink: downlink_mbit * 125_000,
            link: link_mbit * 125_000,
            links: BTreeMap::new(),
            rack: None,
            die: BTreeMap::new(),
            head_dies: None,
            no_leader: None,
            lies: BTreeMap::new(),
        }
    }
}

/// The results.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// When all servers had everything, in milliseconds.
    pub(crate) all_ms: u64,
    /// The same without servers that have their own link rate.
    pub(crate) others_ms: u64,
    /// That time ÷ the lower bound by size and rates.
    pub(crate) ratio: f64,
    /// Bytes through the downlink ÷ size.
    pub(crate) wan: f64,
    /// Longest path from the first source.
    pub(crate) depth: usize,
    /// Reports to the leader per second.
    pub(crate) reports_per_s: u64,
    /// Bytes over links between racks ÷ size.
    pub(crate) crossed: f64,
    /// Time from the first report to a new leader until it has guided all servers, in milliseconds.
    pub(crate) rebuilt_ms: u64,
}
