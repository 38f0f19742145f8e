//! A seed finds each protection that is switched off, by the check that is there for it.

use cohort_simulate::mutations::PROTECTIONS;

/// Entries that a disk dropped are rarely missed: some seventy seeds look for them.
const SEEDS: u64 = 300;

#[test]
fn protections_that_are_off_are_found() {
    for protection in PROTECTIONS.iter().filter(|protection| protection.quick) {
        let found = (0..SEEDS).find(|seed| protection.found_by(*seed).is_some());
        println!("{}: seed {found:?}", protection.name);
        assert!(found.is_some(), "{SEEDS} seeds do not miss {}", protection.name);
    }
}
