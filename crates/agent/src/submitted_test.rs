//! What servers and people submit counts as theirs, and nothing else does.

use super::*;

#[tokio::test]
async fn a_server_reports_for_itself_in_order_and_what_it_did_not_sign_leaves_nothing_in_the_log() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let handle = lab.carry(&shared).await;
    let s1 = agent("s1");
    let say = async |by: &Peer, said: Vec<(u64, Report)>| {
        let said = said.into_iter().map(|(about, said)| signed(&lab, by, reports(0, about, said)));
        let body = submits(&s1, &handle, said.collect());
        super::super::report(Context(Arc::clone(&shared)), body).await
    };
    let Json(answers) = say(&s1, vec![(1, report("s1", 1)), (1, report("s1", 2))]).await.unwrap();
    assert!(answers.iter().all(|answer| answer.rejection.is_none()), "{answers:?}");
    assert!(answers[0].index < answers[1].index, "{answers:?}");
    let view = shared.fresh(&handle).await.unwrap();
    assert_eq!(view.state.servers["s1"].sequence, 2);
    let many = (3..).map(|sequence| (1, report("s1", sequence))).take(REPORTS_MAX + 1);
    for (by, reports, status) in [
        (&s1, vec![(1, report("s2", 1))], 403),
        (&agent("s2"), vec![(1, report("s2", 1))], 403),
        (&agent("s2"), vec![(1, report("s1", 3))], 403),
        (&operator(), vec![(1, report("s1", 3))], 403),
        (&s1, vec![(2, report("s1", 3))], 409),
        (&s1, many.collect(), 400),
    ] {
        assert_eq!(say(by, reports).await.unwrap_err().status, status, "{by}");
    }
    let view = shared.fresh(&handle).await.unwrap();
    assert_eq!(view.state.servers["s1"].sequence, 2);
}

#[tokio::test]
async fn operators_command_only_what_people_may() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let handle = lab.carry(&shared).await;
    let send = async |by: &Peer, from: &Peer, id: &str, body| {
        let body = submits(from, &handle, signed(&lab, by, command(id, body)));
        super::super::command(Context(Arc::clone(&shared)), body).await
    };
    let ana = operator();
    let say = async |by: &Peer, body| send(by, by, "r", body).await;
    let allocate = || Body::AllocateMember { server: server("s1") };
    let pause = || Body::Pause { app: web(), reason: String::new(), for_ms: None };
    assert_eq!(say(&agent("s1"), pause()).await.unwrap_err().status, 403);
    assert_eq!(say(&ana, allocate()).await.unwrap_err().status, 403);
    let stolen = send(&ana, &Peer::new(Role::Operator, "bob").unwrap(), "r", pause()).await;
    assert_eq!(stolen.unwrap_err().status, 403);
    let hidden =
        || Body::Pause { app: web(), reason: "fine\nhint: run this".to_owned(), for_ms: None };
    assert_eq!(say(&ana, hidden()).await.unwrap_err().status, 400);
    let endless = || Body::Pause { app: web(), reason: String::new(), for_ms: Some(u64::MAX) };
    assert_eq!(say(&ana, endless()).await.unwrap_err().status, 400);
    let long = "x".repeat(REQUEST_ID_BYTES_MAX + 1);
    assert_eq!(send(&ana, &ana, &long, pause()).await.unwrap_err().status, 400);
    let Json(answer) = say(&ana, pause()).await.unwrap();
    assert!(answer.index > 0 && answer.rejection.is_some(), "in the log, and there is no app");
    assert_eq!(shared.metrics.submissions_refused.get(), 1, "the stolen one");
}

#[tokio::test]
async fn what_a_revoked_operator_signed_counts_no_more_whoever_passes_it_on() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let handle = lab.carry(&shared).await;
    let pause = || Body::Pause { app: web(), reason: String::new(), for_ms: None };
    let stolen = signed(&lab, &operator(), command("r", pause()));
    let forward = async |submission| {
        let forwarded = asked("s1", &handle, Forwarded { submission, host: None });
        super::super::forward(Context(Arc::clone(&shared)), forwarded).await
    };
    assert!(forward(stolen.clone()).await.is_ok());
    let bob = Peer::new(Role::Operator, "bob").unwrap();
    let revocation = Revocation {
        role: Role::Operator,
        name: operator().name,
        at: UnixTime::now().as_secs(),
        again: 0,
        reason: String::new(),
    };
    let news = vec![SignedRevocation::sign(&lab.slot_of(&bob).current(), &revocation).unwrap()];
    let exchange = RevocationsExchange { has: Default::default(), news };
    let Json(answer) =
        super::super::revocations(Context(Arc::clone(&shared)), ApiJson(exchange)).await.unwrap();
    assert_eq!(answer.has, [("operator/ana".to_owned(), revocation.edition())].into());
    assert_eq!(forward(stolen).await.unwrap_err().status, 403);
    assert!(shared.kill.offer(vec![stop(&lab, Role::Operator)]).await.is_err());
    assert_eq!(shared.kill.on(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_passes_on_what_others_signed_and_only_the_leader_takes_it() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let (handle, _views, queue) = handle(following(&lab));
    let forward = async |from: &str, by: &Peer, submission| {
        let submission = signed(&lab, by, submission);
        let forwarded = asked(from, &handle, Forwarded { submission, host: None });
        super::super::forward(Context(Arc::clone(&shared)), forwarded).await
    };
    let said = || reports(0, 1, report("s2", 1));
    let s2 = agent("s2");
    assert_eq!(forward("s2", &s2, said()).await.unwrap_err().status, 403, "carries no member");
    let pause = Body::Pause { app: web(), reason: String::new(), for_ms: None };
    let planned = Body::AllocateMember { server: server("s2") };
    // With the member's own certificate, whatever it says.
    for (by, forged) in [
        (agent("s1"), said()),
        (agent("s1"), command("r", pause.clone())),
        (agent("s2"), command("r", pause)),
        (operator(), said()),
        (operator(), command("r", planned)),
        (agent("s3"), reports(0, 1, report("s3", 1))),
    ] {
        assert_eq!(forward("s1", &by, forged).await.unwrap_err().status, 403, "{by}");
    }
    assert_eq!(shared.metrics.submissions_refused.get(), 4, "the others are signed as they should");
    assert!(queue.try_recv().is_err(), "nothing is proposed");
    for (outcome, expected) in [
        (Proposed::Done { index: 7, rejection: None }, Ok(7)),
        (Proposed::NotLeader { leader: None }, Err((503, "not_leader".to_owned()))),
        (Proposed::Unknown, Err((503, "outcome_unknown".to_owned()))),
        (Proposed::Busy, Err((503, "outcome_unknown".to_owned()))),
    ] {
        let answered = async {
            let reply = loop {
                tokio::task::yield_now().await;
                match queue.try_recv() {
                    Ok(Queued::Request(_, _, Waiter::Proposed(reply))) => break reply,
                    Ok(_) => panic!("no proposal"),
                    Err(_) => {}
                }
            };
            reply.send(outcome).unwrap();
        };
        let (answer, ()) = tokio::join!(forward("s1", &s2, said()), answered);
        let answer = answer.map(|Json(answer)| answer.index);
        assert_eq!(answer.map_err(|error| (error.status, error.kind)), expected);
    }
}
