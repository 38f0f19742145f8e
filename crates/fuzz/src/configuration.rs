//! Configuration that people write: policies, `cohort.toml`, the files of agent and hub.

use cohort_agent::config::AgentConfig;
use cohort_artifact::PackageFile;
use cohort_core::policy::Policy;
use cohort_host::fuzzing::service_file;
use cohort_hub::HubConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// The largest group.
const SERVERS_MAX: u32 = 1_200;

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// A value from TOML, which means the same once it is written and read.
fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &str) -> Option<T> {
    let value: T = toml::from_str(text).ok()?;
    let json = serde_json::to_vec(&value).expect("what was read is written");
    let again: T = serde_json::from_slice(&json).expect("what was written is read");
    assert_eq!(again, value);
    Some(value)
}

/// A policy: from TOML, as operators write it, or from JSON, as groups have it. A valid one counts
/// servers within the group.
pub(crate) fn policy(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let from_json = || cohort_base::golden::round_trip::<Policy>(bytes);
    let Some(policy) = round_trip::<Policy>(text).or_else(from_json) else { return };
    if policy.validate().is_err() {
        return;
    }
    for servers in [1, 2, 3, 10, SERVERS_MAX] {
        assert!(policy.max_unavailable_of(servers) >= 1);
        let _ = policy.failures_allowed_of(servers);
        assert!(policy.surroundings_allowed_of(servers) >= 1);
        for wave in [1, 2, 3, u32::MAX] {
            assert!(
                policy.update.max_parallel.of_wave(wave, servers) >= 1,
                "a wave of none never ends"
            );
        }
    }
}

/// A release's `cohort.toml`, as publisher and host read it: each its own keys.
pub(crate) fn cohort_toml(bytes: &[u8]) {
    let Some(text) = text(bytes) else {
        assert!(PackageFile::parse(bytes).is_err());
        return;
    };
    let _ = service_file(text);
    let Ok(file) = PackageFile::parse(bytes) else { return };
    assert_eq!(PackageFile::parse(bytes).expect("it was read before"), file);
}

/// `agent.toml` and `hub.toml`, whose every value has passed its checks.
pub(crate) fn config(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    round_trip::<AgentConfig>(text);
    if let Some(hub) = round_trip::<HubConfig>(text) {
        // Its message is for people; it must not panic.
        let _ = hub.validate();
    }
}
