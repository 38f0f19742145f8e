//! What a leader needs from its server, in addition to the group.

use serde::{Deserialize, Serialize};

/// What a server reaches, of what a leader needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ability {
    /// The hub's registry answers it.
    pub registry: bool,
    /// It can refresh the repository's metadata: a mirror answers, and by this server's clock and
    /// keys the metadata is trusted.
    pub repository: bool,
    /// Its disk has enough space.
    pub disk: bool,
}

impl Ability {
    /// Everything that a leader needs.
    pub const FULL: Ability = Ability { registry: true, repository: true, disk: true };

    /// Whether nothing is missing.
    #[must_use]
    pub fn is_full(self) -> bool {
        self == Ability::FULL
    }

    /// Whether it has everything that `other` has, and more.
    #[must_use]
    pub fn exceeds(self, other: Ability) -> bool {
        self != other
            && self.registry >= other.registry
            && self.repository >= other.repository
            && self.disk >= other.disk
    }
}
