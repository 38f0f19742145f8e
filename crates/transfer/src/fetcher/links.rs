//! Subscriptions: to the feeds, moved to spares when a feed falls silent.

use cohort_core::ids::ServerId;

use super::{Effect, Fetcher, Goal, Request, RequestId, What};
use crate::offence::{Failure, Offence};
use crate::source::{Outcome, SourceId};

/// How often subscriptions are checked: a fraction of the time that counts as silence.
pub(super) const CHECK_MS: u64 = 50;

/// A server that did not check for this long was itself held up (an overloaded or suspended
/// machine): what it did not hear is not the source's silence.
const DEAF_MS: u64 = 4 * CHECK_MS;

impl Fetcher {
    pub(super) fn keep_links(
        &mut self,
        goal: &Goal,
        now_ms: u64,
        random: u64,
        effects: &mut Vec<Effect>,
    ) {
        self.cancel_silent(now_ms, random, effects);
        let wanted = self.wanted_links(goal, now_ms);
        for server in &wanted {
            if self.link_to(server).is_none() {
                effects.extend(self.ask(&SourceId::Server(server.clone()), What::Link, now_ms));
            }
        }
        // The old feed sends until the new one does.
        let settled = wanted.iter().all(|server| {
            self.link_to(server).is_some_and(|(_, link)| link.heard_ms > link.begun_ms)
        });
        if !settled || wanted.is_empty() {
            return;
        }
        self.requests.retain(|id, request| {
            let stays = match &request.source {
                SourceId::Server(server) => request.what != What::Link || wanted.contains(server),
                SourceId::Mirror(_) => true,
            };
            if !stays {
                effects.push(Effect::Cancel { id: *id });
            }
            stays
        });
    }

    fn cancel_silent(&mut self, now_ms: u64, random: u64, effects: &mut Vec<Effect>) {
        let links = self.requests.iter().filter(|(_, request)| request.what == What::Link);
        let silent: Vec<(RequestId, u64)> = links
            .filter_map(|(id, link)| {
                let (since, ms) = if link.heard_ms > link.begun_ms {
                    (link.heard_ms, self.limits.silence_ms_max)
                } else {
                    (link.begun_ms, self.limits.link_begin_ms_max)
                };
                (now_ms.saturating_sub(since) > ms).then_some((*id, ms))
            })
            .collect();
        let linked = self.requests.values().any(|request| request.what == What::Link);
        if linked && now_ms.saturating_sub(self.checked_ms) > DEAF_MS {
            self.deaf_until_ms = now_ms + self.limits.silence_ms_max;
        }
        self.checked_ms = now_ms;
        if now_ms < self.deaf_until_ms {
            return;
        }
        for (id, ms) in silent {
            let why = format!("no heartbeat within {ms} ms");
            let failure = Some((Failure::Misbehaved(Offence::Silent), why));
            self.ended(id, Outcome { failure, ..Outcome::default() }, now_ms, random);
            effects.push(Effect::Cancel { id });
        }
    }

    /// Cancels the link to a holder that this server chose itself, that is alive, and that sends
    /// nothing: nothing else would detect it.
    pub(super) fn cancel_barren(
        &mut self,
        goal: &Goal,
        now_ms: u64,
        random: u64,
    ) -> Option<Effect> {
        let chosen = goal.feeds.first().filter(|_| !goal.by_leader)?;
        let (id, link) = self.link_to(chosen)?;
        let (id, since) = (*id, link.begun_ms.max(self.moved_ms));
        let ms = self.limits.pull_after_ms;
        if now_ms.saturating_sub(since) < ms {
            return None;
        }
        let failure = Some((Failure::Unreachable, format!("no new unit within {ms} ms")));
        self.ended(id, Outcome { failure, ..Outcome::default() }, now_ms, random);
        Some(Effect::Cancel { id })
    }

    /// A usable server for each feed: the feed itself, or the next spare.
    fn wanted_links(&self, goal: &Goal, now_ms: u64) -> Vec<ServerId> {
        let usable =
            |server: &ServerId| self.sources.is_usable(&SourceId::Server(server.clone()), now_ms);
        let mut wanted: Vec<ServerId> = Vec::new();
        for feed in &goal.feeds {
            let mut choices = std::iter::once(feed).chain(&goal.spares);
            let found = choices.find(|server| usable(server) && !wanted.contains(server));
            wanted.extend(found.cloned());
        }
        wanted
    }

    fn link_to(&self, server: &ServerId) -> Option<(&RequestId, &Request)> {
        self.requests.iter().find(|(_, request)| {
            request.what == What::Link
                && matches!(&request.source, SourceId::Server(to) if to == server)
        })
    }
}
