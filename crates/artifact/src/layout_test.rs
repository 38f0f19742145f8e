use super::{manifest_target, target_path};

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
