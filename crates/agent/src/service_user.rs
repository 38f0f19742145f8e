//! The user that services, hooks and `exec` checks run as: the key `service_user`.

use std::path::PathBuf;

use cohort_host::RunAs;

use crate::error::AgentError;

/// Local users, one per line: `name:x:uid:gid:…`.
const USERS: &str = "/etc/passwd";

/// The kernel's view of this process: ids and capabilities.
const STATUS: &str = "/proc/self/status";

/// Capabilities to run a program as another user, to end it, and to give files away, as bits of
/// `CapEff`: `CAP_CHOWN` (0), `CAP_KILL` (5), `CAP_SETGID` (6) and `CAP_SETUID` (7); see
/// capabilities(7).
const NEEDED: u64 = 1 | (1 << 5) | (1 << 6) | (1 << 7);

/// Root, which runs everything unconfined.
const ROOT: u32 = 0;

/// Whom programs of releases run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceUser {
    pub(crate) run_as: RunAs,
    /// Its home directory; `/` if it is not known.
    pub(crate) home: PathBuf,
}

/// Finds the configured user and checks that the agent may run programs as it. `None`: the agent's
/// own user, which is root only if the configuration says so.
///
/// # Errors
/// When there is no such user, the agent may not run programs as it, or nobody is named and the
/// agent is root.
pub(crate) fn resolve(user: Option<&str>) -> Result<Option<ServiceUser>, AgentError> {
    let status = std::fs::read_to_string(STATUS).unwrap_or_default();
    let wrong = AgentError::config("service_user");
    let Some(user) = user else {
        return match effective(&status, "Uid:") {
            Some(ROOT) => Err(wrong(
                "it is not set, and the agent runs as root: write the user that services, hooks \
                 and checks run as into agent.toml, such as `service_user = \"www-data\"`; or \
                 `service_user = \"root\"` if they have to be root"
                    .to_owned(),
            )),
            _ => Ok(None),
        };
    };
    let users = std::fs::read_to_string(USERS).unwrap_or_default();
    let found = find(user, &users).map_err(wrong)?;
    if found.run_as.uid != ROOT && found.run_as.gid == ROOT {
        let error = format!("`{user}` has root's group; name another, as UID:GID");
        return Err(AgentError::config("service_user")(error));
    }
    if found.run_as.uid == ROOT && effective(&status, "Uid:") == Some(ROOT) {
        tracing::warn!("services, hooks and checks of releases run as root (`service_user`)");
        return Ok(None);
    }
    if may_become(found.run_as, &status) {
        return Ok(Some(found));
    }
    Err(AgentError::config("service_user")(format!(
        "the agent may not run programs as `{user}`; run it as root, or with CAP_SETUID, \
         CAP_SETGID, CAP_KILL and CAP_CHOWN"
    )))
}

/// `name`, `uid` or `uid:gid`.
fn find(user: &str, users: &str) -> Result<ServiceUser, String> {
    let entries = users.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        let run_as = RunAs { uid: uid.parse().ok()?, gid: gid.parse().ok()? };
        let home = Some(PathBuf::from(home)).filter(|home| home.is_absolute());
        let home = home.unwrap_or_else(|| PathBuf::from("/"));
        Some((name, ServiceUser { run_as, home }))
    });
    if let Some((uid, gid)) = user.split_once(':') {
        let number = |text: &str| {
            // The highest number means "leave it as it is" to the kernel.
            text.parse::<u32>()
                .ok()
                .filter(|number| *number != u32::MAX)
                .ok_or_else(|| format!("`{user}` is neither a user name nor UID nor UID:GID"))
        };
        let run_as = RunAs { uid: number(uid)?, gid: number(gid)? };
        let mut entries = entries;
        let known = entries.find(|(_, known)| known.run_as.uid == run_as.uid);
        return Ok(ServiceUser { run_as, home: known.map_or("/".into(), |it| it.1.home) });
    }
    let is_it =
        |name: &str, known: &ServiceUser| name == user || known.run_as.uid.to_string() == user;
    let mut entries = entries;
    let known = entries.find(|(name, known)| is_it(name, known)).map(|(_, known)| known);
    known.ok_or_else(|| {
        format!("{USERS} has no user `{user}`; name users from elsewhere as UID:GID")
    })
}

/// A number of the effective user or group, in the kernel's view of a process.
fn effective(status: &str, name: &str) -> Option<u32> {
    let field = status.lines().find_map(|line| line.strip_prefix(name));
    // The second of four is the one in effect.
    field?.split_whitespace().nth(1)?.parse().ok()
}

/// Whether this process may: it runs as that user already, or has the capabilities. If the kernel
/// does not say, the first start of a program will.
fn may_become(run_as: RunAs, status: &str) -> bool {
    let able = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let able = able.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let Some(able) = able else { return true };
    let is = |name, number| effective(status, name) == Some(number);
    let already = is("Uid:", run_as.uid) && is("Gid:", run_as.gid);
    already || able & NEEDED == NEEDED
}

#[cfg(test)]
mod service_user_test {
    use std::path::PathBuf;

    use cohort_host::RunAs;

    use super::{find, may_become, resolve};

    const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:990:991::/srv:/bin/false\n";

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let web = RunAs { uid: 990, gid: 991 };
        for user in ["web", "990", "990:991"] {
            let found = find(user, USERS).unwrap();
            assert_eq!((found.run_as, found.home), (web, PathBuf::from("/srv")), "{user}");
        }
        let found = find("5:6", "").unwrap();
        assert_eq!((found.run_as, found.home), (RunAs { uid: 5, gid: 6 }, PathBuf::from("/")));
    }

    #[test]
    fn unknown_users_are_refused() {
        for user in ["", "we", "broken", "991", "web:x", "990:", ":1", "-1:0", "4294967295:0"] {
            let error = find(user, USERS).unwrap_err();
            assert!(!error.is_empty());
        }
        assert!(find("absent", USERS).unwrap_err().contains("UID:GID"));
    }

    #[test]
    fn missing_capabilities_are_found_at_the_start() {
        let status = |ids: &str, able: &str| {
            format!("Name:\tx\nUid:\t{ids}\nGid:\t{ids}\nCapEff:\t{able}\n")
        };
        let web = RunAs { uid: 990, gid: 990 };
        let own = "990\t990\t990\t990";
        let root = "0\t0\t0\t0";
        assert!(may_become(web, &status(own, "0000000000000000")));
        assert!(may_become(web, &status(root, "000001ffffffffff")));
        assert!(!may_become(web, &status(root, "0000000000000001")));
        assert!(!may_become(web, &status("5\t5\t5\t5", "0000000000000000")));
        assert!(may_become(web, ""));
    }

    /// An agent that is root runs nothing as root that its own server does not allow.
    #[test]
    fn root_is_written_down() {
        let status = std::fs::read_to_string(super::STATUS).unwrap();
        let root = super::effective(&status, "Uid:") == Some(0);
        assert_eq!(resolve(None).is_err(), root);
        assert_eq!(resolve(Some("root")).is_ok_and(|user| user.is_none()), root);
        assert!(resolve(Some("no-such-user-here")).is_err());
    }
}
