use super::Answered;

#[test]
fn a_request_came_before_its_answer_ended() {
    let answered = Answered::parse("1700000000.500 0.250 206 /blobs/ab").expect("a line");
    assert_eq!((answered.at, answered.path.as_str()), (1_700_000_000.25, "/blobs/ab"));
    assert!(Answered::parse("1700000000.500 - 206 /blobs/ab").is_none());
    assert!(Answered::parse("").is_none());
}
