use super::unit_set::{UnitRun, UnitSet};

fn run(first: u32, count: u32) -> UnitRun {
    UnitRun { first, count }
}

#[test]
fn runs_are_found_across_words_and_at_both_ends() {
    let mut set = UnitSet::empty(200);
    assert_eq!(set.run_from(0, 10), None);
    set.insert_run(run(60, 80));
    set.insert(199);
    assert_eq!(set.run_from(0, 1000), Some(run(60, 80)));
    assert_eq!(set.run_from(0, 7), Some(run(60, 7)));
    assert_eq!(set.run_from(128, 1000), Some(run(128, 12)));
    assert_eq!(set.run_from(140, 1000), Some(run(199, 1)));
    assert_eq!(set.run_from(200, 1000), None);
    assert_eq!(set.run_from(60, 0), None);
}

#[test]
fn complement_never_invents_units_beyond_the_count() {
    for count in [1, 63, 64, 65, 128, 130] {
        let all = UnitSet::empty(count).complement();
        assert_eq!(all, UnitSet::full(count));
        assert!(all.is_full());
        assert_eq!(all.run_from(0, u32::MAX), Some(run(0, count)));
        assert!(all.complement().is_empty());
    }
}

#[test]
fn units_beyond_the_count_are_left_out() {
    let mut set = UnitSet::empty(3);
    set.insert_run(run(2, u32::MAX));
    assert!(!set.insert(3) && !set.contains(3) && !set.remove(3));
    assert_eq!(set.held(), 1);
    set.remove_run(run(0, u32::MAX));
    assert!(set.is_empty());
}
