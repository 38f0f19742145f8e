//! Where everything is: the key layout, all of it below `/cohort/v1/`.
//!
//! ```text
//! servers/<server>                                    ServerRecord    hub at joining, then the server
//! groups/<group>/info                                 GroupInfo       hub at joining
//! groups/<group>/bootstrap                            BootstrapRecord compare-and-set; mod revision = incarnation
//! groups/<group>/members                              MembersRecord   leader, fenced
//! groups/<group>/apps/<app>/record                    GroupRecord     leader, fenced
//! verdicts/<app>/<version>/<platform>/<group>         VerdictRecord   leader, fenced; `/` of the platform is `~`
//! policies/<app>                                      PolicyRecord    operator; mod revision = the policy's revision
//! switches/kill/<scope>                               signed record   operator
//! ```

use cohort_core::ids::{AppId, GroupId, Platform, ServerId, Version};

use crate::api::KEY_BYTES_MAX;

/// What every key begins with.
pub const ROOT: &str = "/cohort/v1/";
/// All servers.
pub const SERVERS: &str = "/cohort/v1/servers/";
/// All that belongs to groups.
pub const GROUPS: &str = "/cohort/v1/groups/";
/// All verdicts.
pub const VERDICTS: &str = "/cohort/v1/verdicts/";
/// All policies.
pub const POLICIES: &str = "/cohort/v1/policies/";
/// All switches.
pub const SWITCHES: &str = "/cohort/v1/switches/";
/// The kill switches.
pub const KILL: &str = "/cohort/v1/switches/kill/";

// The deepest key: a verdict with the longest app, version, platform and group names.
const _: () = assert!(VERDICTS.len() + 63 + 1 + 64 + 1 + 64 + 1 + 200 <= KEY_BYTES_MAX);

/// `servers/<server>`.
#[must_use]
pub fn server(server: &ServerId) -> String {
    format!("{SERVERS}{server}")
}

/// `groups/<group>/`: all that a group owns but its verdicts.
#[must_use]
pub fn group(group: &GroupId) -> String {
    format!("{GROUPS}{group}/")
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

/// `groups/<group>/apps/`.
#[must_use]
pub fn group_apps(group: &GroupId) -> String {
    format!("{GROUPS}{group}/apps/")
}

/// `groups/<group>/apps/<app>/record`.
#[must_use]
pub fn group_record(group: &GroupId, app: &AppId) -> String {
    format!("{GROUPS}{group}/apps/{app}/record")
}

/// `verdicts/<app>/`.
#[must_use]
pub fn verdicts_of_app(app: &AppId) -> String {
    format!("{VERDICTS}{app}/")
}

/// `verdicts/<app>/<version>/<platform>/`.
#[must_use]
pub fn verdicts_of_release(app: &AppId, version: &Version, platform: &Platform) -> String {
    format!("{VERDICTS}{app}/{version}/{}/", escape(platform))
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

/// `switches/kill/<scope>`; a `/` in the scope (as in `group/web`) is `~`.
#[must_use]
pub fn kill(scope: &str) -> String {
    format!("{KILL}{}", scope.replace('/', "~"))
}

/// Whether a key is a group's bootstrap record.
#[must_use]
pub fn is_bootstrap(key: &str) -> bool {
    matches!(parse(key), Some(Place::Bootstrap { .. }))
}

/// What a key is the place of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A server's record.
    Server {
        /// Which.
        server: ServerId,
    },
    /// What a group is.
    GroupInfo {
        /// Which.
        group: GroupId,
    },
    /// Which life of a group this is.
    Bootstrap {
        /// Which.
        group: GroupId,
    },
    /// Where a group's members are.
    Members {
        /// Which.
        group: GroupId,
    },
    /// How far a group is with an app.
    GroupRecord {
        /// Which.
        group: GroupId,
        /// Which.
        app: AppId,
    },
    /// What a group thinks of a release.
    Verdict {
        /// Which.
        app: AppId,
        /// Which.
        version: Version,
        /// Which.
        platform: Platform,
        /// Whose verdict.
        group: GroupId,
    },
    /// An app's policy.
    Policy {
        /// Which.
        app: AppId,
    },
    /// A kill switch.
    Kill {
        /// What it stops.
        scope: String,
    },
}

/// Reads a key of the layout; `None` for anything else.
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
        ["switches", "kill", scope] if !scope.is_empty() => {
            Place::Kill { scope: scope.replace('~', "/") }
        }
        _ => return None,
    })
}

/// A platform as one part of a key: `~` cannot occur in a platform's name.
fn escape(platform: &Platform) -> String {
    platform.as_str().replace('/', "~")
}
