use super::{functions, parse};

#[test]
fn functions_of_every_kind_are_measured_but_for_tests() {
    let text = "fn one() {}\nimpl A {\n    pub fn two(\n        self,\n    ) {\n    }\n}\n\
                trait B {\n    fn none();\n    fn three() {\n        fn four() {}\n    }\n}\n\
                #[cfg(test)]\nmod tests {\n    fn five() {}\n}\n";
    assert_eq!(functions(&parse("a.rs", text).expect("Rust")), [1, 4, 3, 1]);
}
