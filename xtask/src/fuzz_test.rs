use std::path::Path;

use super::{executions, is_found};

#[test]
fn executions_are_read_from_the_end_or_the_last_progress() {
    let ended = "#2\tINITED cov: 1\n#9\tDONE\nstat::number_of_executed_units: 12345\n";
    assert_eq!(executions(ended), 12_345);
    assert_eq!(executions("#2\tINITED cov: 1\n#77\tNEW    cov: 2\nthread panicked\n"), 77);
    assert_eq!(executions(""), 0);
}

#[test]
fn what_people_named_stays() {
    assert!(is_found(Path::new("corpus/da39a3ee5e6b4b0d3255bfef95601890afd80709")));
    assert!(!is_found(Path::new("corpus/mended-overflow")));
}
