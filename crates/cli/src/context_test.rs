use std::path::Path;

use cohort_base::golden::hold;

use super::{ContextFile, default_hub_name};

#[test]
fn contexts_are_as_their_golden_file_says() {
    let small = ContextFile {
        hub: Vec::new(),
        hub_name: default_hub_name(),
        identity: "identity".into(),
        keys: None,
        repository: None,
        mirrors: Vec::new(),
        trusted_root: None,
    };
    let full = ContextFile {
        hub: vec!["hub.example:7418".to_owned()],
        hub_name: "hub-2".to_owned(),
        keys: Some("keys".into()),
        repository: Some("repository".into()),
        mirrors: vec!["http://mirror:7419/".to_owned()],
        trusted_root: Some("root.json".into()),
        ..small.clone()
    };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/context.jsonl");
    hold(&golden, &[small.clone(), full.clone()]);
    let dir = tempfile::tempdir().unwrap();
    for context in [small, full] {
        context.write(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(super::FILE)).unwrap();
        assert_eq!(toml::from_str::<ContextFile>(&text).unwrap(), context);
    }
}
