use super::{Better, Row, median};

#[test]
fn a_goal_is_met_in_its_direction_and_a_missing_figure_never() {
    let row = |measured, goal, better| Row::new("x", measured, "s", goal, better).met;
    assert!(row(Some(1.0), Some(1.0), Better::Lower));
    assert!(!row(Some(1.1), Some(1.0), Better::Lower));
    assert!(row(Some(1.1), Some(1.0), Better::Higher));
    assert!(!row(Some(0.9), Some(1.0), Better::Higher));
    assert!(row(Some(9.0), None, Better::Lower), "only reported");
    assert!(!row(None, Some(1.0), Better::Lower));
    assert!(!row(None, None, Better::Lower));
    // The printed figure decides: three decimals.
    assert!(row(Some(1.0004), Some(1.0), Better::Lower));
}

#[test]
fn the_median_of_an_even_count_lies_between() {
    assert!(median(&mut []).is_err());
    assert_eq!(median(&mut [3.0, 1.0, 2.0]).ok(), Some(2.0));
    assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]).ok(), Some(2.5));
}
