//! How servers get artifacts from each other, and messages of the group's members.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use cohort_artifact::UnitHashes;
use cohort_base::golden::round_trip;
use cohort_core::ids::{GroupId, Incarnation, ServerId};
use cohort_distribute::fuzzing::receive;
use cohort_distribute::{SubscribeRequest, UnitRun};
use cohort_identity::{Peer, Role};
use cohort_transfer::Tracker;
use cohort_transfer::tracker::{Participant, TransferRequest};
use cohort_wire::frame::{Connections, FrameReceiver, FrameSender, Hello};
use cohort_wire::limits::FRAME_BYTES_MAX;
use tokio::io::{AsyncWriteExt as _, duplex};

use crate::artifact::hashed;
use crate::script::{Script, block_on, lines, scratch};

const UNIT: usize = 64 << 10;
const UNITS: u32 = 3;

/// Three units: two whole ones, and one of a few bytes.
fn sample() -> &'static (Vec<u8>, Arc<UnitHashes>) {
    static SAMPLE: OnceLock<(Vec<u8>, Arc<UnitHashes>)> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let bytes: Vec<u8> = (0..2 * UNIT + 5).map(|at| (at / 251 % 256) as u8).collect();
        let hashes = Arc::new(hashed(&bytes));
        (bytes, hashes)
    })
}

fn unit(index: u32) -> &'static [u8] {
    let start = index as usize * UNIT;
    let bytes = &sample().0;
    &bytes[start..(start + UNIT).min(bytes.len())]
}

/// The units that a parent or a mirror sends, in pieces: only those that are right are kept.
pub(crate) fn subscription(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let mut request = None;
    if script.is_set() {
        let length = usize::from(script.byte());
        request = round_trip::<SubscribeRequest>(script.take(length));
    }
    let all = vec![UnitRun { first: 0, count: UNITS }];
    let lacks = request.map_or(all, |request| request.lacks);
    let is_parent = script.is_set();
    let parent = is_parent.then(|| ServerId::new("s1").expect("a name"));
    let mut pieces = Vec::new();
    while !script.is_over() {
        let index = u32::from(script.below(4));
        let mut piece = Vec::new();
        match script.below(8) {
            0 => piece.extend(u32::MAX.to_be_bytes()),
            1 => {
                let length = usize::from(script.byte());
                piece.extend(script.take(length));
            }
            2 => piece.extend(index.to_be_bytes()),
            how if index < UNITS => {
                if is_parent {
                    piece.extend(index.to_be_bytes());
                }
                piece.extend(unit(index));
                if how == 3 {
                    piece.pop();
                }
            }
            _ => {}
        }
        pieces.push(Bytes::from(piece));
    }
    let folder = scratch();
    let here = block_on(receive(folder.path(), Arc::clone(&sample().1), &lacks, parent, pieces));
    let file = std::fs::read(folder.path().join("fuzzed.part")).expect("the part");
    assert_eq!(file.len(), sample().0.len());
    for index in (0..UNITS).filter(|index| here.contains(*index)) {
        let start = index as usize * UNIT;
        assert_eq!(&file[start..start + unit(index).len()], unit(index), "unit {index}");
    }
}

/// Reports of servers to the leader's tracker, one per line: it answers within its limits.
pub(crate) fn tracker(bytes: &[u8]) {
    let mut tracker = Tracker::default();
    let mut now = Duration::from_secs(1);
    for (nth, line) in lines(bytes).enumerate() {
        let Some(request) = round_trip::<TransferRequest>(line) else { continue };
        now += Duration::from_millis(100 * (line.len() as u64 % 50));
        let server = ServerId::new(format!("s{}", nth % 7)).expect("a name");
        let address = format!("{server}:1");
        let from = Participant { server, address, rack: None, leads: nth % 7 == 0 };
        if let Ok(answer) = tracker.report(&from, &request, now) {
            assert!(answer.guidance.len() <= request.transfers.len());
            let text = serde_json::to_vec(&answer).expect("an answer is JSON");
            round_trip::<cohort_transfer::tracker::TransferAnswer>(&text).expect("it is read");
        }
        let _ = tracker.take_events();
        let _ = tracker.view(now);
    }
}

/// What another member's connection sends, from its greeting on: messages within their limit, in
/// order, or the end.
pub(crate) fn frames(bytes: &[u8]) {
    block_on(async {
        let mut script = Script::new(bytes);
        let connections = Connections::default();
        let me = ServerId::new("two").expect("a name");
        let group = GroupId::new("web.zone-a").expect("a name");
        let peer = Peer::new(Role::Agent, "one").expect("a name");
        let (mut near, far) = duplex(bytes.len() + 4096);
        let accept = FrameReceiver::accept(far, &peer, &me, &group, Incarnation(3), &connections);
        if script.is_set() {
            near.write_all(script.rest()).await.expect("room");
            drop(near);
            drain(accept.await.ok()).await;
            return;
        }
        // After a greeting that is right.
        let hello = Hello {
            group: group.clone(),
            incarnation: Incarnation(3),
            from: ServerId::new("one").expect("a name"),
            to: me.clone(),
            life: 1,
            connection: script.near(1),
        };
        let (raw, relayed) = (script.rest().to_vec(), duplex(4096));
        let (ours, theirs) = relayed;
        let relay = async {
            let (mut read, mut write) = tokio::io::split(near);
            let (mut from, mut to) = tokio::io::split(theirs);
            let mut greeting = vec![0; 4096];
            let count = tokio::io::AsyncReadExt::read(&mut from, &mut greeting).await.unwrap_or(0);
            let _ = write.write_all(&greeting[..count]).await;
            let count = tokio::io::AsyncReadExt::read(&mut read, &mut greeting).await.unwrap_or(0);
            let _ = to.write_all(&greeting[..count]).await;
            let _ = write.write_all(&raw).await;
            let _ = write.shutdown().await;
        };
        let (_dialled, accepted, ()) =
            tokio::join!(FrameSender::dial_over(ours, &hello), accept, relay);
        drain(Some(accepted.expect("the greeting is right"))).await;
    });
}

async fn drain<S: tokio::io::AsyncRead + tokio::io::AsyncWrite>(
    receiver: Option<FrameReceiver<S>>,
) {
    let Some(mut receiver) = receiver else { return };
    while let Ok(Some(message)) = receiver.recv().await {
        assert!(message.len() < FRAME_BYTES_MAX);
    }
}
