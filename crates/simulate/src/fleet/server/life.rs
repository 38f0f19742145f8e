//! How the agent and the machine of a virtual server start and end.

use std::sync::Arc;

use cohort_core::ids::AppId;
use cohort_server::copies::contested_pause_ms;

use super::{Agent, RESTART_MS, Server};
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
        (self.contested, self.restart_ms) = (0, None);
        self.crash_in = None;
        (self.paused_until_ms, self.busy_until_ms) = (0, 0);
        (self.disk_fails, self.stops) = (false, false);
        if let Some((_, disk)) = &self.disk.log {
            disk.crash();
            if self.setup.mutation == Some(Mutation::DropsEntry) {
                disk.lose_last_entry();
            }
        }
        self.member.take().map_or(Vec::new(), |member| member.hang_up())
    }

    /// The agent ends, and starts again at once.
    pub(super) fn restart(&mut self) {
        let contested = self.contested;
        self.crash();
        self.contested = contested;
        self.start();
    }

    /// The same because its disk went back, or another agent speaks for its server; after a pause
    /// if that was found before.
    pub(super) fn start_over(&mut self) {
        let contested = self.contested + 1;
        match contested_pause_ms(contested) {
            Some(pause_ms) => {
                self.crash();
                self.restart_ms = Some(self.now_ms + pause_ms);
            }
            None => self.restart(),
        }
        self.contested = contested;
    }

    /// The process ends with an error, and is started again.
    pub(super) fn end(&mut self) {
        self.crash();
        self.restart_ms = Some(self.now_ms + RESTART_MS);
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
        if self.read_only {
            // It waits until it can write.
            self.restart_ms = Some(self.now_ms + RESTART_MS);
            return;
        }
        self.up = true;
        self.restart_ms = None;
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
