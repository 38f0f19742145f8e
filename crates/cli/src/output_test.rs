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
