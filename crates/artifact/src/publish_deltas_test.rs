use super::{EARLIER_MAX, earlier_names};

#[test]
fn the_last_versions_are_those_that_people_mean() {
    let names: Vec<String> =
        (1..=40).map(|n| format!("apps/web/1.{n}.0/linux/manifest.json")).collect();
    let names = names.iter().map(String::as_str).chain([
        "apps/web/1.9.0-rc.2/linux/manifest.json",
        "apps/other/9.0.0/linux/manifest.json",
        "apps/web/7.0.0/mac/manifest.json",
        "channels/web/stable.json",
    ]);
    let platform = "linux".parse().unwrap();
    let found = earlier_names(names, &"web".parse().unwrap(), Some(&platform));
    assert_eq!(found.len(), EARLIER_MAX);
    assert_eq!(found[0], "apps/web/1.40.0/linux/manifest.json");
    assert_eq!(found[11], "apps/web/1.29.0/linux/manifest.json");
}
