//! Which groups the hub has heard from, by their servers' certificates. In memory only.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cohort_core::ids::{GroupId, ServerId};
use parking_lot::Mutex;

/// Groups that are remembered; more than a fleet has. Beyond, those unheard for longest are
/// forgotten.
const GROUPS_MAX: usize = 10_000;

/// When each group was last heard from.
#[derive(Debug)]
pub(crate) struct Heard {
    started: Instant,
    groups: Mutex<BTreeMap<GroupId, (Instant, ServerId)>>,
}

/// The last word of a group.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LastWord {
    /// From this server, that long ago.
    Of(ServerId, Duration),
    /// None, and the hub has listened for that long.
    None(Duration),
}

impl Heard {
    /// The hub starts to listen.
    pub(crate) fn new(now: Instant) -> Self {
        Heard { started: now, groups: Mutex::default() }
    }

    /// A server of a group made a request with its certificate.
    pub(crate) fn heard(&self, now: Instant, group: GroupId, server: ServerId) {
        let mut groups = self.groups.lock();
        groups.insert(group, (now, server));
        if groups.len() > GROUPS_MAX {
            let oldest = groups.iter().min_by_key(|(_, (at, _))| *at);
            if let Some(group) = oldest.map(|(group, _)| group.clone()) {
                groups.remove(&group);
            }
        }
    }

    /// What was last heard of a group.
    pub(crate) fn last(&self, now: Instant, group: &GroupId) -> LastWord {
        match self.groups.lock().get(group) {
            Some((at, server)) => LastWord::Of(server.clone(), now.duration_since(*at)),
            None => LastWord::None(now.duration_since(self.started)),
        }
    }
}

#[cfg(test)]
mod heard_test {
    use super::*;

    #[test]
    fn the_last_word_of_a_group_has_an_age() {
        let start = Instant::now();
        let after = |s| start + Duration::from_secs(s);
        let [a, b] = ["a", "b"].map(|name| GroupId::new(name).unwrap());
        let heard = Heard::new(start);
        heard.heard(after(3), a.clone(), ServerId::new("a-1").unwrap());
        heard.heard(after(5), a.clone(), ServerId::new("a-2").unwrap());
        let a_2 = ServerId::new("a-2").unwrap();
        assert_eq!(heard.last(after(9), &a), LastWord::Of(a_2, Duration::from_secs(4)));
        assert_eq!(heard.last(after(9), &b), LastWord::None(Duration::from_secs(9)));
    }
}
