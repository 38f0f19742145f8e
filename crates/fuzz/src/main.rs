//! The fuzzer: libFuzzer, with the target that `COHORT_FUZZ_TARGET` names.

#![no_main]

use std::sync::OnceLock;

use cohort_fuzz::{Target, find};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: {
        // The library's own hook aborts at every panic. Some are caught, as in production: redb's
        // on damaged pages, the consensus library's. One that leaves the target still aborts.
        drop(std::panic::take_hook());
        let name = std::env::var("COHORT_FUZZ_TARGET").unwrap_or_default();
        let target = find(&name).expect("COHORT_FUZZ_TARGET names a target");
        TARGET.get_or_init(|| target);
    },
    |data: &[u8]| {
        if let Some(target) = TARGET.get() {
            (target.run)(data);
        }
    }
);
