//! What the agent's shell of an app sees, with what a [`Mutation`] hides.

use cohort_core::ids::{AppId, Digest};
use cohort_core::orders::{AppOrders, Fence};
use cohort_core::policy::Check;
use cohort_core::steps::BootTime;
use cohort_server::app::{App, Sight};
use cohort_server::asking::Received;

use super::{Agent, Server};
use crate::fleet::chaos::Mutation;

impl Server {
    /// What the app's shell sees, for `see`.
    pub(super) fn see<T>(&mut self, app: &AppId, see: impl FnOnce(&mut App, &Sight<'_>) -> T) -> T {
        let boot = self.boots.to_string();
        let now = BootTime { boot: &boot, ms: self.now_ms };
        let held: Vec<Digest> = self.disk.held.iter().cloned().collect();
        let off = self.setup.mutation;
        let service = self.services.get(app).cloned().unwrap_or_default();
        let health = |checks: &Vec<Check>| service.health(checks);
        let agent = &self.agent.apps[app];
        let trial = agent.tried.as_ref().map(health);
        let health = agent.watched.as_ref().map(health);
        let Agent { received, refused, outbox, apps, .. } = &mut self.agent;
        let orders = received.as_ref().and_then(|received| received.of(app));
        let debtless = orders
            .filter(|_| off == Some(Mutation::DebtsBeforeTraffic))
            .map(|orders| AppOrders { owes: false, ..orders.clone() });
        let here = apps.get_mut(app).expect("every app on the disk was booted");
        let ordered = orders.and_then(|orders| orders.activation.as_ref());
        let older = ordered.is_some_and(|order| order.fence < here.record.local.highest);
        let unfenced = (older && off == Some(Mutation::HostFence)).then(|| {
            let mut record = here.record.clone();
            (record.local.highest, record.local.activation) = (Fence::default(), None);
            record
        });
        let fresh = |received: &Received| {
            off == Some(Mutation::OrderValidity) || received.fresh(self.now_ms)
        };
        let sight = Sight {
            now,
            orders: debtless.as_ref().or(orders),
            orders_fresh: received.as_ref().is_some_and(fresh),
            refused: *refused,
            killed: self.kill.stopping().is_some(),
            confirmed: outbox.confirmed().get(app).copied(),
            record: unfenced.as_ref().unwrap_or(&here.record),
            reached: here.reached,
            held: &held,
            health: health.as_ref(),
            trial: trial.as_ref(),
            room: outbox.has_room(),
            room_for_health: outbox.has_room_for_health(),
        };
        see(&mut here.app, &sight)
    }
}
