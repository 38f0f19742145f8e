//! The key layout, all under `/cohort/v1/`.
//!
//! ```text
//! servers/<server>                             ServerRecord     hub at joining, then the server
//! groups/<group>/info                          GroupInfo        hub at joining
//! groups/<group>/bootstrap                     BootstrapRecord  compare-and-set
//! groups/<group>/members                       MembersRecord    leader, fenced
//! groups/<group>/apps/<app>/record             GroupRecord      leader, fenced
//! verdicts/<app>/<version>/<platform>/<group>  VerdictRecord    leader, fenced
//! policies/<app>                               IntentRecord     hub, signed by an operator
//! removed/<app>                                IntentRecord     hub, signed by an operator
//! switches/kill/<scope>                        signed record    operator
//! ```
//!
//! The mod revision of `bootstrap` is the group's incarnation. The revision of a policy, and of a
//! removal, is the one that its operator signed, at most that of the registry when it was written:
//! an app has a policy or was removed, never both. A `/` in a platform is written `~`.

use cohort_core::ids::{AppId, GroupId, Platform, ServerId, Version};
use cohort_core::kill::KillScope;

use crate::api::KEY_BYTES_MAX;

/// The prefix of all keys.
pub const ROOT: &str = "/cohort/v1/";
pub const SERVERS: &str = "/cohort/v1/servers/";
/// All records of groups, except verdicts.
pub const GROUPS: &str = "/cohort/v1/groups/";
pub const VERDICTS: &str = "/cohort/v1/verdicts/";
pub const POLICIES: &str = "/cohort/v1/policies/";
/// Apps that were removed.
pub const REMOVED: &str = "/cohort/v1/removed/";
pub const KILL: &str = "/cohort/v1/switches/kill/";

// The longest key: a verdict with the longest app, version, platform and group.
const _: () = assert!(VERDICTS.len() + 63 + 1 + 64 + 1 + 64 + 1 + 200 <= KEY_BYTES_MAX);

/// `servers/<server>`.
#[must_use]
pub fn server(server: &ServerId) -> String {
    format!("{SERVERS}{server}")
}

/// `groups/<group>/info`.
#[must_use]
pub fn group_info(group: &GroupId) -> String {
    format!("{GROUPS}{group}/info")
}

/// `groups/<group>/bootstrap`.
#[must_use]
pub fn bootstrap(group: &GroupId) -> String {
    format!("{GROUPS}{group}/bootstrap")
}

/// `groups/<group>/members`.
#[must_use]
pub fn members(group: &GroupId) -> String {
    format!("{GROUPS}{group}/members")
}

/// `groups/<group>/apps/<app>/record`.
#[must_use]
pub fn group_record(group: &GroupId, app: &AppId) -> String {
    format!("{}{app}/record", group_apps(group))
}

/// The prefix of a group's records of all apps.
#[must_use]
pub fn group_apps(group: &GroupId) -> String {
    format!("{GROUPS}{group}/apps/")
}

/// `verdicts/<app>/<version>/<platform>/<group>`.
#[must_use]
pub fn verdict(app: &AppId, version: &Version, platform: &Platform, group: &GroupId) -> String {
    format!("{VERDICTS}{app}/{version}/{}/{group}", escape(platform))
}

/// `policies/<app>`.
#[must_use]
pub fn policy(app: &AppId) -> String {
    format!("{POLICIES}{app}")
}

/// `removed/<app>`.
#[must_use]
pub fn removed(app: &AppId) -> String {
    format!("{REMOVED}{app}")
}

/// `switches/kill/fleet` or `switches/kill/group~<group>`.
#[must_use]
pub fn kill(scope: &KillScope) -> String {
    match scope {
        KillScope::Fleet => format!("{KILL}fleet"),
        KillScope::Group(group) => format!("{KILL}group~{group}"),
    }
}

/// The object that a key belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Server { server: ServerId },
    GroupInfo { group: GroupId },
    Bootstrap { group: GroupId },
    Members { group: GroupId },
    GroupRecord { group: GroupId, app: AppId },
    Verdict { app: AppId, version: Version, platform: Platform, group: GroupId },
    Policy { app: AppId },
    Removed { app: AppId },
    Kill { scope: String },
}

/// Parses a key; `None` if it is not part of the layout.
#[must_use]
pub fn parse(key: &str) -> Option<Place> {
    let parts: Vec<&str> = key.strip_prefix(ROOT)?.split('/').collect();
    Some(match parts.as_slice() {
        ["servers", server] => Place::Server { server: ServerId::new(*server).ok()? },
        ["groups", group, "info"] => Place::GroupInfo { group: GroupId::new(*group).ok()? },
        ["groups", group, "bootstrap"] => Place::Bootstrap { group: GroupId::new(*group).ok()? },
        ["groups", group, "members"] => Place::Members { group: GroupId::new(*group).ok()? },
        ["groups", group, "apps", app, "record"] => {
            Place::GroupRecord { group: GroupId::new(*group).ok()?, app: AppId::new(*app).ok()? }
        }
        ["verdicts", app, version, platform, group] => Place::Verdict {
            app: AppId::new(*app).ok()?,
            version: Version::new(*version).ok()?,
            platform: Platform::new(platform.replace('~', "/")).ok()?,
            group: GroupId::new(*group).ok()?,
        },
        ["policies", app] => Place::Policy { app: AppId::new(*app).ok()? },
        ["removed", app] => Place::Removed { app: AppId::new(*app).ok()? },
        ["switches", "kill", scope] if !scope.is_empty() => {
            Place::Kill { scope: scope.replace('~', "/") }
        }
        _ => return None,
    })
}

/// A platform as one segment of a key; `~` cannot occur in a platform's name.
fn escape(platform: &Platform) -> String {
    platform.as_str().replace('/', "~")
}
