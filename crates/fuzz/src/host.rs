//! Records of a server and of a mirror.

use bytes::Bytes;
use cohort_base::golden::round_trip;
use cohort_core::steps::AppRecord;
use cohort_mirror::fuzzing::{range, small_file};

use crate::script::Script;

/// The guard's socket, log and record, releases' markers, and the record of an app.
pub(crate) fn records(bytes: &[u8]) {
    cohort_host::fuzzing::records(bytes);
    round_trip::<AppRecord>(bytes);
}

/// What a mirror reads: a `Range` header, and the small files of its cache.
pub(crate) fn mirror(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let length = script.near(1 << 16);
    if script.is_set() {
        let header = String::from_utf8_lossy(script.rest()).into_owned();
        if let Some((first, last)) = range(&header, length) {
            assert!(first <= last && last < length, "{header}: {first}-{last} of {length}");
        }
        return;
    }
    let path = "metadata/timestamp.json";
    let bytes = Bytes::copy_from_slice(script.rest());
    let Some((written, body)) = small_file(&bytes, path) else { return };
    let again = small_file(&written, path);
    assert_eq!(again.expect("what was written is read").1, body);
    assert!(bytes.ends_with(&body));
}
