//! What somebody outside of Cohort sees, and what must never be seen.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::command::Event;
use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_core::orders::Purpose;
use cohort_core::phase::Phase;

use super::behaviour::Behaviours;
use super::group::Group;
use super::server::Server;

/// A prober. Every look panics where something is seen that must never be.
#[derive(Debug, Default)]
pub(crate) struct Prober {
    /// The most servers that were being changed at once.
    pub(crate) most_out: usize,
    /// Servers that a group goes on without, told to people, until they are through.
    lost: BTreeSet<(GroupId, ServerId)>,
    /// Servers that failed: a matter of the budget for failures until they are back, or until the
    /// whole group goes back.
    failed: BTreeSet<(GroupId, ServerId)>,
    /// Who was out at the last look, and how many might be.
    before: BTreeMap<GroupId, (BTreeSet<ServerId>, u32)>,
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
        self.follow_lost(group);
        Prober::look_at_plan(now_ms, group);
        let name = &group.log.state.group;
        let (mut out, mut failed): (BTreeSet<&ServerId>, usize) = (BTreeSet::new(), 0);
        let apps = &group.log.state.apps;
        let max = apps.values().map(|app| {
            let policy = app.phase.rollout().map_or(&app.policy, |rollout| &rollout.policy);
            policy.max_unavailable_of(group.log.state.size())
        });
        let max = max.max().unwrap_or(1);
        let goes_back = apps.values().any(|app| matches!(app.phase, Phase::RollingBack { .. }));
        for (id, server) in &group.servers {
            let key = (name.clone(), id.clone());
            let member = group.log.state.servers.contains_key(id);
            if !member || self.lost.contains(&key) || !apps.keys().any(|app| is_out(server, app)) {
                continue;
            }
            if self.failed.contains(&key) {
                failed += 1;
            } else {
                out.insert(id);
            }
        }
        // What failed is a matter of the budget for failures; but while the group goes back,
        // nobody else leaves until those are back.
        let before = self.before.entry(name.clone()).or_default();
        // What was granted under an older policy may end under it.
        let max = if out.is_empty() { max } else { max.max(before.1) };
        let sent_back = |id: &ServerId| {
            group.log.state.apps.values().filter_map(|app| app.servers.get(id)).any(|here| {
                here.activation.as_ref().is_some_and(|a| a.purpose == Purpose::RollBack)
            })
        };
        let newly = out.iter().any(|id| !before.0.contains(*id) && sent_back(id));
        let more = goes_back && newly && out.len() + failed > max as usize;
        *before = (out.iter().map(|id| (*id).clone()).collect(), max);
        self.most_out = self.most_out.max(out.len());
        if out.len() > max as usize || more {
            panic!(
                "{now_ms} ms: {out:?} of {name} (and {failed} failed ones) are out, {max} may be"
            );
        }
    }

    fn follow_lost(&mut self, group: &Group) {
        let name = &group.log.state.group;
        for happened in group.news() {
            if let Event::ServerLost { server, .. } = &happened.event {
                self.lost.insert((name.clone(), server.clone()));
            }
            if let Event::ServerFailed { server, app, .. } = &happened.event {
                // Who cannot go back either is written off, like one that is lost.
                if matches!(group.log.state.apps[app].phase, Phase::RollingBack { .. }) {
                    self.lost.insert((name.clone(), server.clone()));
                }
                self.failed.insert((name.clone(), server.clone()));
            }
        }
        self.failed.retain(|(of, server)| {
            of != name
                || group.servers.get(server).is_some_and(|server| {
                    let heard_back = group.log.state.apps.values().all(|app| {
                        app.servers
                            .get(&server.id)
                            .is_none_or(|h| h.running.is_none() || h.in_service)
                    });
                    server.disk.apps.keys().any(|app| server.being_changed(app))
                        || !heard_back
                        || server.services.values().any(|s| s.release.is_some() && !s.serves())
                })
        });
        self.lost.retain(|(of, server)| {
            of != name
                || group.servers.get(server).is_some_and(|server| {
                    server.disk.apps.keys().any(|app| server.being_changed(app))
                        || !server.up
                        || server.cut
                })
        });
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

/// Whether a change took the server away from its users, and it is not through yet.
fn is_out(server: &Server, app: &AppId) -> bool {
    server.took_away.contains(app) && server.being_changed(app)
}
