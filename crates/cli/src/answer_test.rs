use std::path::Path;

use cohort_artifact::{KeyRole, RoleInRoot};
use cohort_core::Event;
use cohort_core::ids::{Digest, Incarnation, Revision, ServerId};
use cohort_core::policy::Policy;
use cohort_core::reason::Reason;
use cohort_core::state::{Ending, HistoryEntry};
use cohort_host::Lack;
use cohort_identity::{Peer, PeerName, Role, TokenState};
use cohort_registry::records::ServerRecord;
use cohort_view::difference::difference;
use cohort_view::groups::GroupSummary;
use cohort_view::plan::{Offered, plan};
use cohort_view::report::{Asked, FleetReport, Origin, Picture};
use cohort_view::server::ServerReport;
use cohort_view::why::waits;
use cohort_wire::agent::{CheckSeen, GroupStatus, Happened, TransferLeaderAnswer};
use cohort_wire::audit::AuditEntry;
use cohort_wire::hub::{AuthorityStatus, TokenAnswer, TokenListed};
use cohort_wire::kill::{DamagedKill, KillScope};
use serde_json::{Value, json};

use super::{
    Answer, Damaged, DeltaAnswer, PublishAnswer, ReleaseAnswer, ReleaseId, Revoked, Spread, Switch,
};
use crate::commands::check::CheckRow;
use crate::failure::Failure;
use crate::layers::Setting;
use crate::policy_known::KnownPolicy;

/// The command with this result. Without a wildcard: a new result needs a name here, and an example
/// below.
fn command(answer: &Answer<'_>) -> &'static str {
    match answer {
        Answer::Init { .. } => "init",
        Answer::TokenCreate(_) => "token create",
        Answer::TokenList(_) => "token list",
        Answer::TokenRevoke { .. } => "token revoke",
        Answer::Publish(_) => "publish",
        Answer::PublishDryRun { .. } => "publish --dry-run",
        Answer::RepositoryPush { .. } => "repository push",
        Answer::RepositoryKeys { .. } => "repository keys",
        Answer::ChannelSet(_) => "channel set",
        Answer::ChannelList(_) => "channel list",
        Answer::ChannelRemove { .. } => "channel remove",
        Answer::ReleaseList(_) => "release list",
        Answer::ReleaseShow(_) => "release show",
        Answer::ReleaseRemove { .. } => "release remove",
        Answer::AppApply { .. } => "app apply",
        Answer::AppRemove { .. } => "app remove",
        Answer::AppDiff { .. } => "app diff",
        Answer::AppShow(_) => "app show",
        Answer::Status(_) => "status",
        Answer::StatusServer(_) => "server show",
        Answer::CheckRun(_) => "check run",
        Answer::Event { .. } => "events",
        Answer::Why(_) => "why",
        Answer::RolloutPlan(_) => "rollout plan",
        Answer::RolloutSteer { .. } => "rollout pause",
        Answer::RolloutHistory { .. } => "rollout history",
        Answer::Log { .. } => "logs",
        Answer::GroupList(_) => "group list",
        Answer::ServerList(_) => "server list",
        Answer::GroupShow(_) => "group show",
        Answer::GroupTransferLeader(_) => "group transfer-leader",
        Answer::GroupRemove { .. } => "group remove-server",
        Answer::GroupGone { .. } => "group remove",
        Answer::GroupVoter { .. } => "group add-voter",
        Answer::GroupRecover { .. } => "group recover",
        Answer::AgentShow { .. } => "agent show",
        Answer::KillSwitch(_) => "kill on",
        Answer::Revoke(_) => "server revoke",
        Answer::RevokedList(_) => "server revoked",
        Answer::Authority(_) => "authority show",
        Answer::AuditShow(_) => "audit show",
        Answer::AuditVerify { .. } => "audit verify",
        Answer::KillStatus { .. } => "kill status",
        Answer::ContextShow { .. } => "context show",
        Answer::ContextJoin { .. } => "context join",
        Answer::Failure(_) => "failed",
    }
}

/// The status in the golden file of `cohort-wire`.
fn status() -> GroupStatus {
    let golden = include_str!("../../wire/tests/golden/group-status.jsonl");
    serde_json::from_str(golden.lines().next().unwrap()).unwrap()
}

fn report() -> FleetReport {
    let status = status();
    let asked = Asked {
        group: status.group.clone(),
        status: Ok(status),
        registry: Default::default(),
        joined: Default::default(),
    };
    let apps = ["web".parse().unwrap()].into();
    FleetReport::of(
        Picture { origin: Origin::sound_hub(), apps, groups: vec![asked] },
        1_800_000_000,
    )
}

fn revoked_peer() -> Revoked {
    let (peer, by, reason) = ("agent/web-2".into(), "operator `ann`".into(), "stolen".into());
    Revoked { peer, at: 1_800_000_000, by, reason }
}

fn switch() -> Switch<'static> {
    let (reason, by) = ("bad night", "operator `ann`");
    let (scope, at, spread) = ("fleet".to_owned(), 1_800_000_000, None);
    Switch { scope, on: true, epoch: 3, reason, by, at, spread }
}

#[test]
#[allow(clippy::too_many_lines, reason = "one example of every answer")]
fn every_answer_is_as_its_golden_file_says() {
    let dir = Path::new("/home/ann/fleet");
    let ann = PeerName::new("ann").unwrap();
    let you = Peer { role: Role::Operator, name: ann.clone() };
    let hub = ["hub.example:7418".to_owned()];
    let (app, group) = ("web".parse().unwrap(), "web.zone-a".parse().unwrap());
    let server: ServerId = "web-1".parse().unwrap();
    let (version, before) = ("1.2.0".parse().unwrap(), "1.1.0".parse().unwrap());
    let (channel, platform) = ("stable".parse().unwrap(), "linux/amd64".parse().unwrap());
    let digest: Digest = "ab".repeat(32).parse().unwrap();
    let policy = json!({ "app": "web", "channel": "stable" });
    let parsed: Policy = serde_json::from_value(policy.clone()).unwrap();
    let known = [KnownPolicy {
        app: "web".parse().unwrap(),
        revision: Revision(7),
        policy,
        by: "ann".to_owned(),
        at: 1_800_000_000,
        unproven: None,
    }];
    let pointer = serde_json::from_value(json!({
        "schema": 1, "app": "web", "channel": "stable", "version": "1.2.0", "serial": 4,
        "set_at": "2027-01-15T08:00:00Z",
    }));
    let pointers = [pointer.unwrap()];
    let manifest = include_str!("../../artifact/tests/golden/manifest.jsonl").lines().next();
    let releases = [ReleaseAnswer {
        manifest: serde_json::from_str(manifest.unwrap()).unwrap(),
        channels: vec!["stable".to_owned()],
        groups: Some([group].into()),
    }];
    let group = "web.zone-a".parse().unwrap();
    let audited = [AuditEntry {
        seq: 3,
        at: 4,
        by: "operator `ada`".to_owned(),
        proof: "its certificate".to_owned(),
        from: "10.0.0.1".to_owned(),
        what: "server web-1 removed".to_owned(),
        before: "ab".repeat(32),
    }];
    let authority = AuthorityStatus {
        issuer: "ab".repeat(32),
        trusts: vec!["ab".repeat(32), "cd".repeat(32)],
        servers: 3,
        behind: vec!["web-1".parse().unwrap()],
        apps: vec!["web".parse().unwrap()],
        revocations: Vec::new(),
    };
    let roles = [RoleInRoot { role: KeyRole::Root, threshold: 1, keys: vec!["ab".repeat(32)] }];
    let token = TokenAnswer {
        id: "t1".to_owned(),
        token: "cohort1:t1:…".to_owned(),
        expires_at: Some(1_800_000_000),
    };
    let ended = |ending, reason| HistoryEntry {
        version: "1.2.0".parse().unwrap(),
        ending,
        reason,
        by: "ann".to_owned(),
        started: cohort_core::ids::ClockMs(1_000),
        ended: cohort_core::ids::ClockMs(2_000),
        waves: 3,
    };
    let history = [
        ended(Ending::Completed, None),
        ended(Ending::RolledBack, Some(Reason::ServersLost { servers: Vec::new() })),
    ];
    let offered = Offered {
        version: "1.3.0".parse().unwrap(),
        length: 1 << 20,
        differences: Vec::new(),
        base: None,
    };
    let planned = plan(&status(), &app, &parsed, Revision(7), &offered, None);
    let changes = difference(&json!({ "a": 1 }), &json!({ "a": 2, "b": 3 }));
    let transferred: TransferLeaderAnswer =
        serde_json::from_value(json!({ "from": "web-1", "to": "web-2" })).unwrap();
    let delta = |made: bool| DeltaAnswer {
        from: &before,
        length: made.then_some(1_000),
        delta: made.then_some(&digest),
        method: made.then_some("zstd"),
        reason: (!made).then(|| "it would be larger".to_owned()),
    };
    let failure = Failure::new("held", "web is held").hint("publish a fix");
    let reported = report();
    let joined = ServerRecord {
        schema: 1,
        server: "web-1".parse().unwrap(),
        address: "10.0.0.11:7417".to_owned(),
        labels: [("zone".to_owned(), "zone-a".to_owned())].into(),
        rack: None,
        group: "web.zone-a".parse().unwrap(),
    };
    let (scope, reason) = (KillScope::Fleet, "the hub: file x.kill is damaged".to_owned());
    let damaged = DamagedKill { scope, epoch: 3, reason };
    let warnings = ["hooks/pre-start is not run".to_owned()];
    let happened = Happened {
        index: 42,
        unix_ms: Some(1_800_000_000_000),
        event: Event::Steered {
            app: app.clone(),
            command: "pause".to_owned(),
            by: "operator ann".to_owned(),
        },
    };
    let answers = [
        Answer::Init { dir, operator: &ann, fingerprint: "ab:cd".to_owned(), hub: &hub },
        Answer::TokenCreate(&token),
        Answer::TokenList(&[TokenListed {
            id: "t1".into(),
            role: Role::Viewer,
            name: Some(PeerName::new("vera").unwrap()),
            created_at: 1_700_000_000,
            expires_at: Some(1_700_086_400),
            state: TokenState::Unused,
        }]),
        Answer::TokenRevoke { id: "t1", revoked: true },
        Answer::Publish(PublishAnswer {
            app: &app,
            version: &version,
            platform: &platform,
            length: 2_000_000,
            artifact: &digest,
            manifest: &digest,
            channel: Some(&channel),
            already_there: false,
            warnings: &warnings,
            deltas: vec![delta(true), delta(false)],
        }),
        Answer::PublishDryRun { unpacked_bytes: 5_000_000, entries: 12, warnings: &warnings },
        Answer::RepositoryPush {
            bucket: "s3://bucket/prefix",
            files: 3,
            bytes: 4_000,
            there: 5,
            timestamp: 6,
        },
        Answer::RepositoryKeys { root: 3, roles: &roles },
        Answer::ChannelSet(&pointers[0]),
        Answer::ChannelList(&pointers),
        Answer::ChannelRemove { app: &app, channel: &channel },
        Answer::ReleaseList(&releases),
        Answer::ReleaseShow(&releases),
        Answer::ReleaseRemove {
            removed: vec![ReleaseId { app: &app, version: &before, platform: &platform }],
            bytes: Some(4_000),
        },
        Answer::AppApply { app: &app, revision: Revision(7), changed: true },
        Answer::AppRemove {
            app: &app,
            revision: Revision(8),
            changed: true,
            groups: std::slice::from_ref(&group),
        },
        Answer::AppDiff { app: &app, changes: &changes },
        Answer::AppShow(&known),
        Answer::CheckRun(&[CheckRow {
            server: server.clone(),
            seen: CheckSeen {
                check: "http :8080/healthz".to_owned(),
                failure: Some("connection refused".to_owned()),
            },
        }]),
        Answer::Status(&reported),
        Answer::StatusServer(ServerReport::of(&reported.groups[0], &server)),
        Answer::Why(&waits(&reported)),
        Answer::RolloutPlan(&planned),
        Answer::RolloutSteer { group: &group, app: &app, index: 42 },
        Answer::RolloutHistory { group: &group, app: &app, history: &history },
        Answer::Log { server: &server, app: &app, line: "2027-01-15T08:00:00.000Z ready" },
        Answer::Event { group: &group, happened: &happened },
        Answer::GroupList(reported.groups.iter().map(GroupSummary::of).collect()),
        Answer::ServerList(&[&joined]),
        Answer::GroupShow(&status()),
        Answer::GroupTransferLeader(&transferred),
        Answer::GroupRemove { group: &group, server: &server, index: Some(42), forgotten: true },
        Answer::GroupGone { group: &group },
        Answer::GroupVoter { group: &group, server: &server, voter: true, index: 42 },
        Answer::GroupRecover { group: &group, incarnation: Incarnation(17) },
        Answer::Revoke(revoked_peer()),
        Answer::RevokedList(&[revoked_peer()]),
        Answer::Authority(&authority),
        Answer::AuditShow(&audited),
        Answer::AuditVerify { lines: 2, last: 3, hash: "abab" },
        Answer::AgentShow {
            settings: &[Setting {
                key: "service_port",
                value: 8080.into(),
                from: "/etc/cohort/agent.toml".into(),
            }],
            lacks: Some(&[Lack::Memory, Lack::Root]),
        },
        Answer::AgentShow { settings: &[], lacks: None },
        Answer::KillSwitch(switch()),
        Answer::KillStatus {
            on: true,
            switches: &[Switch {
                spread: Some(Spread { asked: 5, missing: vec!["web-2"] }),
                ..switch()
            }],
            damaged: vec![Damaged::of(&damaged)],
        },
        Answer::ContextShow { dir, you: &you, until: 1_800_000_000, hub: &hub },
        Answer::ContextJoin { dir, you: &you },
        Answer::Failure(&failure),
    ];
    let lines: Vec<Value> =
        answers.iter().map(|answer| json!({ command(answer): answer })).collect();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/answers.jsonl");
    cohort_base::golden::hold(&golden, &lines);
}
