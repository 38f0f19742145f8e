use super::{Tail, first_text, last_text, with_last_line};

#[test]
fn a_tail_keeps_the_end_and_no_more() {
    let mut tail = Tail::new(4);
    tail.push(b"ab");
    tail.push(b"cde");
    assert_eq!(tail.bytes(), b"bcde");
    tail.push(b"0123456789");
    assert_eq!(tail.bytes(), b"6789");
}

#[test]
fn texts_are_cut_between_characters_and_printable() {
    let long = "\u{e4}".repeat(3000);
    assert!(last_text(&long).len() <= 2048 && first_text(&long).len() <= 2048);
    assert_eq!(last_text("a\x1b[31mb\n"), "a\u{b7}[31mb\n");
}

#[test]
fn a_reason_has_the_last_line_of_the_output() {
    assert_eq!(
        with_last_line("exit status 3", "begins\n  no table \x1b users\n\n"),
        "exit status 3: no table \u{b7} users"
    );
    assert_eq!(with_last_line("exit status 3", " \n"), "exit status 3");
    let long = with_last_line(&"r".repeat(3000), &"o".repeat(3000));
    assert!(long.len() <= 2048);
}
