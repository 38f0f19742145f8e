//! Where the members of the group are: what the group has recorded, and what the hub knows.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::{MemberId, ServerId};
use cohort_core::orders::MemberAddress;

/// Addresses of members kept: many times more than a group has at once.
const ADDRESSES_MAX: usize = 256;

/// The servers and addresses of the group's members.
#[derive(Debug, Clone, Default)]
pub struct AddressBook {
    /// The members that the group named last, each at the address to try now.
    current: Vec<MemberAddress>,
    /// At the addresses that the group has recorded.
    members: BTreeMap<MemberId, (ServerId, String)>,
    hub: BTreeMap<ServerId, HubsWord>,
    /// The servers whose members vote; empty if not known.
    pub voters: BTreeSet<ServerId>,
}

/// Another address of a server than the group has recorded, as the hub knows. Either may be the
/// older one: which it is shows when somebody answers there with the server's certificate.
#[derive(Debug, Clone)]
struct HubsWord {
    address: String,
    /// What the group said then. Once it says something else, that is newer.
    groups: String,
    /// Whether the hub's is the one to try now.
    preferred: bool,
}

impl AddressBook {
    /// The members that the group named last, each at the address to try now.
    #[must_use]
    pub fn current(&self) -> &[MemberAddress] {
        &self.current
    }

    /// Where to try a member, and on which server it is.
    #[must_use]
    pub fn of(&self, member: MemberId) -> Option<(&ServerId, &str)> {
        let (server, address) = self.members.get(&member)?;
        Some((server, self.address(server, address)))
    }

    /// The group names its members. Earlier ones stay as they were, since their messages may still
    /// come; an empty list changes nothing.
    pub fn learn(&mut self, members: &[MemberAddress]) {
        if members.is_empty() {
            return;
        }
        for MemberAddress { server, address, member } in members {
            if self.hub.get(server).is_some_and(|hub| hub.groups != *address) {
                self.hub.remove(server);
            }
            self.members.insert(*member, (server.clone(), address.clone()));
        }
        // Numbers are never used again: the lowest are those of members that left long ago.
        while self.members.len() > ADDRESSES_MAX {
            self.members.pop_first();
        }
        let AddressBook { members: known, hub, .. } = self;
        hub.retain(|server, _| known.values().any(|(of, _)| of == server));
        let now = |MemberAddress { server, address, member }: &MemberAddress| {
            let address = self.address(server, address).to_owned();
            MemberAddress { server: server.clone(), address, member: *member }
        };
        self.current = members.iter().map(now).collect();
    }

    /// The group's own log, or its registry, names members that [`Self::learn`] was not told of:
    /// either may be behind the other.
    pub fn learn_more(&mut self, members: &[MemberAddress]) {
        let known =
            |member: &MemberAddress| self.current.iter().any(|it| it.server == member.server);
        let others = members.iter().filter(|member| !known(member)).cloned();
        let all: Vec<MemberAddress> = others.collect();
        for MemberAddress { server, address, member } in &all {
            self.members.insert(*member, (server.clone(), address.clone()));
        }
        self.current.extend(all);
    }

    /// The hub says where a member is: that is tried first, if it is news. Returns whether it is.
    pub fn learn_move(&mut self, known: &MemberAddress, address: &str) -> bool {
        let groups = self.members.get(&known.member).map_or(&known.address, |(_, at)| at).clone();
        let news = if groups == address {
            self.hub.remove(&known.server).is_some_and(|hub| hub.preferred)
        } else {
            self.hub.get(&known.server).is_none_or(|hub| hub.address != address)
        };
        if news {
            if groups != address {
                let word = HubsWord { address: address.to_owned(), groups, preferred: true };
                self.hub.insert(known.server.clone(), word);
            }
            self.now_at(&known.server, address);
        }
        news
    }

    /// A server did not answer at this address: if another one is known, that is next.
    pub fn missed(&mut self, server: &ServerId, address: &str) {
        let Some(hub) = self.hub.get_mut(server) else { return };
        let tried = if hub.preferred { &hub.address } else { &hub.groups };
        if tried == address {
            hub.preferred = !hub.preferred;
        }
        let next = if hub.preferred { &hub.address } else { &hub.groups }.clone();
        self.now_at(server, &next);
    }

    fn address<'a>(&'a self, server: &ServerId, groups: &'a str) -> &'a str {
        let hub = self.hub.get(server).filter(|hub| hub.preferred);
        hub.map_or(groups, |hub| &hub.address)
    }

    fn now_at(&mut self, server: &ServerId, address: &str) {
        for member in self.current.iter_mut().filter(|member| member.server == *server) {
            address.clone_into(&mut member.address);
        }
    }
}

#[cfg(test)]
#[path = "addresses_test.rs"]
mod addresses_test;
