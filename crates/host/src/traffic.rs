//! What load balancers are told about an app on this server.

use serde::{Deserialize, Serialize};

/// Whether the server wants traffic. The agent's `/readyz` and its agent-check read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "traffic", rename_all = "kebab-case")]
pub enum Traffic {
    /// The agent has just started and does not know yet.
    Starting,
    /// It takes its whole share.
    Ready,
    /// It is being taken out; what is under way may end.
    Draining,
    /// It comes back slowly.
    WarmingUp {
        /// Its share, 1 to 100.
        percent: u8,
    },
    /// It takes none.
    Out {
        /// Why, for people.
        reason: String,
    },
}

impl Traffic {
    /// Its share in per cent: what a load balancer's weight is.
    #[must_use]
    pub fn percent(&self) -> u8 {
        match self {
            Traffic::Ready => 100,
            Traffic::WarmingUp { percent } => *percent,
            Traffic::Starting | Traffic::Draining | Traffic::Out { .. } => 0,
        }
    }
}
