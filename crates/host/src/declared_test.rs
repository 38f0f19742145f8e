//! Checks that a policy names and a release declares, or not.

use super::*;

/// Named by a policy, the program is in the release, and the release does not declare it.
#[tokio::test]
async fn a_check_that_is_not_declared_fails_before_the_old_release_stops() {
    let server = TestServer::start().await;
    let mut host = server.host();
    let old = server.release("1.0.0", SLEEP, &[]);
    settle(&mut host, &order(1, Some(&old))).await.unwrap();
    let release = server.release("1.1.0", SLEEP, &[]);
    for (generation, name, expected, phase) in [
        (2, "run", Blame::Release, "pre-flight"),
        (3, "run", Blame::Release, "running"),
        (4, "host:sh", Blame::Surroundings, "pre-flight"),
    ] {
        let mut order = order(generation, Some(&release));
        let check = serde_json::json!({ "type": "exec", "name": name, "phase": [phase] });
        order.checks = vec![serde_json::from_value(check).unwrap()];
        settle(&mut host, &order).await.unwrap();
        let (step, blame, _) = failure(&host);
        assert_eq!((step, blame), (Step::Prepare, expected), "{name}");
        assert_eq!(host.local().current.as_ref(), Some(&old));
    }
    // The way back goes as far as it can.
    let mut back = order(5, Some(&release));
    let check = serde_json::json!({ "type": "exec", "name": "host:sh", "phase": ["running"] });
    back.checks = vec![serde_json::from_value(check).unwrap()];
    back.purpose = Purpose::RollBack;
    settle(&mut host, &back).await.unwrap();
    assert_eq!(host.local().current.as_ref(), Some(&release));
    server.end().await;
}
