//! How the agent and the machine of a virtual server start and end.

use std::sync::Arc;

use cohort_core::ids::AppId;

use super::{Agent, Server};
use crate::fleet::chaos::Mutation;
use crate::fleet::net::Packet;

impl Server {
    /// The agent dies (−9), and with it whatever of the log was not durable; services live on.
    pub(crate) fn crash(&mut self) {
        let ended = self.die();
        self.agent.outgoing.extend(ended);
    }

    /// Returns what its connections say as they end.
    fn die(&mut self) -> Vec<Packet> {
        self.up = false;
        self.crash_in = None;
        self.paused_until_ms = 0;
        (self.disk_fails, self.stops) = (false, false);
        if let Some((_, disk)) = &self.disk.log {
            disk.crash();
            if self.setup.mutation == Some(Mutation::DropsEntry) {
                disk.lose_last_entry();
            }
        }
        self.member.take().map_or(Vec::new(), |member| member.hang_up())
    }

    /// The machine dies, and does not even end its connections.
    pub(crate) fn power_off(&mut self) {
        self.die();
        self.boots += 1;
        for service in self.services.values_mut() {
            service.up = false;
            service.dies_ms = None;
        }
    }

    /// The agent starts, and brings up what ran.
    pub(crate) fn start(&mut self) {
        if self.up {
            return;
        }
        self.up = true;
        self.kill = Arc::clone(&self.disk.kill);
        self.check_latch();
        self.disk.boot_epoch += 1;
        let outgoing = std::mem::take(&mut self.agent.outgoing);
        self.lives += 1;
        self.agent = Agent {
            outgoing,
            next_id: self.lives << 32,
            ..Agent::new(&self.id, self.disk.boot_epoch)
        };
        self.open_member();
        let apps: Vec<AppId> = self.disk.apps.keys().cloned().collect();
        for app in apps {
            self.boot(&app);
        }
    }
}
