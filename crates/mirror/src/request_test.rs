use super::{Wanted, parse_range};

#[test]
fn ranges_are_read_as_the_standard_says() {
    let part = |first, last| Wanted::Part { first, last };
    for (text, wanted) in [
        ("bytes=0-0", part(0, 0)),
        ("bytes=2-", part(2, 9)),
        ("bytes=2-99", part(2, 9)),
        ("bytes=-3", part(7, 9)),
        ("bytes=-99", part(0, 9)),
        ("bytes=10-", Wanted::Outside),
        ("bytes=-0", Wanted::Outside),
        ("bytes=5-2", Wanted::Whole),
        ("bytes=0-1,4-5", Wanted::Whole),
        ("bytes=x-y", Wanted::Whole),
        ("units=0-1", Wanted::Whole),
        ("bytes=99999999999999999999-", Wanted::Whole),
    ] {
        assert_eq!(parse_range(text, 10), wanted, "{text}");
    }
    assert_eq!(parse_range("bytes=0-", 0), Wanted::Outside);
}
