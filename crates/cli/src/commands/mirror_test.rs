use super::size;

#[test]
fn sizes_are_read() {
    for (text, bytes) in [
        ("50GiB", Some(50 << 30)),
        ("500MB", Some(500_000_000)),
        ("64 MiB", Some(64 << 20)),
        ("1024", Some(1024)),
        ("1.5GiB", None),
        ("GiB", None),
        ("-1GiB", None),
        ("5gigs", None),
        ("99999999TiB", None),
    ] {
        assert_eq!(size(text).ok(), bytes, "{text}");
    }
}
