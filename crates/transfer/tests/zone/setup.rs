//! What is simulated, and what came of it.

use std::collections::BTreeMap;

/// How a server lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// It says from the beginning that it holds everything, and sends nothing.
    Holds,
    /// It takes part as it should, and sends nothing to anybody.
    Hoards,
    /// It sends one unit a second to its children, whatever it has.
    Trickles,
    /// It counts a thousand times what it receives.
    Counts,
    /// It holds everything in one report and nothing in the next.
    Wavers,
    /// It complains about everybody.
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
    /// Servers per rack; none: racks are not known.
    pub(crate) rack: Option<usize>,
    /// Servers that die, and when, in milliseconds.
    pub(crate) die: BTreeMap<usize, u64>,
    /// The first head dies, at this time in milliseconds.
    pub(crate) head_dies: Option<u64>,
    /// There is no leader from this time on, for so long, in milliseconds; then another one.
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

/// What came of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// When all had everything, in milliseconds,
    pub(crate) all_ms: u64,
    /// and all but those with a link of their own.
    pub(crate) others_ms: u64,
    /// That time ÷ what size and rates allow.
    pub(crate) ratio: f64,
    /// Bytes through the downlink ÷ size.
    pub(crate) wan: f64,
    /// Longest way from the first source.
    pub(crate) depth: usize,
    /// Reports to the leader per second.
    pub(crate) reports_per_s: u64,
    /// Bytes over links between racks ÷ size.
    pub(crate) crossed: f64,
    /// From the first report to a new leader until it has told everybody what to do, in
    /// milliseconds.
    pub(crate) rebuilt_ms: u64,
}
