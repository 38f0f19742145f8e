//! What load balancers see of an app on this server.

use std::fmt;

use cohort_core::steps::NoTraffic;

/// How much traffic an app on this server takes. Served by the agent's `/readyz` and agent check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Traffic {
    /// The agent has just started and does not know yet.
    Starting,
    /// Takes its full share.
    Ready,
    /// Takes no new requests; those in progress may finish.
    Draining,
    WarmingUp {
        /// Share of the full traffic, 1 to 99.
        percent: u8,
    },
    Out {
        reason: NoTraffic,
    },
}

impl Traffic {
    /// The weight for a load balancer, 0 to 100.
    #[must_use]
    pub fn percent(&self) -> u8 {
        match self {
            Traffic::Ready => 100,
            Traffic::WarmingUp { percent } => *percent,
            Traffic::Starting | Traffic::Draining | Traffic::Out { .. } => 0,
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Traffic::Starting => f.write_str("starting"),
            Traffic::Ready => f.write_str("ready"),
            Traffic::Draining => f.write_str("draining"),
            Traffic::WarmingUp { percent } => write!(f, "warming up, {percent} %"),
            Traffic::Out { reason } => match reason {
                NoTraffic::NothingInstalled => f.write_str("out: nothing is installed"),
                NoTraffic::Installing => f.write_str("out: a release is being installed"),
                NoTraffic::Failed { reason } => write!(f, "out: {reason}"),
            },
        }
    }
}
