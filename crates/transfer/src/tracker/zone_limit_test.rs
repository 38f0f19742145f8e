//! How a zone's limit is divided.

use cohort_core::ids::ServerId;

use super::zone_limit::{divide, part_of};

fn server(name: &str) -> ServerId {
    name.parse().unwrap()
}

#[test]
fn a_limit_is_given_away_whole_and_never_more() {
    assert!(divide(100, &[]).is_empty());
    assert_eq!(divide(100, &[u64::MAX]), [100]);
    assert_eq!(divide(100, &[u64::MAX, u64::MAX]), [50, 50]);
    assert_eq!(divide(100, &[u64::MAX, 10, u64::MAX]), [45, 10, 45]);
    // No server needs it: room to grow for all.
    assert_eq!(divide(100, &[10, 20]), [45, 55]);
    for limit in [0, 1, 7, 1_000_003, u64::MAX] {
        for needs in [vec![0, 0, 0], vec![1, u64::MAX, 5, 9], vec![u64::MAX; 7]] {
            let given: u128 = divide(limit, &needs).into_iter().map(u128::from).sum();
            assert!(given <= u128::from(limit) && given + 7 >= u128::from(limit));
        }
    }
}

#[test]
fn apps_share_alike_whatever_the_number_of_their_heads() {
    let transfers = vec![
        vec![(server("a"), 0), (server("b"), 0), (server("c"), 0)],
        vec![(server("a"), 0)],
        Vec::new(),
    ];
    assert_eq!(part_of(600, &transfers, 0, &server("a")), 100);
    assert_eq!(part_of(600, &transfers, 0, &server("c")), 100);
    assert_eq!(part_of(600, &transfers, 1, &server("a")), 300);
    // Not a head: what it could take if only it continued.
    assert_eq!(part_of(600, &transfers, 1, &server("z")), 300);
    assert_eq!(part_of(600, &transfers, 2, &server("z")), 200);
    assert_eq!(part_of(1, &transfers, 0, &server("a")), 1);
}

#[test]
fn a_head_that_cannot_use_its_part_leaves_it_to_the_others() {
    let transfers = vec![vec![(server("a"), 40), (server("b"), 500)]];
    assert_eq!(part_of(1_000, &transfers, 0, &server("a")), 50 + 162);
    assert_eq!(part_of(1_000, &transfers, 0, &server("b")), 625 + 162);
    let transfers = vec![vec![(server("a"), 40), (server("b"), 940)]];
    assert_eq!(part_of(1_000, &transfers, 0, &server("a")), 50);
    assert_eq!(part_of(1_000, &transfers, 0, &server("b")), 950);
}
