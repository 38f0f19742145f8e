use super::{bits, brief, bytes};

#[test]
fn figures_have_one_decimal_and_the_largest_unit_that_fits() {
    assert_eq!(
        [1023, 1024, 1_572_864, 1 << 30].map(bytes),
        ["1023 B", "1.0 KiB", "1.5 MiB", "1.0 GiB"]
    );
    assert!(bytes(u64::MAX).ends_with(" TiB"));
    assert_eq!(
        [0, 125, 6_112_500, 125_000_000].map(bits),
        ["0.0 kbit/s", "1.0 kbit/s", "48.9 Mbit/s", "1.0 Gbit/s"]
    );
    assert_eq!(
        [0, 42_999, 60_000, 200_000, 7_500_000, 349_200_000].map(brief),
        ["0s", "42s", "1m", "3m 20s", "2h 5m", "4d 1h"]
    );
}
