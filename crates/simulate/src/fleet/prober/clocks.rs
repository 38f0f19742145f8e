//! Whose clock is wrong, as people are told.

use std::collections::BTreeMap;

use cohort_core::ids::{GroupId, ServerId};

use crate::fleet::group::Group;

/// Clocks that differ by more than this are reported, in milliseconds; none that is drawn is near.
const OFF_MS: u64 = 60_000;
/// What a server said of its clock counts for this long, in milliseconds, and for as long as a
/// packet may wait at a member that pauses.
const KNOWN_MS: u64 = 90_000;
/// Fewer clocks do not say which one is wrong.
const CLOCKS_MIN: usize = 3;

/// How far each server's clock is ahead, and how far its process has leapt, in milliseconds; and
/// since when.
#[derive(Debug, Default)]
pub(super) struct Clocks(BTreeMap<(GroupId, ServerId), ((i64, u64), u64)>);

impl Clocks {
    pub(super) fn look(&mut self, now_ms: u64, group: &Group) {
        let name = &group.log.state.group;
        if self.0.is_empty() && group.servers.values().all(|server| server.clock_ahead_ms == 0) {
            return;
        }
        self.0.retain(|(of, id), _| of != name || group.servers.contains_key(id));
        let mut stable = true;
        for (id, server) in &group.servers {
            let now = (server.clock_ahead_ms, server.ahead_ms);
            let known = self.0.entry((name.clone(), id.clone())).or_insert((now, now_ms));
            // A copy has a clock of its own.
            if known.0 != now || group.copies.contains_key(id) {
                *known = (now, now_ms);
            }
            stable &= known.1 + KNOWN_MS <= now_ms;
        }
        let Some((leader, _)) = group.leader_view().filter(|_| stable) else { return };
        let told = group.servers[leader].shows_clocks(now_ms);
        let wrong = |server: &ServerId| {
            let known = self.0.get(&(name.clone(), server.clone()));
            known.is_some_and(|((ahead_ms, _), _)| ahead_ms.unsigned_abs() > OFF_MS)
        };
        let count = told.keys().filter(|server| wrong(server)).count();
        if told.len() >= CLOCKS_MIN && count * 2 >= told.len() {
            return;
        }
        for (server, ahead_ms) in &told {
            let right = (*ahead_ms != 0) == (wrong(server) && told.len() >= CLOCKS_MIN);
            assert!(
                right,
                "{now_ms} ms: people are told that the clock of {server} of {name} is {ahead_ms} \
                 ms ahead: {:?}",
                self.0
            );
        }
    }
}
