//! What somebody outside of Cohort sees, and what must never be seen.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_core::state::App;
use cohort_server::asking::ORDERS_VALID_MS;

use super::behaviour::Behaviours;
use super::group::Group;
use super::server::Service;

/// A prober. Every look panics where something is seen that must never be.
#[derive(Debug, Default)]
pub(crate) struct Prober {
    /// The most servers that were being changed at once.
    pub(crate) most_out: usize,
    /// Servers that a change took away from the users they were serving, until they serve again:
    /// whether they failed, were lost, or crashed meanwhile.
    taken: BTreeSet<(GroupId, ServerId)>,
    /// The limits of each app of a group, and when they were last in force.
    limits: BTreeMap<(GroupId, AppId), BTreeMap<u32, u64>>,
}

impl Prober {
    /// Looks at every server of a group.
    pub(crate) fn look(&mut self, now_ms: u64, group: &Group, behaviours: &Behaviours) {
        for (id, server) in &group.servers {
            for (app, service) in &server.services {
                let runs = service.release.as_ref().filter(|_| service.up);
                assert!(
                    runs.is_none_or(|release| behaviours.knows(release)),
                    "{now_ms} ms: {app} on {id} runs what nobody published"
                );
            }
        }
        self.look_at_capacity(now_ms, group);
        Prober::look_at_plan(now_ms, group);
    }

    /// No change takes a server away while `max_unavailable` others are away.
    fn look_at_capacity(&mut self, now_ms: u64, group: &Group) {
        let state = &group.log.state;
        let name = &state.group;
        self.taken.retain(|(of, id)| {
            of != name
                || group.servers.get(id).is_some_and(|server| {
                    let away = |service: &Service| service.release.is_some() && !service.serves();
                    state.servers.contains_key(id) && server.services.values().any(away)
                })
        });
        for (app, of) in &state.apps {
            let limits = self.limits.entry((name.clone(), app.clone())).or_default();
            limits.insert(of.max_unavailable(state.size()), now_ms);
            limits.retain(|_, at_ms| *at_ms + ORDERS_VALID_MS >= now_ms);
        }
        let granted = |id: &ServerId, app: &App| Some(app.servers.get(id)?.in_flight()?.granted);
        for (id, server) in &group.servers {
            let away = |app: &&AppId| server.took_away.contains(*app) && server.being_changed(app);
            let Some(app) = state.apps.keys().find(away) else { continue };
            let member = state.servers.contains_key(id);
            if !member || !self.taken.insert((name.clone(), id.clone())) {
                continue;
            }
            // Grants are honoured in their order: one that was made later may have begun earlier.
            let own = granted(id, &state.apps[app]).map(|at| (at, id));
            let before = |other: &&ServerId| {
                let mut changes = state.apps.values().filter_map(|app| granted(other, app));
                *other != id && !changes.any(|at| Some((at, *other)) > own)
            };
            let taken = self.taken.iter().filter(|(of, _)| of == name).map(|(_, id)| id);
            let others: Vec<&ServerId> = taken.filter(before).collect();
            let max = self.limits[&(name.clone(), app.clone())].keys().max().copied();
            assert!(
                max.is_none_or(|max| others.len() < max as usize),
                "{now_ms} ms: {id} of {name} left service for {app}, {others:?} are out, \
                 {max:?} may be"
            );
        }
        self.most_out = self.most_out.max(self.taken.iter().filter(|(of, _)| of == name).count());
    }

    /// Looks at what the leader shows: what does not move says why.
    fn look_at_plan(now_ms: u64, group: &Group) {
        let Some((leader, view)) = group.leader_view() else { return };
        let rests = view.raft.log.1 == view.raft.applied
            && view.raft.transfer.is_none()
            && !group.servers[leader].stops;
        for (id, app) in view.state.apps.iter().filter(|_| rests) {
            assert!(
                view.waiting.iter().any(|waiting| waiting.app == *id),
                "{now_ms} ms: {}: {id} is {} and waits without a reason: {:?}, {:?}",
                view.state.group,
                app.phase.name(),
                view.waiting,
                view.raft,
            );
        }
    }
}
