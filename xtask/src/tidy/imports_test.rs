use super::{Module, circles, module};
use crate::tidy::functions::parse;

fn modules(files: &[(&str, &str)]) -> Vec<Module> {
    files.iter().map(|(path, text)| module(path, &parse(path, text).expect("Rust"))).collect()
}

#[test]
fn a_circle_is_found_through_re_exports_and_super() {
    let found = circles(&modules(&[
        ("lib.rs", "mod a;\nmod b;\nmod c;\npub use a::A;\npub use b::{B, Other as C};"),
        ("a.rs", "use crate::B;"),
        ("b.rs", "mod inner;\nuse super::c::D;"),
        ("c/mod.rs", "use std::fs;\nuse crate::{a::A, b};"),
    ]));
    assert_eq!(found, [["a", "b", "c"]]);
}

#[test]
fn no_circle_where_imports_go_one_way_or_only_tests_go_back() {
    let found = circles(&modules(&[
        ("main.rs", "mod a;\nmod b;\nuse a::A;\nuse b::B;"),
        ("a.rs", "use crate::b::B;"),
        ("b.rs", "use std::fmt;\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}"),
    ]));
    assert_eq!(found, [] as [Vec<String>; 0]);
}
