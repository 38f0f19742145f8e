use super::names;

#[test]
fn names_beyond_those_shown_are_counted() {
    assert_eq!(names(["a", "b"], 5), "a, b and 3 more");
    assert_eq!(names(["a", "b"], 2), "a, b");
    assert_eq!(names::<&str>([], 0), "none");
}
