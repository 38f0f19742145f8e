use std::path::Path;

use bytes::Bytes;

use super::{HEAD_SCHEMA, Head, SmallFile};

#[test]
fn the_format_of_small_files_is_held() {
    let body = Bytes::from_static(b"{}\n");
    let head = Head {
        schema: HEAD_SCHEMA,
        path: "metadata/timestamp.json".to_owned(),
        origin: "http://hub.example:7419/".to_owned(),
        etag: Some("\"3-1\"".to_owned()),
        modified: None,
        absent: false,
        blake3: blake3::hash(&body).to_hex().to_string(),
    };
    let files = [SmallFile { head, body }, SmallFile::absent("metadata/2.root.json")];
    let text = |file: &SmallFile| String::from_utf8(file.to_bytes()).unwrap();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/small-file.jsonl");
    cohort_base::golden::hold(Path::new(golden), &files.each_ref().map(text));
    for file in files {
        let read = SmallFile::parse(&file.to_bytes().into(), &file.head.path).unwrap();
        assert_eq!((&read.head, &read.body), (&file.head, &file.body));
        let mut newer = file;
        newer.head.schema += 1;
        assert!(SmallFile::parse(&newer.to_bytes().into(), &newer.head.path).is_none());
    }
}
