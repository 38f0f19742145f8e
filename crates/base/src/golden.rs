//! Formats that every later version must read: each has examples in a file in `tests/golden`.

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Holds a format to its golden file, one JSON value per line: each line decodes to its value, and
/// each value encodes to its line. `UPDATE=1` writes the file only if it does not exist: a released
/// format never changes, because servers have it on disk and send it to each other.
///
/// # Panics
/// If the format has changed.
pub fn hold<T>(path: &Path, values: &[T])
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let lines: Vec<String> =
        values.iter().map(|value| serde_json::to_string(value).expect("plain data")).collect();
    if std::env::var_os("UPDATE").is_some() && !path.exists() {
        let dir = path.parent().expect("a file in a directory");
        fs::create_dir_all(dir).expect("a writable directory");
        fs::write(path, lines.join("\n") + "\n").expect("a writable directory");
    }
    let name = path.display();
    let text = fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{name}: {error}; UPDATE=1 writes it once"));
    let golden: Vec<&str> = text.lines().collect();
    assert_eq!(golden, lines, "{name}: the encoding has changed");
    for (line, value) in golden.iter().zip(values) {
        let read: T = serde_json::from_str(line).unwrap_or_else(|e| panic!("{name}: {e}: {line}"));
        assert_eq!(&read, value, "{name}: the decoding has changed");
    }
}

/// Holds a text that is made from the code to its file. `UPDATE=1` rewrites the file: it is there
/// to be read, and to show in a review what has changed.
///
/// # Panics
/// If the text has changed.
pub fn hold_text(path: &Path, text: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, text).expect("a writable directory");
    }
    let name = path.display();
    let golden = fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{name}: {error}; UPDATE=1 writes it"));
    assert_eq!(golden, text, "{name} has changed; UPDATE=1 rewrites it");
}

/// Decodes JSON from outside: what decodes has to encode, and to decode to the same again. `None`
/// if it does not decode. For fuzz targets.
///
/// # Panics
/// If it does not.
pub fn round_trip<T>(bytes: &[u8]) -> Option<T>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let value: T = serde_json::from_slice(bytes).ok()?;
    let text = serde_json::to_vec(&value).expect("what was decoded encodes");
    let again: T = serde_json::from_slice(&text).expect("what was encoded decodes");
    assert_eq!(again, value, "{}", String::from_utf8_lossy(&text));
    Some(value)
}
