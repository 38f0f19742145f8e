use super::{Function, check, functions, parse};
use crate::tidy::tree::File;

#[test]
fn functions_of_every_kind_are_measured_but_for_tests() {
    let text = "fn one() {}\nimpl A {\n    pub fn two(\n        self,\n    ) {\n    }\n}\n\
                trait B {\n    fn none();\n    fn three() {\n        fn four() {}\n    }\n}\n\
                #[cfg(test)]\nmod tests {\n    fn five() {}\n}\n";
    let found = functions(&parse("a.rs", text).expect("Rust"));
    let function = |name: &str, line, lines| Function { name: name.to_owned(), line, lines };
    let expected = [
        function("one", 1, 1),
        function("two", 3, 4),
        function("three", 10, 3),
        function("four", 11, 1),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_long_function_needs_a_reason_and_a_reason_a_long_function() {
    let long = |lines: usize| format!("fn a() {{{}}}\n// the end\n", "\n".repeat(lines - 1));
    let files = [File::of("crates/a/src/b.rs", &long(101))];
    assert_eq!(check(&files, &[]).expect("Rust").len(), 1);
    let reason = [("crates/a/src/b.rs", "a", "a table")];
    assert_eq!(check(&files, &reason).expect("Rust"), []);
    let files = [File::of("crates/a/src/b.rs", &long(100))];
    assert_eq!(check(&files, &[]).expect("Rust"), []);
    assert_eq!(check(&files, &reason).expect("Rust").len(), 1);
}
