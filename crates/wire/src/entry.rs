//! What servers and people may enter: addresses, labels, racks and reasons, each checked as what it
//! is before it is stored or shown anywhere.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use cohort_base::text;

use crate::http::ApiError;
use crate::hub::{ADDRESS_BYTES_MAX, LABEL_BYTES_MAX, LABELS_MAX};

/// Checks a server's address: a name or an IPv4 address, or an IPv6 address in brackets, and a
/// port.
///
/// # Errors
/// 400.
pub fn address(text: &str) -> Result<(), ApiError> {
    let valid = text.rsplit_once(':').is_some_and(|(host, port)| {
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match v6 {
            Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(name),
        };
        host && !port.starts_with('+') && port.parse::<u16>().is_ok()
    });
    if valid && text.len() <= ADDRESS_BYTES_MAX {
        return Ok(());
    }
    let shown = shorten(text);
    Err(ApiError::bad_request(format!("invalid address `{shown}`: use HOST:PORT"))
        .hint("for example 10.0.0.11:7417, web-1.example:7417 or [fd00::11]:7417"))
}

/// Checks the labels of a server.
///
/// # Errors
/// 400.
pub fn labels(labels: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if labels.len() > LABELS_MAX {
        let many = labels.len();
        return Err(ApiError::bad_request(format!("{many} labels; at most {LABELS_MAX}")));
    }
    for (key, value) in labels {
        word("label", key, LABEL_BYTES_MAX)?;
        word(&format!("value of label `{key}`"), value, LABEL_BYTES_MAX)?;
    }
    Ok(())
}

/// Checks a rack, or another word of at most `max` bytes; `what` names it.
///
/// # Errors
/// 400.
pub fn word(what: &str, text: &str, max: usize) -> Result<(), ApiError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    if (1..=max).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(());
    }
    let shown = shorten(text);
    Err(ApiError::bad_request(format!(
        "invalid {what} `{shown}`: use 1 to {max} letters, digits and `._-/`"
    )))
}

/// Checks a sentence, such as a reason; `what` names it. It may be empty.
///
/// # Errors
/// 400 for a character that is not shown.
pub fn sentence(what: &str, sentence: &str) -> Result<(), ApiError> {
    text::check(what, sentence).map_err(ApiError::bad_request)
}

fn shorten(text: &str) -> String {
    text::line(&text.chars().take(80).collect::<String>()).into_owned()
}

#[cfg(test)]
mod entry_test {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for valid in ["10.0.0.1:7417", "web-1.example:1", "[fd00::1]:7417", "a_b:7417"] {
            address(valid).unwrap();
        }
        let long = format!("{}:7417", "x".repeat(300));
        for wrong in [
            "",
            "10.0.0.1",
            ":7417",
            "web 1:7417",
            "web\n:7417",
            "\u{1b}[2J:7417",
            "web:+1",
            "web:70000",
            "fd00::1:7417",
            "[fd00::g]:7417",
            "a/b:7417",
            "\u{202e}web:7417",
            &long,
        ] {
            let error = address(wrong).unwrap_err();
            assert_eq!(error.kind, "bad_request", "{wrong:?}");
            assert!(!error.error.chars().any(text::is_hidden), "{error:?}");
        }
    }

    #[test]
    fn labels_and_racks_are_words_and_reasons_are_visible() {
        let of = |key: &str, value: &str| labels(&[(key.to_owned(), value.to_owned())].into());
        of("zone", "zone-a/r1").unwrap();
        for (key, value) in [("", "a"), ("a", ""), ("a b", "c"), ("a", "\u{1b}"), ("a", "é")] {
            assert!(of(key, value).is_err(), "{key:?} {value:?}");
        }
        assert!(
            labels(&(0..=LABELS_MAX).map(|n| (format!("l{n}"), "x".into())).collect()).is_err()
        );
        sentence("a reason", "").unwrap();
        sentence("a reason", "wegen é").unwrap();
        assert!(sentence("a reason", "fine\nhint: run this").is_err());
    }
}
