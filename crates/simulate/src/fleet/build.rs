//! Builders for releases and policies, short enough for tests.

use cohort_core::ids::{AppId, Channel, Digest, Platform, ServerId, Version};
use cohort_core::policy::{Duration, Policy, Size, Update, WaveSizes};
use cohort_core::release::{Release, Rollback};

/// A digest that is a function of a text (not a real hash: nothing here has bytes).
pub(crate) fn digest(text: &str) -> Digest {
    let mut hex = String::new();
    for round in 0u64..4 {
        let mut sum = 0xcbf2_9ce4_8422_2325_u64 ^ round;
        for byte in text.bytes() {
            sum = (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hex.push_str(&format!("{sum:016x}"));
    }
    Digest::new(hex).expect("64 hexadecimal digits")
}

/// Length of every artifact in bytes: 16 units.
pub(crate) const LENGTH: u64 = 1_000_000;

/// A release that can be rolled back.
pub(crate) fn release(app: &str, version: &str, platform: &str) -> Release {
    let name = format!("{app} {version} {platform}");
    Release {
        version: Version::new(version).expect("a version"),
        platform: Platform::new(platform).expect("a platform"),
        artifact: digest(&format!("artifact of {name}")),
        manifest: digest(&format!("manifest of {name}")),
        length: LENGTH,
        unpacked_bytes: 64 << 30,
        entries: 250_000,
        rollback: Rollback::Revert,
    }
}

/// A policy with short times: one second healthy, ten seconds of silence, half a minute to confirm.
pub(crate) fn policy(app: &str) -> Policy {
    Policy {
        app: AppId::new(app).expect("an app"),
        channel: Channel::new("stable").expect("a channel"),
        update: Update {
            max_parallel: WaveSizes(vec![Size::Percent(10)]),
            min_healthy_time: Duration::from_secs(1),
            healthy_deadline: Duration::from_secs(10),
            progress_deadline: Duration::from_secs(60),
            confirm_within: Duration::from_secs(30),
            unreachable_after: Duration::from_secs(10),
            ..Update::default()
        },
        checks: Vec::new(),
        stages: Vec::new(),
    }
}

/// The `n`th server of a group, from 1.
pub(crate) fn server(n: usize) -> ServerId {
    ServerId::new(format!("s{n:02}")).expect("a server id")
}

/// The rack of a server in a group whose servers are in that many racks, by turns.
pub(crate) fn rack_of(server: &ServerId, racks: usize) -> Option<String> {
    let number: usize = server.as_str().trim_start_matches('s').parse().expect("s and a number");
    number.checked_sub(1)?.checked_rem(racks).map(|rack| format!("r{}", rack + 1))
}
