//! Where machines are.

use cohort_core::ids::ServerId;

/// The peer port of every machine.
const PORT: &str = ":7417";

/// A machine as the network knows it: the server that its certificate names, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) server: ServerId,
    /// 0: where the server was first. No two machines are ever in the same place.
    pub(crate) number: u32,
}

impl Place {
    /// Where a server was first.
    pub(crate) fn first(server: &ServerId) -> Place {
        Place { server: server.clone(), number: 0 }
    }

    /// Where this address leads, for those who expect that server there; nowhere if it is no
    /// address of a machine of that server.
    pub(crate) fn of(server: &ServerId, address: &str) -> Place {
        let host = address.strip_prefix(server.as_str()).and_then(|it| it.strip_suffix(PORT));
        let number = match host {
            Some("") => Some(0),
            Some(host) => host.strip_prefix('-').and_then(|number| number.parse().ok()),
            None => None,
        };
        Place { server: server.clone(), number: number.unwrap_or(u32::MAX) }
    }

    /// The host that others see it call from.
    pub(crate) fn host(&self) -> String {
        match self.number {
            0 => self.server.to_string(),
            number => format!("{}-{number}", self.server),
        }
    }

    /// Where it is reached.
    pub(crate) fn address(&self) -> String {
        self.host() + PORT
    }
}
