//! Random commands, close enough to real ones that many are accepted.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::command::{Body, COMMAND_VERSION, Command, Planned};
use cohort_core::ids::{
    AppId, BootEpoch, Channel, ClockMs, Digest, Generation, GroupId, Incarnation, MemberId,
    Platform, RequestId, Revision, ServerId, Version,
};
use cohort_core::orders::{Fence, Purpose};
use cohort_core::policy::{Duration, Policy, Size, Update, WaveSizes};
use cohort_core::reason::Reason;
use cohort_core::release::{Release, Rollback};
use cohort_core::report::{Blame, Outcome, Report, Step};
use cohort_core::state::{Process, State};
use proptest::prelude::*;

/// A group after set-up, with three servers and a policy.
pub(crate) fn group() -> State {
    let mut state = State::new(GroupId::new("intel.zone-a").expect("a name"), Incarnation(1));
    let labels = BTreeMap::from([("zone".to_owned(), "zone-a".to_owned())]);
    let mut bodies = vec![Body::SetUp { labels, platform: platform() }];
    bodies.extend((0..3).map(|n| Body::AddServer {
        server: server(n),
        address: format!("10.0.0.{n}:7417"),
        rack: None,
        process: Process::default(),
    }));
    bodies.push(Body::SetPolicy {
        policy: policy(2, 1),
        revision: Revision(1),
        proof: Default::default(),
    });
    for body in bodies {
        state.apply(&command(None, body)).expect("setting up is always taken");
    }
    state
}

pub(crate) fn command(request: Option<u8>, body: Body) -> Command {
    Command {
        version: COMMAND_VERSION,
        incarnation: Incarnation(1),
        actor: "ana".into(),
        request: request.map(|n| RequestId(format!("r{n}"))),
        body,
    }
}

pub(crate) fn platform() -> Platform {
    Platform::new("intel").expect("a platform")
}

pub(crate) fn app() -> AppId {
    AppId::new("web").expect("an app")
}

pub(crate) fn server(n: u8) -> ServerId {
    ServerId::new(format!("s{n}")).expect("a server id")
}

pub(crate) fn release(n: u8) -> Release {
    Release {
        version: Version::new(format!("1.{n}.0")).expect("a version"),
        platform: platform(),
        artifact: Digest::new(format!("{n:064x}")).expect("a digest"),
        manifest: Digest::new(format!("{:064x}", u32::from(n) + 1000)).expect("a digest"),
        length: 1000,
        unpacked_bytes: 64 << 30,
        entries: 250_000,
        rollback: match n % 8 {
            6 => Rollback::Freeze,
            7 => Rollback::ForwardOnly,
            _ => Rollback::Revert,
        },
    }
}

pub(crate) fn policy(max_parallel: u32, failures_allowed: u32) -> Policy {
    Policy {
        app: app(),
        channel: Channel::new("stable").expect("a channel"),
        update: Update {
            max_parallel: WaveSizes(vec![Size::Count(max_parallel)]),
            max_unavailable: Size::Count(max_parallel),
            failures_allowed: Size::Count(failures_allowed),
            min_healthy_time: Duration::from_secs(1),
            ..Update::default()
        },
        checks: Vec::new(),
        stages: Vec::new(),
    }
}

/// A command in the making: generation, clock and sequence come from the state it is applied to, or
/// are deliberately wrong.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) kind: u8,
    pub(crate) server: u8,
    pub(crate) release: u8,
    pub(crate) number: u8,
    pub(crate) stale: bool,
    pub(crate) request: Option<u8>,
}

pub(crate) fn wish() -> impl Strategy<Value = Wish> {
    (0u8..36, 0u8..5, 0u8..8, any::<u8>(), prop::bool::weighted(0.1), prop::option::of(0u8..200))
        .prop_map(|(kind, server, release, number, stale, request)| Wish {
            kind,
            server,
            release,
            number,
            stale,
            request,
        })
}

impl Wish {
    pub(crate) fn body(&self, state: &State) -> Body {
        let (app, server, release) = (app(), server(self.server), release(self.release));
        let there = state.apps.get(&app);
        let generation = there.map_or(Generation(0), |app| app.generation);
        let generation = if self.stale { Generation(generation.0 / 2) } else { generation };
        let reason = "for reasons".to_owned();
        let n = u64::from(self.number);
        let plan = |step| Body::Plan { app: app.clone(), generation, step };
        match self.kind {
            0 => {
                let from = if self.stale { ClockMs(1) } else { state.clock };
                Body::AdvanceClock { to: from.plus(n * 40) }
            }
            1 => {
                let (address, process) = ("10.0.0.9:7417".into(), Process::default());
                Body::AddServer { server, address, rack: None, process }
            }
            2 if n < 64 => Body::RemoveServer { server },
            2 if n > 245 => {
                Body::RemoveApp { app, revision: Revision(n % 8), proof: Default::default() }
            }
            3 => Body::AllocateMember { server },
            4 => Body::RetireMember { server, member: MemberId(n % 8) },
            5 => {
                let policy = policy(u32::from(self.number % 3) + 1, u32::from(self.number % 2));
                Body::SetPolicy { policy, revision: Revision(n % 5), proof: Default::default() }
            }
            6 => Body::Adopt { app, release },
            7 | 8 => {
                let revision = there.map_or(Revision(1), |app| app.revision);
                Body::StartRollout { app, release, revision, lead: server }
            }
            9 => plan(Planned::TakeLead { lead: server }),
            10 | 11 => {
                let record = there.map_or(0, |app| app.record);
                Body::RecordWritten { app, record: if self.stale { n } else { record } }
            }
            12 => plan(Planned::LeaderHolds { server }),
            13 => plan(Planned::Verify { server }),
            14 => {
                let rollout = there.and_then(|app| app.phase.rollout());
                let number = rollout.map_or(1, |rollout| rollout.waves + 1);
                plan(Planned::StartWave { number, servers: [server].into() })
            }
            15 => plan(Planned::WidenWave { server }),
            16..=18 => {
                let purpose =
                    [Purpose::Wave, Purpose::RollBack, Purpose::Debt][usize::from(self.number) % 3];
                let voters = there.map_or_else(BTreeSet::new, |app| {
                    app.servers.keys().take(usize::from(self.number) % 4).cloned().collect()
                });
                plan(Planned::Grant { server, purpose, voters })
            }
            19 if n % 3 == 0 => plan(Planned::Withdraw { server }),
            19 => plan(Planned::LoseServer { server, silent_ms: n * 1000 }),
            20 if n % 3 == 0 => plan(Planned::LeaveOut { server }),
            20 => plan(Planned::FindServer { server }),
            21 if n < 80 => plan(Planned::Fail { reason: Reason::NoServerLeft }),
            22 => {
                let group = GroupId::new("intel.zone-b").expect("a name");
                plan(Planned::PauseForVerdict {
                    group,
                    reason: Reason::ServersLost { servers: Vec::new() },
                })
            }
            23 => Body::Pause { app, reason, for_ms: None },
            24 => Body::Resume { app },
            25 => Body::Abort { app, reason },
            26 => Body::Retry { app },
            27 if n % 2 == 0 => Body::Restart { app, servers: [server].into() },
            27 => Body::Undo { app, lead: server },
            _ => Body::Report { report: self.report(state, server) },
        }
    }

    fn report(&self, state: &State, server: ServerId) -> Report {
        let known = state.servers.get(&server);
        let here = state.apps.get(&app()).and_then(|app| app.servers.get(&server));
        let going_to =
            state.apps.get(&app()).and_then(|app| app.phase.forward()).map(|r| r.release.clone());
        let activation = here.and_then(|here| here.activation.as_ref());
        let fence = activation.map_or(Fence::default(), |activation| activation.fence);
        let release = going_to.unwrap_or_else(|| release(self.release));
        let reason = "for reasons".to_owned();
        let outcome = match self.kind {
            28 => {
                Outcome::Found { release: Some(release), in_service: self.number.is_multiple_of(2) }
            }
            29 => Outcome::Holds { artifact: release.artifact },
            30 if self.number.is_multiple_of(4) => Outcome::Lacks { artifact: release.artifact },
            30 => Outcome::Holds { artifact: release.artifact },
            31 => Outcome::Applied,
            32 => Outcome::Checked,
            33 if self.number.is_multiple_of(3) => Outcome::GivenBack,
            33 => Outcome::InService,
            34 => Outcome::Failed {
                blame: if self.number.is_multiple_of(2) {
                    Blame::Release
                } else {
                    Blame::Surroundings
                },
                step: Step::ALL[usize::from(self.number) % Step::ALL.len()],
                reason,
                output: String::new(),
            },
            _ if self.number.is_multiple_of(2) => {
                Outcome::Undone { release: activation.and_then(|a| a.before.clone()), reason }
            }
            _ => Outcome::Health { in_service: self.number.is_multiple_of(3), reason },
        };
        let sequence = known.map_or(0, |known| known.sequence) + u64::from(!self.stale);
        Report {
            server,
            boot_epoch: known.map_or(BootEpoch(0), |known| known.boot_epoch),
            sequence,
            app: app(),
            fence: if self.stale { Fence::default() } else { fence },
            attempt: 1,
            outcome,
        }
    }
}
