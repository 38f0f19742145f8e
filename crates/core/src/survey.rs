//! What the orders of every server need to know of the whole group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use crate::capacity::Held;
use crate::ids::{AppId, Digest, MemberId, ServerId};
use crate::orders::MemberAddress;
use crate::prestage;
use crate::state::State;

/// What the orders of all servers have in common, found once and only if it is asked for: every
/// change of a group makes all its servers ask, and each answer would look at every server. An
/// empty survey is right for every state; a used one only for the state that it was used with.
#[derive(Debug, Default)]
pub struct Survey {
    members: OnceLock<Vec<MemberAddress>>,
    held: OnceLock<Held>,
    /// In the order of their ids.
    holders: OnceLock<BTreeMap<(AppId, Digest), Vec<ServerId>>>,
    next_waves: OnceLock<BTreeMap<AppId, BTreeSet<ServerId>>>,
}

/// Nothing but its state decides what is in it.
impl PartialEq for Survey {
    fn eq(&self, _: &Survey) -> bool {
        true
    }
}

impl Survey {
    /// The addresses of the group's members.
    pub fn members(&self, state: &State) -> &[MemberAddress] {
        self.members.get_or_init(|| state.member_addresses())
    }

    /// The server that carries this member.
    pub fn server_of(&self, state: &State, member: MemberId) -> Option<&ServerId> {
        let found = self.members(state).iter().find(|known| known.member == member);
        found.map(|known| &known.server)
    }

    pub(crate) fn held(&self, state: &State) -> &Held {
        self.held.get_or_init(|| Held::of(state))
    }

    /// The servers that have the whole artifact, in the order of their ids.
    pub(crate) fn holders(&self, state: &State, app: &AppId, artifact: &Digest) -> &[ServerId] {
        let all = self.holders.get_or_init(|| {
            let mut all: BTreeMap<(AppId, Digest), Vec<ServerId>> = BTreeMap::new();
            for (id, app) in &state.apps {
                for (server, here) in &app.servers {
                    for held in &here.holds {
                        let of = all.entry((id.clone(), held.clone())).or_default();
                        of.push(server.clone());
                    }
                }
            }
            all
        });
        all.get(&(app.clone(), artifact.clone())).map_or(&[], Vec::as_slice)
    }

    /// Whether a server is in an app's next wave, as it would be chosen now.
    pub(crate) fn is_next(&self, state: &State, app: &AppId, server: &ServerId) -> bool {
        let all = self.next_waves.get_or_init(|| {
            let next = state.apps.iter().filter_map(|(id, app)| {
                let rollout = app.phase.forward()?;
                Some((id.clone(), prestage::expected_next(state, app, rollout)))
            });
            next.collect()
        });
        all.get(app).is_some_and(|servers| servers.contains(server))
    }
}
