use super::super::DistributeArgs;
use super::{PARTS, rows};

fn names(quick: bool, only: &[&str]) -> Vec<&'static str> {
    let args = DistributeArgs {
        quick,
        only: only.iter().map(|name| (*name).to_owned()).collect(),
        runs: None,
        disk: "/tmp".into(),
        logs: None,
    };
    rows(&args).map(|(what, ..)| *what).collect()
}

#[test]
fn rows_are_chosen_by_prefix_and_quick_is_the_first_part() {
    assert_eq!(names(false, &[]).len(), PARTS.iter().map(|part| part.rows.len()).sum::<usize>());
    assert_eq!(names(true, &[]), ["ratio.50_250.10", "wan.50_250.10", "cpu_seconds.10x64mib"]);
    assert_eq!(names(false, &["kill_head."]), ["kill_head.delay_s", "kill_head.wan"]);
    assert_eq!(names(true, &["wan."]), ["wan.50_250.10"]);
    assert!(names(false, &["nothing"]).is_empty());
}
