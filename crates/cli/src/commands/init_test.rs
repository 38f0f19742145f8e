use std::path::Path;

use cohort_hub::HubConfig;

use super::hub_toml;
use crate::hub_keys::LAYOUT;
use crate::layers::Layers;

#[test]
fn the_hubs_file_is_as_its_golden_file_says_and_is_read_as_it_was_meant() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = HubConfig::new(dir.path());
    config.addresses = vec!["hub.example:7418".to_owned()];
    config.mirrors = vec!["http://mirror:7419/".to_owned()];
    let text = hub_toml(&config);
    let file = dir.path().join("hub.toml");
    std::fs::write(&file, &text).unwrap();
    let mut layers = Layers::new(LAYOUT);
    layers.add_file_and_drop_ins(&file).unwrap();
    layers.add_default("data_dir", dir.path().to_string_lossy().into_owned().into());
    assert_eq!(layers.finish::<HubConfig>().unwrap(), config);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hub-toml.jsonl");
    cohort_base::golden::hold(&golden, &[text]);
}
