use super::{Count, LIBTEST, NEXTEST, summary};

#[test]
fn summaries_of_both_runners_are_understood() {
    let line = "     Summary [   3.418s] 20 tests run: 18 passed (1 slow), 2 failed, 3 skipped";
    let count = Count { passed: 18, failed: 2, skipped: 3 };
    assert_eq!(summary(line, NEXTEST), Some(count));
    let line = "     Summary [   3.418s] 7/9 tests run: 6 passed, 1 timed out, 0 skipped";
    assert_eq!(summary(line, NEXTEST), Some(Count { passed: 6, failed: 3, skipped: 0 }));
    assert_eq!(summary("        PASS [   0.004s] x y", NEXTEST), None);
    let line = "test result: FAILED. 5 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out";
    let count = Count { passed: 5, failed: 1, skipped: 2 };
    assert_eq!(summary(line, LIBTEST), Some(count));
    assert_eq!(summary(&format!("    {line}"), NEXTEST), None, "what a failed test printed");
    assert_eq!(summary("test a::b ... ok", LIBTEST), None);
}
