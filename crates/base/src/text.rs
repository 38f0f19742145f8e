//! Text from elsewhere: what may enter, and how it is shown.
//!
//! An escape sequence can rewrite a terminal, a mark of direction what a sentence seems to say, and
//! a line break invents a line. Such characters are refused where people and servers enter text,
//! and shown by their numbers, as in JSON, wherever they came in all the same.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character is invisible, or changes how others are shown: control characters, line and
/// paragraph separators, marks of direction, zero-width characters and tags.
#[must_use]
pub fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Text as part of one line: hidden characters by their numbers, line breaks as `\n`.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push(' '),
            hidden if is_hidden(hidden) => push_number(&mut shown, hidden),
            plain => shown.push(plain),
        }
    }
    shown.into()
}

/// A whole output: as [`line`], but line breaks and tabs stay and, for a terminal, the sequences
/// that colour text and clear what is below.
#[must_use]
pub fn page(text: &str, terminal: bool) -> Cow<'_, str> {
    let stays = |character: char| !is_hidden(character) || matches!(character, '\n' | '\t');
    if text.chars().all(stays) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let length = match sequence(rest).filter(|_| terminal) {
            Some(length) => {
                shown.push_str(&rest[..length]);
                length
            }
            None => {
                if stays(character) {
                    shown.push(character);
                } else {
                    push_number(&mut shown, character);
                }
                character.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    shown.into()
}

/// Checks text that a person or a server enters; `what` names it.
///
/// # Errors
/// With the first hidden character.
pub fn check(what: &str, text: &str) -> Result<(), String> {
    match text.chars().find(|character| is_hidden(*character)) {
        None => Ok(()),
        Some(hidden) => {
            let mut number = String::new();
            push_number(&mut number, hidden);
            Err(format!("{what} contains {number}, a character that is not shown: leave it out"))
        }
    }
}

/// The length of the escape sequence at the start that colours (`m`), clears (`J`, `K`) or goes to
/// the first line (`H`).
fn sequence(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("\u{1b}[")?;
    let end = rest.find(|character: char| !(character.is_ascii_digit() || character == ';'))?;
    let ends = rest[end..].starts_with(['m', 'J', 'K']) || rest.starts_with('H');
    ends.then_some(2 + end + 1)
}

/// A character by its UTF-16 units, as JSON escapes it.
fn push_number(shown: &mut String, character: char) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        let _ = write!(shown, "\\u{unit:04x}");
    }
}

#[cfg(test)]
mod text_test {
    use super::*;

    #[test]
    fn hidden_characters_are_shown_by_their_numbers() {
        assert_eq!(line("plain, wide: 日本 é"), "plain, wide: 日本 é");
        assert_eq!(line("\u{1b}[31mred\u{7}"), "\\u001b[31mred\\u0007");
        assert_eq!(line("one\ntwo\tthree\r"), "one\\ntwo three\\u000d");
        assert_eq!(line("\u{202e}evil\u{2066}\u{9b}2J\u{e0041}"), {
            "\\u202eevil\\u2066\\u009b2J\\udb40\\udc41"
        });
    }

    #[test]
    fn a_page_keeps_its_lines_and_on_a_terminal_its_colours() {
        let page_of = |text: &str| (page(text, true).into_owned(), page(text, false).into_owned());
        let (terminal, file) = page_of("a\n\u{1b}[1;31mb\u{1b}[0m\tc");
        assert_eq!(terminal, "a\n\u{1b}[1;31mb\u{1b}[0m\tc");
        assert_eq!(file, "a\n\\u001b[1;31mb\\u001b[0m\tc");
        // Not a title, a cursor elsewhere, a device's answer, or a sequence that is cut short.
        for other in
            ["\u{1b}]0;title\u{7}", "\u{1b}[3A", "\u{1b}[2;5H", "\u{1b}[6n", "\u{1b}[31", "\u{1b}c"]
        {
            let (terminal, file) = page_of(other);
            assert!(!terminal.contains('\u{1b}') && !file.contains('\u{1b}'), "{other:?}");
        }
    }

    #[test]
    fn what_is_entered_has_no_hidden_characters() {
        check("a reason", "wegen é, 日本").unwrap();
        for hidden in ["\n", "\u{1b}[2J", "\u{202e}", "\u{200b}"] {
            assert!(check("a reason", hidden).unwrap_err().starts_with("a reason contains \\u"));
        }
    }
}
