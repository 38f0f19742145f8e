//! Whether what is known of a server still holds.
//!
//! What a server said has an age. Only the leader can tell how long a server has been silent, and
//! only while it has a quorum; everything else that a member knows is what was true once. Whatever
//! shows a server to people asks here. What the leader decides by comes from the same contacts.

use cohort_core::capacity::{COUNTED_ON_MS, unknown_after_ms};
use cohort_core::ids::ServerId;

use crate::asking::{ANSWER_MS_MAX, CHANGE_MS_MAX};
use crate::contacts::{Contacts, PASS_ON_EVERY_MS};
use crate::member::View;

/// A server whose member went silent waits for its held request, and perhaps for a second member
/// that is silent too, before a third one hears it and reports the contact.
const _: () = assert!(CHANGE_MS_MAX + ANSWER_MS_MAX + 1_000 + PASS_ON_EVERY_MS < COUNTED_ON_MS);

impl View {
    /// How long a server has certainly not asked any member for its orders, in milliseconds; `None`
    /// unless this member is the leader. Before the leader listened, the server may have asked
    /// another one.
    #[must_use]
    pub fn silent_ms(&self, server: &ServerId, contacts: &Contacts, now_ms: u64) -> Option<u64> {
        let heard_ms = contacts.of(server).map_or(0, |contact| contact.at_ms);
        let since_ms = self.listens_since_ms?.max(heard_ms);
        Some(if self.leader() == Some(server) { 0 } else { now_ms.saturating_sub(since_ms) })
    }

    /// Whether a server is unknown. To the leader: it has asked no member for longer than
    /// [`unknown_after_ms`]; or not once since this member became the leader, although all live
    /// servers should have by now. To other members, every server is.
    #[must_use]
    pub fn is_unknown(&self, server: &ServerId, contacts: &Contacts, now_ms: u64) -> bool {
        let silent_ms = self.silent_ms(server, contacts, now_ms).filter(|_| self.leads());
        let heard_ms = contacts.of(server).map(|contact| contact.at_ms);
        let bound_ms = unknown_after_ms(&self.state);
        let heard = heard_ms >= self.listens_since_ms;
        silent_ms.is_none_or(|ms| ms > if heard { bound_ms } else { bound_ms.min(COUNTED_ON_MS) })
    }

    /// Number of unknown servers, for alerts: 0 on a member that has a leader, which counts them.
    #[must_use]
    pub fn unknown_servers(&self, contacts: &Contacts, now_ms: u64) -> usize {
        if !self.leads() && self.raft.leader.is_some() {
            return 0;
        }
        let servers = self.state.servers.keys();
        servers.filter(|server| self.is_unknown(server, contacts, now_ms)).count()
    }
}
