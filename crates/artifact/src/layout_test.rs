use super::{channel_target, is_channel, manifest_target, target_path};

#[test]
fn a_platform_is_one_component_of_the_path() {
    let target = manifest_target(
        &"web".parse().unwrap(),
        &"1.0.0+b.1".parse().unwrap(),
        &"linux/amd64/v3".parse().unwrap(),
    );
    assert_eq!(target, "apps/web/1.0.0+b.1/linux~amd64~v3/manifest.json");
    assert_eq!(
        target_path(&target, "ab"),
        "targets/apps/web/1.0.0+b.1/linux~amd64~v3/ab.manifest.json"
    );
}

#[test]
fn a_channel_is_told_from_a_manifest_by_its_name() {
    let app = "channels".parse().unwrap();
    assert!(is_channel(&channel_target(&app, &"stable".parse().unwrap())));
    let (version, platform) = ("1.0.0".parse().unwrap(), "linux/amd64".parse().unwrap());
    assert!(!is_channel(&manifest_target(&app, &version, &platform)));
}
