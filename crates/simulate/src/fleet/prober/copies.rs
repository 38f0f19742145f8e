//! Of two machines with one identity, one is the server, and the first works on.

use std::collections::BTreeMap;

use cohort_core::ids::{GroupId, ServerId};
use cohort_server::asking::ORDERS_VALID_MS;

use crate::fleet::group::Group;
use crate::fleet::server::Server;
use crate::fleet::world::TICK_MS;

/// A violation that the tests look for: another machine is taken for a server that runs.
pub const DISPLACED: &str = "is displaced while it runs";
/// See [`DISPLACED`].
pub const ALSO_ACTS: &str = "acts while another machine runs as its server";

/// A machine that its group could reach for this long was heard of, in milliseconds: as long as one
/// counts as running, and some questions that go to members without a leader.
const HEARD_MS: u64 = 25_000;

/// What is known of servers while copies of them run.
#[derive(Debug, Default)]
pub(super) struct Copies(BTreeMap<(GroupId, ServerId), Known>);

#[derive(Debug, Default)]
struct Known {
    /// The life that speaks for the server.
    speaks: u64,
    /// Those that did lately, and until when.
    spoke: BTreeMap<u64, u64>,
    /// When each machine could last not be reached, or had no process that spoke.
    away_ms: BTreeMap<u64, u64>,
}

impl Copies {
    /// `calm`: nothing is lost in the network.
    pub(super) fn look(&mut self, now_ms: u64, group: &Group, calm: bool) {
        let state = &group.log.state;
        self.0.retain(|(of, id), _| *of != state.group || group.copies.contains_key(id));
        let calm = calm && group.net.cut.is_empty();
        for (id, copy) in &group.copies {
            let (Some(here), Some(first)) = (state.servers.get(id), group.servers.get(id)) else {
                continue;
            };
            let new = Known { speaks: here.process.life, ..Known::default() };
            let known = self.0.entry((state.group.clone(), id.clone())).or_insert(new);
            let both = [first, copy].map(|machine| Server::machine(machine.lives));
            known.away_ms.retain(|number, _| both.contains(number));
            for machine in [first, copy] {
                let reached = machine.up && machine.linked && machine.paused_until_ms <= now_ms;
                let number = Server::machine(machine.lives);
                let since_ms = known.away_ms.entry(number).or_insert(now_ms);
                if !calm || !reached || machine.lives != known.speaks {
                    *since_ms = now_ms;
                }
            }
            let (before, now) = (known.speaks, here.process.life);
            let (from, to) = (Server::machine(before), Server::machine(now));
            if from != to {
                let away_ms = known.away_ms.get(&from);
                let away = away_ms.is_none_or(|away_ms| away_ms + HEARD_MS > now_ms);
                assert!(away, "{now_ms} ms: {id} {DISPLACED}, by {}", here.process.host);
            }
            known.speaks = now;
            known.spoke.insert(now, now_ms);
            known.spoke.retain(|_, at_ms| *at_ms + ORDERS_VALID_MS + 2 * TICK_MS >= now_ms);
            for machine in [first, copy] {
                let begins = machine.begun.iter().find(|(_, (_, at_ms))| *at_ms == now_ms);
                if let Some((app, (fence, _))) = begins {
                    let (host, spoke) = (machine.place.host(), &known.spoke);
                    let own = spoke.contains_key(&machine.lives);
                    assert!(own, "{now_ms} ms: {host} {ALSO_ACTS}: {app}, {fence:?}, {spoke:?}");
                }
            }
        }
    }
}
