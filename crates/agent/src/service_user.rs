//! The user that services, hooks and `exec` checks run as: the key `service_user`.

use cohort_host::RunAs;

use crate::error::AgentError;

/// Local users, one per line: `name:x:uid:gid:…`.
const USERS: &str = "/etc/passwd";

/// The kernel's view of this process: ids and capabilities.
const STATUS: &str = "/proc/self/status";

/// Capabilities to run a program as another user and to give files away, as bits of `CapEff`:
/// `CAP_CHOWN` (0), `CAP_SETGID` (6) and `CAP_SETUID` (7); see capabilities(7).
const NEEDED: u64 = 1 | (1 << 6) | (1 << 7);

/// Finds the configured user and checks that the agent may run programs as it.
///
/// # Errors
/// When there is no such user, or the agent may not run programs as it.
pub(crate) fn resolve(user: Option<&str>) -> Result<Option<RunAs>, AgentError> {
    let Some(user) = user else { return Ok(None) };
    let users = std::fs::read_to_string(USERS).unwrap_or_default();
    let run_as = find(user, &users).map_err(AgentError::config("service_user"))?;
    let status = std::fs::read_to_string(STATUS).unwrap_or_default();
    if may_become(run_as, &status) {
        return Ok(Some(run_as));
    }
    Err(AgentError::config("service_user")(format!(
        "the agent may not run programs as `{user}`; run it as root, or with CAP_SETUID, \
         CAP_SETGID and CAP_CHOWN"
    )))
}

/// `name`, `uid` or `uid:gid`.
fn find(user: &str, users: &str) -> Result<RunAs, String> {
    if let Some((uid, gid)) = user.split_once(':') {
        let number = |text: &str| {
            // The highest number means "leave it as it is" to the kernel.
            text.parse::<u32>()
                .ok()
                .filter(|number| *number != u32::MAX)
                .ok_or_else(|| format!("`{user}` is neither a user name nor UID nor UID:GID"))
        };
        return Ok(RunAs { uid: number(uid)?, gid: number(gid)? });
    }
    let known = users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, ..] = fields[..] else { return None };
        if name != user && uid != user {
            return None;
        }
        Some(RunAs { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
    });
    known.ok_or_else(|| {
        format!("{USERS} has no user `{user}`; name users from elsewhere as UID:GID")
    })
}

/// Whether this process may: it runs as that user already, or has the capabilities. If the kernel
/// does not say, the first start of a program will.
fn may_become(run_as: RunAs, status: &str) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    // The second of four is the one in effect.
    let effective = |name: &str| field(name)?.split_whitespace().nth(1)?.parse::<u32>().ok();
    let able = field("CapEff:").and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let Some(able) = able else { return true };
    let already = effective("Uid:") == Some(run_as.uid) && effective("Gid:") == Some(run_as.gid);
    already || able & NEEDED == NEEDED
}

#[cfg(test)]
mod service_user_test {
    use cohort_host::RunAs;

    use super::{find, may_become, resolve};

    const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:990:991::/srv:/bin/false\n";

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let web = RunAs { uid: 990, gid: 991 };
        for user in ["web", "990", "990:991"] {
            assert_eq!(find(user, USERS), Ok(web), "{user}");
        }
        assert_eq!(find("5:6", ""), Ok(RunAs { uid: 5, gid: 6 }));
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

    #[test]
    fn without_the_key_services_run_as_the_agent() {
        assert!(resolve(None).unwrap().is_none());
        assert!(resolve(Some("no-such-user-here")).is_err());
    }
}
