//! Messages of agents and of the hub, as sent on the wire. The core's own types in them (orders,
//! reports, commands, reasons) are pinned there.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::Path;

use cohort_core::ability::Ability;
use cohort_core::errand::{Errand, HubFault};
use cohort_core::ids::{AppId, ClockMs, GroupId, Incarnation, MemberId, ServerId};
use cohort_core::machine::{DiskSpace, Machine};
use cohort_core::orders::MemberAddress;
use cohort_core::phase::PhaseName;
use cohort_core::refused::{Field, Refused, WhyRefused};
use cohort_core::report::Blame;
use cohort_core::state::ActivationStage;
use cohort_core::waiting::Placing;
use cohort_identity::{Role, SignedStatement};
use cohort_wire::agent::{
    AppStatus, CONTROL_VERSION, ChainStatus, ClaimMemberAnswer, CommandAnswer, CommandRequest,
    ContactsAnswer, ContactsRequest, CopyStatus, ErrandStatus, FailureStatus, Forwarded,
    GroupStatus, JoinGroupRequest, Offence, OffenderStatus, OrdersAnswer, OrdersRequest,
    PlacingStatus, PolicyInForce, ServerAppStatus, ServerStatus, SignedSubmission, SourceName,
    Submission, ToGroup, TransferLeaderAnswer, TransferStatus,
};
use cohort_wire::http::ApiError;
use cohort_wire::hub::{
    JoinAnswer, JoinRequest, JoinedGroup, JoiningServer, PolicyAnswer, PolicyRequest,
    RecoverAnswer, RecoverRequest, RemoveAppRequest, RenewAnswer, RenewRequest, RevokeTokenRequest,
    TokenAnswer, TokenRequest,
};
use cohort_wire::intent::{AppIntent, SignedIntent, Wanted};
use cohort_wire::kill::{DamagedKill, KillAnswer, KillRegister, KillScope, SignedKill};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

fn hold<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, values: &[T]) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    cohort_base::golden::hold(&golden.join(name), values);
}

/// Every kind of refusal; the last one with all that can be known of it.
fn refused() -> Vec<Refused> {
    let role = cohort_core::refused::Role::Timestamp;
    let (file, path) = (|| "snapshot.json".to_owned(), || "/var/lib/cohort/trust".to_owned());
    let (wanted, found) = ("web".to_owned(), "db".to_owned());
    let (amd, version) = ("linux/amd64".parse().unwrap(), "1.3.0".parse().unwrap());
    let only = vec!["linux/arm64".parse().unwrap()];
    let kinds = [
        WhyRefused::WrongSignature { role },
        WhyRefused::Expired { role, ago_s: 86_400 },
        WhyRefused::Frozen { for_s: 691_200 },
        WhyRefused::Older { role, trusted: 7, offered: 5 },
        WhyRefused::Mixed { file: file() },
        WhyRefused::TooLarge { file: file(), limit_bytes: 1024 },
        WhyRefused::ClockWentBack { by_s: 90 },
        WhyRefused::NoMirror,
        WhyRefused::Malformed { file: file() },
        WhyRefused::WrongBytes { file: file() },
        WhyRefused::WrongContent { field: Field::App, wanted, found },
        WhyRefused::BadRoot,
        WhyRefused::Store { path: path() },
        WhyRefused::StoreDamaged { path: path() },
        WhyRefused::StoreOfVersion { path: path(), found: 2, supported: 1 },
        WhyRefused::NotRead,
        WhyRefused::NoChannel { app: app(), channel: "stable".parse().unwrap() },
        WhyRefused::NotPublished { app: app(), version, platform: amd, only },
        WhyRefused::NoFile { file: file() },
    ];
    let unreachable = Refused {
        why: WhyRefused::Unreachable { file: file() },
        mirror: Some("http://m1/".to_owned()),
        causes: "status 500".to_owned(),
    };
    kinds.map(Refused::from).into_iter().chain([unreachable]).collect()
}

fn server(name: &str) -> ServerId {
    name.parse().unwrap()
}

fn group() -> GroupId {
    "web.zone-a".parse().unwrap()
}

fn app() -> AppId {
    "web".parse().unwrap()
}

fn labels() -> BTreeMap<String, String> {
    [("zone".to_owned(), "a".to_owned())].into()
}

/// A part that is parsed from JSON instead of being built here.
fn part<T: DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap()
}

fn member() -> MemberAddress {
    part(r#"{"server": "web-1", "address": "web-1.example:7417", "member": 1}"#)
}

fn intent() -> SignedIntent {
    SignedIntent(SignedStatement { context: "cohort-app/1".to_owned(), ..signed().0 })
}

/// What operators sign about apps.
#[test]
fn app_intents() {
    let intent = |wanted| AppIntent {
        app: "web".parse().unwrap(),
        revision: part("17"),
        wanted,
        at: 1_800_000_000,
    };
    let policy = Wanted::Policy(part(r#"{"app": "web", "channel": "stable"}"#));
    hold("app-intents.jsonl", &[intent(policy), intent(Wanted::Removal)]);
}

fn signed() -> SignedKill {
    SignedKill(SignedStatement {
        body: b"{}".to_vec(),
        context: "cohort-kill/1".to_owned(),
        chain: "-----BEGIN CERTIFICATE-----\n".to_owned(),
        signature: vec![0, 255],
    })
}

fn submitted() -> SignedSubmission {
    SignedSubmission(SignedStatement { context: "cohort-submission/1".to_owned(), ..signed().0 })
}

fn report() -> cohort_core::report::Report {
    part(
        r#"{"server": "web-1", "boot_epoch": 3, "sequence": 9, "app": "web",
            "fence": {"incarnation": 16, "generation": 4}, "attempt": 1,
            "outcome": {"outcome": "health", "in_service": false, "reason": "wrong answer"}}"#,
    )
}

/// One message in its file, under its name.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Control {
    Orders(ToGroup<OrdersRequest>),
    OrdersAnswer(OrdersAnswer),
    Report(ToGroup<Vec<SignedSubmission>>),
    Submission(Submission),
    ClaimMember(ToGroup<MemberId>),
    ClaimMemberAnswer(ClaimMemberAnswer),
    CommandAnswer(CommandAnswer),
    Forward(Box<ToGroup<Forwarded>>),
    Contacts(ToGroup<ContactsRequest>),
    ContactsAnswer(ContactsAnswer),
    TransferLeader(ToGroup<Option<ServerId>>),
    TransferLeaderAnswer(TransferLeaderAnswer),
    Policies(Vec<PolicyInForce>),
}

fn to_group<T>(body: T) -> ToGroup<T> {
    ToGroup::new(&group(), body)
}

#[test]
fn control() {
    let incarnation = Incarnation(16);
    let orders = ToGroup::new(
        &group(),
        OrdersRequest { life: 5, doing: BTreeMap::new(), machine: machine(), known: 7 },
    );
    let messages = [
        Control::Orders(ToGroup { kill: vec![signed()], ..orders }),
        Control::OrdersAnswer(OrdersAnswer {
            orders: None,
            elsewhere: Some("10.0.0.9".to_owned()),
            orders_valid_ms: 5_000,
            kill: vec![signed()],
            leader: Some(server("web-1")),
            voters: BTreeSet::from([server("web-1")]),
            clock_ahead_ms: Some(-90_000),
            revocations: 9,
        }),
        Control::Report(to_group(vec![submitted()])),
        Control::Submission(Submission::Report { life: 5, incarnation, report: report() }),
        Control::Submission(Submission::Join(JoinGroupRequest {
            life: 5,
            address: "web-1.example:7417".to_owned(),
            rack: Some("r1".to_owned()),
        })),
        Control::Submission(Submission::Command(CommandRequest {
            request: part(r#""0123456789abcdef""#),
            body: part(r#"{"command": "resume", "app": "web"}"#),
        })),
        Control::ClaimMember(to_group(MemberId(4))),
        Control::ClaimMemberAnswer(ClaimMemberAnswer { granted: true }),
        Control::CommandAnswer(CommandAnswer { index: 42, rejection: None }),
        Control::Forward(Box::new(to_group(Forwarded {
            submission: submitted(),
            host: Some([10, 0, 0, 9].into()),
        }))),
        Control::Contacts(to_group(ContactsRequest {
            age_ms: [(server("web-2"), 150)].into(),
            doing: BTreeMap::new(),
            machines: [(server("web-2"), machine())].into(),
            ability: Some(Ability { repository: false, ..Ability::FULL }),
        })),
        Control::ContactsAnswer(ContactsAnswer {
            kill: Vec::new(),
            asks_ability: true,
            clocks_ahead_ms: [(server("web-2"), -90_000)].into(),
            revocations: 9,
        }),
        Control::TransferLeader(to_group(Some(server("web-2")))),
        Control::TransferLeaderAnswer(TransferLeaderAnswer {
            from: server("web-1"),
            to: server("web-2"),
        }),
        Control::Policies(vec![part(
            r#"{"app": "web", "revision": 7, "policy": {"app": "web", "channel": "stable"}}"#,
        )]),
    ];
    hold("control.jsonl", &messages);
}

fn machine() -> Machine {
    Machine { unix_ms: 1_800_000_000_000, disk: DiskSpace::Enough, vouched: true, stopped: false }
}

fn transfer() -> TransferStatus {
    TransferStatus {
        app: Some(app()),
        version: Some("1.2.0".parse().unwrap()),
        delta: true,
        artifact: "a".repeat(64).parse().unwrap(),
        under_way: true,
        length_bytes: 1,
        servers: 2,
        whole_servers: 3,
        away_servers: 4,
        held_bytes: 5,
        wanted_bytes: 6,
        mirror_bytes: 7,
        peer_bytes: 8,
        mirror_bytes_per_second: 9,
        peer_bytes_per_second: 10,
        downlink_bytes_per_second: Some(11),
        for_ms: 12,
        took_ms: None,
        left_ms: Some(13),
        heads: vec![server("web-1")],
        fan_out: 1,
        chains: vec![ChainStatus { servers: vec![server("web-1"), server("web-2")], depth: 2 }],
        chains_in_all: 1,
        slow: vec![server("web-3")],
        slow_servers: 1,
        offenders: vec![OffenderStatus {
            source: SourceName::mirror("https://mirror.example/"),
            what: Offence::Silent,
            count: 2,
            told_by: vec![server("web-2")],
            told_by_servers: 1,
            barred: false,
        }],
        offenders_in_all: 1,
    }
}

#[test]
fn group_status() {
    let on_server = |activation| ServerAppStatus {
        running: Some("1.1.0".parse().unwrap()),
        in_service: true,
        unknown: false,
        unfit: None,
        holds_target: true,
        activation,
        doing: None,
        debt: None,
        ignored_hook: None,
    };
    let (step, reason) = (part(r#""check""#), || "http: status 500".to_owned());
    let at = ClockMs(900);
    let activations = [
        None,
        Some(ActivationStage::Granted),
        Some(ActivationStage::Withdrawn),
        Some(ActivationStage::Applied { at }),
        Some(ActivationStage::Checked { at }),
        Some(ActivationStage::Failed { at, step, blame: Blame::Release, reason: reason() }),
        Some(ActivationStage::Undone { at, reason: reason() }),
    ];
    let servers = (1..).zip(activations);
    let web = AppStatus {
        state: PhaseName::Held,
        since: part("1000"),
        last_good: Some("1.1.0".parse().unwrap()),
        target: Some("1.2.0".parse().unwrap()),
        reason: None,
        wave: 2,
        wave_servers: vec![server("web-1")],
        generation: part("5"),
        paused: true,
        servers: servers.map(|(n, at)| (server(&format!("web-{n}")), on_server(at))).collect(),
        waiting: vec![],
        history: vec![],
        failures: vec![FailureStatus { server: server("web-5"), step, reason: reason() }],
    };
    let first = ServerStatus {
        address: "web-1.example:7417".to_owned(),
        rack: Some("r1".to_owned()),
        joined: 1,
        member: Some(MemberId(1)),
        contact_age_ms: Some(150),
        silent_ms: Some(150),
        clock_ahead_ms: -90_000,
        disk: DiskSpace::Low,
        stopped: true,
        copy: Some(CopyStatus { host: "10.0.0.9".to_owned(), for_ms: 5_000, age_ms: 400 }),
        unknown: false,
    };
    let status = GroupStatus {
        version: CONTROL_VERSION,
        group: group(),
        incarnation: Incarnation(16),
        labels: labels(),
        platform: Some("linux/amd64".parse().unwrap()),
        answered_by: server("web-1"),
        leader: Some(server("web-1")),
        term: 3,
        commit: 42,
        applied: 41,
        linearizable: true,
        elsewhere: None,
        clock: part("2000"),
        killed: Some("maintenance".to_owned()),
        registry_reachable: Some(true),
        errands: vec![ErrandStatus {
            errand: Errand::ReadPolicy { app: app() },
            why: HubFault::Damaged { text: "unknown field".into() },
            for_ms: 75_000,
        }],
        voters: vec![member()],
        standbys: vec![],
        mute: [server("s4")].into(),
        placing: Some(PlacingStatus {
            on: Placing::CatchingUp { servers: [server("web-2")].into() },
            for_ms: 12,
        }),
        servers: [(server("web-1"), first)].into(),
        out: [server("web-2")].into(),
        apps: [(app(), web)].into(),
        refusals: refused(),
        transfers: vec![transfer()],
        downlink_bytes_per_second: Some(11),
        download_limit_bytes_per_second: None,
    };
    hold("group-status.jsonl", &[status]);
}

/// One message in its file, under its name.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Hub {
    Join(JoinRequest),
    JoinAnswer(Box<JoinAnswer>),
    Renew(RenewRequest),
    RenewAnswer(RenewAnswer),
    Token(TokenRequest),
    TokenAnswer(TokenAnswer),
    RevokeToken(RevokeTokenRequest),
    Policy(PolicyRequest),
    RemoveApp(RemoveAppRequest),
    PolicyAnswer(PolicyAnswer),
    Recover(RecoverRequest),
    RecoverAnswer(RecoverAnswer),
    KillAnswer(KillAnswer),
    Error(ApiError),
}

fn join(server: Option<JoiningServer>) -> Hub {
    let (token_id, token_secret) = ("0a".to_owned(), "secret".to_owned());
    Hub::Join(JoinRequest { token_id, token_secret, request: "{}".to_owned(), server })
}

fn joined(group: Option<JoinedGroup>) -> Hub {
    Hub::JoinAnswer(Box::new(JoinAnswer {
        certificate: "PEM".to_owned(),
        authority: "PEM".to_owned(),
        hub: part(r#""hub-1""#),
        trusted_root: group.as_ref().map(|_| "{}".to_owned()),
        mirrors: vec!["https://mirror.example/".to_owned()],
        repository_port: group.is_some().then_some(7419),
        group,
    }))
}

#[test]
fn hub() {
    let full = TokenRequest {
        role: Role::Agent,
        name: Some(part(r#""web-1""#)),
        valid_s: Some(3_600),
        addresses: vec!["hub.example:7418".to_owned()],
    };
    let least = TokenRequest { role: Role::Viewer, name: None, valid_s: None, addresses: vec![] };
    let certificate = "PEM".to_owned();
    let (id, token) = ("0a".to_owned(), "token".to_owned());
    let messages = [
        join(None),
        join(Some(JoiningServer {
            address: "web-1.example:7417".to_owned(),
            platform: "linux/amd64".parse().unwrap(),
            labels: labels(),
            rack: Some("r1".to_owned()),
        })),
        joined(None),
        joined(Some(JoinedGroup { group: group(), labels: labels(), members: vec![member()] })),
        Hub::Renew(RenewRequest { request: "{}".to_owned() }),
        Hub::RenewAnswer(RenewAnswer { certificate, authorities: "pem".into() }),
        Hub::Token(least),
        Hub::Token(full),
        Hub::TokenAnswer(TokenAnswer { id: id.clone(), token, expires_at: Some(1_800_000_000) }),
        Hub::RevokeToken(RevokeTokenRequest { id }),
        Hub::Policy(PolicyRequest { signed: intent(), expected: Some(part("2")) }),
        Hub::RemoveApp(RemoveAppRequest { signed: intent(), mid_rollout: true }),
        Hub::PolicyAnswer(PolicyAnswer { revision: part("3") }),
        Hub::Recover(RecoverRequest {
            incarnation: Incarnation(16),
            first_server: server("web-1"),
            because: "two disks lost".to_owned(),
        }),
        Hub::RecoverAnswer(RecoverAnswer { incarnation: Incarnation(17) }),
        Hub::KillAnswer(KillAnswer {
            changed: true,
            registers: vec![signed()],
            damaged: vec![DamagedKill {
                scope: KillScope::Group(group()),
                epoch: 7,
                reason: "file kill/group@web.zone-a@00000000000000000007@on.kill is damaged"
                    .to_owned(),
            }],
        }),
        // The status is in the response head, not in the body.
        Hub::Error(part(r#"{"kind": "forbidden", "error": "no", "hints": ["ask an operator"]}"#)),
    ];
    hold("hub.jsonl", &messages);
}

#[test]
fn kill_registers() {
    let (epoch, at) = (7, 1_800_000_000);
    let register = |scope, on| {
        let reason = "a bad kernel".to_owned();
        KillRegister { scope, epoch, on, reason, at }
    };
    let registers = [register(KillScope::Fleet, true), register(KillScope::Group(group()), false)];
    hold("kill-registers.jsonl", &registers);
    hold("signed-kill.jsonl", &[signed()]);
}
