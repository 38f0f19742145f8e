//! Power that is lost at any moment of a rollout while the kill switch is thrown.

use cohort_core::ids::ServerId;
use cohort_core::kill::KillScope;

use super::{Chaos, Trace};
use crate::fleet::build;
use crate::fleet::server::Service;
use crate::fleet::world::{Fleet, TICK_MS};

/// Until three servers have their first release, at most, in milliseconds.
const SETTLES_MS_MAX: u64 = 120_000;
/// How long the power is away, in milliseconds.
const DARK_MS: u64 = 5_000;
/// How long a server may take until it serves again although everything is stopped, in
/// milliseconds: longer than an interrupted step and the way back.
const BACK_MS_MAX: u64 = 60_000;

impl Chaos {
    /// Three servers roll a release out. `at_ms` after its start, everything is stopped, and the
    /// server that is being changed loses its power; it serves again before anybody turns the kill
    /// switch off. Then everything heals.
    ///
    /// # Panics
    /// At the first violation.
    pub fn survives_power_loss(at_ms: u64) {
        let mut chaos = Chaos::empty(Fleet::new(at_ms), Trace::Off);
        chaos.apps.truncate(1);
        chaos.add_group("zone-a", 3);
        let (app, group) = (chaos.apps[0].clone(), chaos.groups[0].clone());
        chaos.fleet.set_policy(build::policy(app.as_str()));
        let first = chaos.release(&app, true);
        while let Err(open) = chaos.fleet.groups[&group].settled_on(&app, &first) {
            assert!(chaos.fleet.now_ms < SETTLES_MS_MAX, "the first release: {open}");
            chaos.fleet.run_ms(TICK_MS);
        }
        chaos.release(&app, true);
        chaos.fleet.run_ms(at_ms);
        let state = &chaos.fleet.groups[&group].log.state;
        let changing = state.apps.get(&app).and_then(|app| app.in_flight().next());
        let victim = changing.map_or_else(|| build::server(1), |(server, _)| server.clone());
        chaos.fleet.throw(KillScope::Fleet, Some("somebody said so"), |_| true);
        chaos.server(&group, &victim).power_off();
        chaos.fleet.run_ms(DARK_MS);
        chaos.server(&group, &victim).start();
        let serves = |chaos: &Chaos, server: &ServerId| {
            let services = &chaos.fleet.groups[&group].servers[server].services;
            services.get(&app).is_some_and(Service::serves)
        };
        let until_ms = chaos.fleet.now_ms + BACK_MS_MAX;
        while !serves(&chaos, &victim) {
            let server = &chaos.fleet.groups[&group].servers[&victim];
            assert!(
                chaos.fleet.now_ms < until_ms,
                "power lost after {at_ms} ms: {victim} does not serve: {:?}, {:?}",
                server.services,
                server.disk.apps
            );
            chaos.fleet.run_ms(TICK_MS);
        }
        chaos.heal();
    }
}
