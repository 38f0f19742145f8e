use std::fmt;

use super::*;

#[derive(Debug)]
struct Said(&'static str, Option<Box<Said>>);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for Said {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.1.as_deref().map(|cause| cause as _)
    }
}

fn said(texts: &[&'static str]) -> Said {
    let (first, causes) = texts.split_first().unwrap();
    Said(first, (!causes.is_empty()).then(|| Box::new(said(causes))))
}

#[test]
fn every_cause_is_said_once() {
    let cases: [(&[&str], &str); 5] = [
        (&["read a", "no such file"], "read a: no such file"),
        (&["read a: no such file", "no such file"], "read a: no such file"),
        (&["no such file", "no such file"], "no such file"),
        (&["a: b: c", "b: c", "c", "d"], "a: b: c: d"),
        (&["read a", ""], "read a"),
    ];
    for (texts, line) in cases {
        assert_eq!(chain(&said(texts)), line);
    }
}

#[test]
fn a_cause_is_found_by_its_type() {
    let error = said(&["outer", "inner"]);
    let found = causes(&error).filter_map(|cause| cause.downcast_ref::<Said>()).last();
    assert_eq!(found.map(|said| said.0), Some("inner"));
}

#[test]
fn a_cause_that_draws_its_source_becomes_one_line() {
    let drawn =
        "TOML parse error at line 2, column 5\n  |\n2 | a == 1\n  |   ^\nexpected a value\n";
    let line = "TOML parse error at line 2, column 5: expected a value";
    assert_eq!(
        chain(&said(&["cannot parse web.toml", drawn])),
        format!("cannot parse web.toml: {line}")
    );
}
