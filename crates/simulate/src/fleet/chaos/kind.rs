//! What can happen, and how often: faults, their ends, and wishes of persons.

use std::collections::BTreeSet;

use cohort_core::command::Body;
use cohort_core::ids::ServerId;
use cohort_core::kill::KillScope;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::Chaos;
use crate::fleet::net::Weather;

/// Servers of a fleet, at most.
const SERVERS_MAX: usize = 24;

/// One fault, one end of a fault, or one wish of a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Joins,
    Leaves,
    Crashes,
    LosesPower,
    Wiped,
    IsCutOff,
    ComesBack,
    Transfer,
    Release,
    RegistryAway,
    Kill,
    Weather,
    Policy,
    Pause,
    Resume,
    Decide,
    LeaderSlept,
    DiskFails,
    LeaderPauses,
    Pauses,
    Parted,
    CutOneWay,
    PartedNoMore,
    Stops,
    Connection,
    MachineGone,
    LosesLog,
    Image,
    HearsEarlier,
    Copied,
    CopyEnds,
    Moves,
    ClockJumps,
    DiskFills,
    DiskReadOnly,
    DiskSlow,
    Repaired,
    RegistryRefuses,
    RegistrySlow,
    MirrorsAway,
    MirrorsLack,
    SourcesSlow,
    SupplyIsBack,
}

/// Of each kind, the rates of which a seed draws one. Seeds differ in character; what ends a fault
/// always comes.
const RATES: &[(Kind, &[u32])] = {
    const USUAL: &[u32] = &[0, 1, 1, 2, 4];
    const TWICE: &[u32] = &[0, 2, 2, 4, 8];
    &[
        (Kind::Joins, USUAL),
        (Kind::Leaves, USUAL),
        (Kind::Crashes, TWICE),
        (Kind::LosesPower, USUAL),
        (Kind::Wiped, USUAL),
        (Kind::IsCutOff, TWICE),
        (Kind::ComesBack, &[4, 6]),
        (Kind::Transfer, USUAL),
        (Kind::Release, USUAL),
        (Kind::RegistryAway, USUAL),
        (Kind::Kill, USUAL),
        (Kind::Weather, USUAL),
        (Kind::Policy, USUAL),
        (Kind::Pause, USUAL),
        (Kind::Resume, &[2]),
        (Kind::Decide, USUAL),
        (Kind::LeaderSlept, USUAL),
        (Kind::DiskFails, USUAL),
        (Kind::LeaderPauses, USUAL),
        (Kind::Pauses, USUAL),
        (Kind::Parted, USUAL),
        (Kind::CutOneWay, USUAL),
        (Kind::PartedNoMore, &[2, 4]),
        (Kind::Stops, USUAL),
        (Kind::Connection, USUAL),
        (Kind::MachineGone, USUAL),
        (Kind::LosesLog, USUAL),
        (Kind::Image, &[1, 2, 4, 8]),
        (Kind::HearsEarlier, USUAL),
        (Kind::Copied, USUAL),
        (Kind::CopyEnds, &[1, 2]),
        (Kind::Moves, USUAL),
        (Kind::ClockJumps, USUAL),
        (Kind::DiskFills, USUAL),
        (Kind::DiskReadOnly, USUAL),
        (Kind::DiskSlow, USUAL),
        (Kind::Repaired, &[4, 6]),
        (Kind::RegistryRefuses, USUAL),
        (Kind::RegistrySlow, USUAL),
        (Kind::MirrorsAway, USUAL),
        (Kind::MirrorsLack, USUAL),
        (Kind::SourcesSlow, USUAL),
        (Kind::SupplyIsBack, &[2]),
    ]
};

/// The rates of one seed.
pub(super) fn rates(rng: &mut ChaCha8Rng) -> Vec<(Kind, u32)> {
    let draw = |(kind, rates): &(Kind, &[u32])| (*kind, *rates.choose(rng).expect("one at least"));
    RATES.iter().map(draw).collect()
}

impl Kind {
    /// Whether something breaks: neither a wish, nor the end of a fault.
    fn is_fault(self) -> bool {
        !matches!(
            self,
            Kind::Joins
                | Kind::Leaves
                | Kind::ComesBack
                | Kind::CopyEnds
                | Kind::Repaired
                | Kind::Transfer
                | Kind::Release
                | Kind::Policy
                | Kind::Pause
                | Kind::Resume
                | Kind::Decide
                | Kind::PartedNoMore
                | Kind::SupplyIsBack
        )
    }
}

impl Chaos {
    /// The kind of what happens next, by the seed's rates.
    fn kind(&mut self) -> Kind {
        let chosen = self.rates.choose_weighted(&mut self.fleet.rng, |(_, rate)| *rate);
        chosen.expect("some kinds always come").0
    }

    /// One fault, or one wish of a person.
    pub(super) fn fault(&mut self) {
        let group = self.groups.choose(&mut self.fleet.rng).expect("one at least").clone();
        let app = self.apps.choose(&mut self.fleet.rng).expect("one at least").clone();
        let ids: Vec<ServerId> =
            self.fleet.groups[&group].log.state.servers.keys().cloned().collect();
        let server = ids.choose(&mut self.fleet.rng).cloned();
        let kind = self.kind();
        self.faults += u64::from(kind.is_fault());
        match (kind, server) {
            (Kind::Joins, _) if self.servers < SERVERS_MAX => self.join(&group),
            // The only voter of a group knows everything alone.
            // Nobody takes out a server while the group does not know yet that it lost another.
            (Kind::Leaves, Some(server))
                if ids.len() > 2 && self.voters(&group) > 1 && !self.lost_lately() =>
            {
                self.say_of(&group, &format!("{server} leaves"));
                // A second machine of a removed server can bring it back: `docs/testing.md`.
                self.group(&group).copies.remove(&server);
                self.fleet.leave(&group, &server);
            }
            (Kind::Joins | Kind::Leaves, _) => {}
            (Kind::Transfer, server) => {
                self.say_of(&group, &format!("{server:?} is to lead"));
                self.fleet.transfer(&group, server.as_ref());
            }
            (Kind::Release, _) => {
                self.release(&app, false);
            }
            (Kind::Kill, _) => {
                let reason = (self.draw(3) == 0).then_some("somebody said so");
                let scope = [KillScope::Fleet, KillScope::Group(group)];
                let scope = scope[self.draw(2) as usize].clone();
                self.say(&format!("kill switch of {scope}: {reason:?}"));
                self.throw(scope, reason);
            }
            (Kind::Weather, _) => {
                let weather = if self.draw(2) == 0 {
                    Weather::default()
                } else {
                    let delay_ms_max = [0, 2, 20, 80][self.draw(4) as usize];
                    let (lost, twice, late) = (self.draw(300), self.draw(300), self.draw(300));
                    Weather { lost, twice, late, delay_ms_max }
                };
                self.say(&format!("{weather:?}"));
                self.fleet.weather = weather;
            }
            (Kind::Policy, _) => self.policy(&app),
            (Kind::Pause, _) => {
                self.wish(&group, Body::Pause { app, reason: "lunch".into(), for_ms: None });
            }
            (Kind::Resume, _) => {
                self.wish(&group, Body::Resume { app: app.clone() });
                self.wish(&group, Body::Approve { app });
            }
            (Kind::Decide, _) => match self.draw(4) {
                0 => self.wish(&group, Body::Abort { app, reason: "no".into() }),
                1 => self.wish(&group, Body::Retry { app }),
                2 => self.wish(&group, Body::Restart { app, servers: BTreeSet::new() }),
                _ => {
                    if let Some(lead) = self.fleet.groups[&group].leader() {
                        self.wish(&group, Body::Undo { app, lead });
                    }
                }
            },
            (Kind::LeaderSlept, _) => {
                let ahead_ms = u64::from(self.versions) * 1_000;
                self.say_of(&group, "a leader slept");
                if let Some(leader) = self.fleet.groups[&group].leader() {
                    self.fleet.catch_up(&group, &leader);
                    self.server(&group, &leader).ahead_ms += ahead_ms;
                }
            }
            (
                Kind::RegistryAway
                | Kind::RegistryRefuses
                | Kind::RegistrySlow
                | Kind::MirrorsAway
                | Kind::MirrorsLack
                | Kind::SourcesSlow
                | Kind::SupplyIsBack,
                _,
            ) => self.supply(kind),
            (kind, Some(server)) => self.trouble(kind, &group, &server),
            (_, None) => {}
        }
    }
}
