use super::{Age, Asked, EXPIRED_EVERY_MS, LOOK_EVERY_MS, Next, Renewal};

const REST: Next = Next::Rest { for_ms: LOOK_EVERY_MS };
const SHORT_REST: Next = Next::Rest { for_ms: EXPIRED_EVERY_MS };

#[test]
fn only_a_certificate_that_expires_soon_is_renewed() {
    let mut renewal = Renewal::new(1);
    assert_eq!(renewal.look(Age::Fresh), REST);
    for age in [Age::Expiring, Age::Expired] {
        assert_eq!(renewal.look(age), Next::Ask { address: 0 });
        assert_eq!(renewal.asked(Asked::Renewed), REST);
    }
}

#[test]
fn each_address_is_asked_once_and_all_of_them_again_at_the_next_look() {
    let mut renewal = Renewal::new(3);
    for _ in 0..2 {
        assert_eq!(renewal.look(Age::Expiring), Next::Ask { address: 0 });
        assert_eq!(renewal.asked(Asked::NotIssued), Next::Ask { address: 1 });
        assert_eq!(renewal.asked(Asked::NotIssued), Next::Ask { address: 2 });
        assert_eq!(renewal.asked(Asked::NotIssued), REST);
    }
}

#[test]
fn a_certificate_that_is_not_accepted_ends_the_round() {
    let mut renewal = Renewal::new(2);
    for (age, rest) in [(Age::Expiring, REST), (Age::Expired, SHORT_REST)] {
        assert_eq!(renewal.look(age), Next::Ask { address: 0 });
        assert_eq!(renewal.asked(Asked::NotAccepted), rest);
    }
    assert_eq!(renewal.look(Age::Expired), Next::Ask { address: 0 });
}

#[test]
fn an_expired_certificate_is_tried_again_soon_until_it_is_renewed() {
    let mut renewal = Renewal::new(1);
    assert_eq!(renewal.look(Age::Expired), Next::Ask { address: 0 });
    assert_eq!(renewal.asked(Asked::NotIssued), SHORT_REST);
    assert_eq!(renewal.look(Age::Expired), Next::Ask { address: 0 });
    assert_eq!(renewal.asked(Asked::Renewed), REST);
}
