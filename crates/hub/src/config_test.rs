use std::path::{Path, PathBuf};

use super::{HubConfig, RepositoryAccess};

#[test]
fn a_file_needs_a_data_dir_and_nothing_else() {
    let read: HubConfig = serde_json::from_str(r#"{"data_dir":"/data"}"#).unwrap();
    assert_eq!(read, HubConfig::new("/data"));
    assert_eq!(read.validate(), Ok(()));
    assert!(serde_json::from_str::<HubConfig>("{}").unwrap().validate().is_err());
}

#[test]
fn every_key_of_the_file() {
    let path = |name: &str| Some(PathBuf::from(name));
    let full = HubConfig {
        repository_dir: path("/repository"),
        repository_access: RepositoryAccess::Fleet,
        repository_bucket: Some("s3://bucket/prefix".to_owned()),
        authority_dir: path("/authority"),
        identity_dir: path("/identity"),
        timestamp_key: path("/timestamp.pem"),
        trusted_root: path("/1.root.json"),
        addresses: vec!["hub.example:7416".to_owned()],
        mirrors: vec!["http://mirror.example/".to_owned()],
        confirm_restored: true,
        ..HubConfig::new("/data")
    };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hub.jsonl");
    cohort_base::golden::hold(&golden, &[HubConfig::new("/data"), full]);
}
