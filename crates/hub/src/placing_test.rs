use super::*;

fn group_of(grouping: &[&str], labels: &[(&str, &str)]) -> Result<String, u16> {
    let grouping: Vec<String> = grouping.iter().map(|&key| key.to_owned()).collect();
    let labels = labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
    let joining = JoiningServer {
        address: "web-1:7417".to_owned(),
        platform: "linux/amd64".parse().unwrap(),
        labels: labels.collect(),
        rack: None,
    };
    place(&grouping, &ServerId::new("web-1").unwrap(), joining)
        .map(|placed| placed.record.group.to_string())
        .map_err(|error| error.status)
}

#[test]
fn the_values_of_the_grouping_labels_name_the_group() {
    let zone = [("zone", "a"), ("owner", "me")];
    assert_eq!(group_of(&["platform", "zone"], &zone).as_deref(), Ok("linux-amd64.a"));
    assert_eq!(group_of(&["zone", "rack"], &zone).as_deref(), Ok("a"), "an absent label");
    assert_eq!(group_of(&["rack"], &zone).as_deref(), Ok("default"));
    assert_eq!(group_of(&["zone"], &[("zone", "no such name/")]), Err(400));
    assert_eq!(group_of(&["zone"], &[("zone", "A/")]), Err(400), "not a group's name");
}
