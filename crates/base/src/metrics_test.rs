use super::*;

#[test]
fn metrics_are_scraped_as_prometheus_reads_them() {
    let mut registrar = Registrar::new("cohort");
    let requests =
        registrar.counters::<[(&'static str, String); 1]>("requests", "Requests by route");
    let ready = registrar.gauge("ready", "1 while ready");
    let sync = registrar.histogram("sync_seconds", "Syncs of the log", LATENCY);
    requests.get_or_create(&[("route", "a \"b\"\n\\".to_owned())]).inc_by(3);
    ready.set(1);
    sync.observe(0.003);
    sync.observe(20.0);

    let text = registrar.text();
    let (samples, types): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| !line.starts_with('#'));
    for line in [
        r#"cohort_requests_total{route="a \"b\"\n\\"} 3"#,
        "cohort_ready 1",
        "cohort_sync_seconds_count 2",
        "cohort_sync_seconds_bucket{le=\"0.002\"} 0",
        "cohort_sync_seconds_bucket{le=\"0.004\"} 1",
        "cohort_sync_seconds_bucket{le=\"+Inf\"} 2",
    ] {
        assert!(samples.contains(&line), "{line} is not in\n{text}");
    }
    assert!(types.contains(&"# TYPE cohort_sync_seconds histogram"), "{text}");
    let document = "`cohort_requests_total` and `cohort_sync_seconds`";
    assert_eq!(registrar.undocumented(document), ["cohort_ready"]);
}

#[test]
#[should_panic(expected = "registered twice")]
fn a_name_is_registered_once() {
    let mut registrar = Registrar::new("cohort");
    registrar.gauge("ready", "1 while ready");
    registrar.gauge("ready", "1 while ready");
}
