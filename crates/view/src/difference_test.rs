use serde_json::json;

use super::difference;

#[test]
fn every_change_is_one_line() {
    let before = json!({"app": "web", "update": {"max_parallel": 1, "auto_revert": true},
        "check": [{"type": "tcp"}]});
    let after = json!({"app": "web", "update": {"max_parallel": ["1", "50%"]},
        "check": [{"type": "tcp", "timeout": "1s"}]});
    let lines: String = difference(&before, &after).iter().map(super::Change::line).collect();
    assert_eq!(
        lines,
        "+ check[1].timeout = \"1s\"\n\
         - update.auto_revert = true\n\
         ~ update.max_parallel = 1 -> [\"1\",\"50%\"]\n"
    );
    assert!(difference(&after, &after).is_empty());
}
