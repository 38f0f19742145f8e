//! A group for tests of output: three servers mid-rollout.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::doing::{BytesFrom, Download};
use cohort_core::ids::{
    AppId, ClockMs, Generation, GroupId, Incarnation, MemberId, Platform, ServerId, Version,
};
use cohort_core::machine::DiskSpace;
use cohort_core::orders::MemberAddress;
use cohort_core::phase::PhaseName;
use cohort_core::reason::{DebtReason, Reason, Unfit};
use cohort_core::report::Step;
use cohort_core::state::ActivationStage;
use cohort_core::waiting::WaitingOn;
use cohort_wire::agent::{
    AppStatus, CONTROL_VERSION, ChainStatus, Doing, GroupStatus, Offence, OffenderStatus,
    ServerAppStatus, ServerStatus, SourceName, TransferStatus, WaitingStatus,
};

pub(crate) fn version(text: &str) -> Version {
    Version::new(text).unwrap()
}

pub(crate) fn server(text: &str) -> ServerId {
    ServerId::new(text).unwrap()
}

pub(crate) fn app() -> AppId {
    AppId::new("web").unwrap()
}

pub(crate) fn waiting(on: WaitingOn, for_ms: u64) -> WaitingStatus {
    WaitingStatus { on, for_ms }
}

/// A server that is healthy on a release.
pub(crate) fn fine(running: &str) -> ServerAppStatus {
    ServerAppStatus {
        running: Some(version(running)),
        in_service: true,
        unknown: false,
        unfit: None,
        holds_target: true,
        activation: None,
        doing: None,
        debt: None,
        ignored_hook: None,
    }
}

/// Three servers, all voters; everything runs 1.0.0.
pub(crate) fn settled() -> GroupStatus {
    let names = ["web-1", "web-2", "web-3"];
    let address = |index: usize| format!("10.0.0.{}:7417", index + 1);
    let servers = names.iter().enumerate().map(|(index, name)| {
        let status = ServerStatus {
            address: address(index),
            rack: None,
            joined: index as u64,
            member: Some(MemberId(index as u64 + 1)),
            contact_age_ms: Some(400),
            silent_ms: Some(400),
            clock_ahead_ms: 0,
            disk: DiskSpace::Enough,
            stopped: false,
            copy: None,
            unknown: false,
        };
        (server(name), status)
    });
    let voters = names.iter().enumerate().map(|(index, name)| MemberAddress {
        server: server(name),
        address: address(index),
        member: MemberId(index as u64 + 1),
    });
    let app_status = AppStatus {
        state: PhaseName::Running,
        since: ClockMs(10_000),
        last_good: Some(version("1.0.0")),
        target: None,
        reason: None,
        wave: 0,
        wave_servers: Vec::new(),
        generation: Generation(1),
        paused: false,
        servers: names.iter().map(|name| (server(name), fine("1.0.0"))).collect(),
        waiting: vec![waiting(WaitingOn::NewRelease, 5000)],
        history: Vec::new(),
        failures: Vec::new(),
    };
    GroupStatus {
        version: CONTROL_VERSION,
        group: GroupId::new("intel.zone-a").unwrap(),
        incarnation: Incarnation(12),
        labels: BTreeMap::from([
            ("platform".to_owned(), "intel".to_owned()),
            ("zone".to_owned(), "zone-a".to_owned()),
        ]),
        platform: Some(Platform::new("intel").unwrap()),
        answered_by: server("web-1"),
        leader: Some(server("web-1")),
        term: 3,
        commit: 99,
        applied: 99,
        linearizable: true,
        elsewhere: None,
        clock: ClockMs(100_000),
        killed: None,
        registry_reachable: Some(true),
        errands: Vec::new(),
        voters: voters.collect(),
        standbys: Vec::new(),
        mute: BTreeSet::new(),
        placing: None,
        servers: servers.collect(),
        out: BTreeSet::new(),
        apps: BTreeMap::from([(app(), app_status)]),
        refusals: Vec::new(),
        transfers: Vec::new(),
        downlink_bytes_per_second: None,
        download_limit_bytes_per_second: None,
    }
}

/// The same in wave 2 of a rollout of 1.1.0: `web-1` has it, `web-2` is changing.
pub(crate) fn rolling() -> GroupStatus {
    let mut status = settled();
    let app = status.apps.get_mut(&app()).unwrap();
    app.state = PhaseName::WAVE_APPLIED;
    app.since = ClockMs(88_000);
    app.target = Some(version("1.1.0"));
    app.wave = 2;
    app.wave_servers = vec![server("web-2")];
    app.servers.insert(server("web-1"), fine("1.1.0"));
    let doing = Doing::Step { step: Step::Check };
    app.servers.insert(
        server("web-2"),
        ServerAppStatus {
            in_service: false,
            unfit: Some(Unfit::Changing),
            activation: Some(ActivationStage::Applied { at: ClockMs(0) }),
            doing: Some(doing),
            ..fine("1.1.0")
        },
    );
    let steps = vec![(server("web-2"), Step::Check)];
    app.waiting = vec![waiting(WaitingOn::Steps { servers: steps }, 12_000)];
    status
}

/// Rolled back from 1.1.0, and held; `web-3` is in debt.
pub(crate) fn held() -> GroupStatus {
    let mut status = settled();
    let app = status.apps.get_mut(&app()).unwrap();
    let text = "http: status 500".to_owned();
    let reason = Reason::ServerFailed { server: server("web-1"), step: Step::Check, text };
    let debt = DebtReason::Failed { text: "unreachable".to_owned() };
    app.state = PhaseName::Held;
    app.target = Some(version("1.1.0"));
    app.reason = Some(reason.clone());
    app.servers.get_mut(&server("web-3")).unwrap().debt = Some(debt.clone());
    app.waiting = vec![
        waiting(WaitingOn::Person { version: version("1.1.0"), reason }, 75_000),
        waiting(WaitingOn::Debt { server: server("web-3"), reason: debt, again_ms: None }, 75_000),
    ];
    status
}

/// 1.1.0 in transit to the three servers, one of which sent wrong bytes.
pub(crate) fn moving() -> GroupStatus {
    let mut status = settled();
    let app = status.apps.get_mut(&app()).unwrap();
    app.state = PhaseName::WAVE_ASSIGNED;
    app.target = Some(version("1.1.0"));
    app.wave = 1;
    app.wave_servers = vec![server("web-2")];
    let downloading = WaitingOn::Download { servers: [server("web-2")].into() };
    app.waiting = vec![waiting(downloading, 3_000)];
    let here = app.servers.get_mut(&server("web-2")).unwrap();
    here.doing = Some(Doing::Download(Download::Running {
        held_bytes: 20 << 20,
        total_bytes: 64 << 20,
        from: BytesFrom::Servers { first: "web-1".to_owned(), more: 0 },
        refused: Vec::new(),
        leader_silent_ms: 0,
        limit_bytes_per_second: None,
    }));
    status.transfers = vec![transfer()];
    status
}

/// 84 of 192 MiB have arrived.
pub(crate) fn transfer() -> TransferStatus {
    TransferStatus {
        app: Some(app()),
        version: Some(version("1.1.0")),
        delta: false,
        artifact: "ab".repeat(32).parse().unwrap(),
        under_way: true,
        length_bytes: 64 << 20,
        servers: 3,
        whole_servers: 0,
        away_servers: 0,
        held_bytes: 84 << 20,
        wanted_bytes: 192 << 20,
        mirror_bytes: 32 << 20,
        peer_bytes: 52 << 20,
        mirror_bytes_per_second: 6_000_000,
        peer_bytes_per_second: 9_000_000,
        downlink_bytes_per_second: None,
        for_ms: 5_500,
        took_ms: None,
        left_ms: Some(7_000),
        heads: vec![server("web-1")],
        fan_out: 1,
        chains: vec![ChainStatus { servers: vec![server("web-1"), server("web-2")], depth: 2 }],
        chains_in_all: 1,
        slow: Vec::new(),
        slow_servers: 0,
        offenders: vec![OffenderStatus {
            source: SourceName::Server(server("web-3")),
            what: Offence::WrongBytes,
            count: 1,
            told_by: vec![server("web-2")],
            told_by_servers: 1,
            barred: false,
        }],
        offenders_in_all: 1,
    }
}
