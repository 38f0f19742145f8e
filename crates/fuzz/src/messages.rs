//! JSON messages between agents, the hub and the command line, and the names in them.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use cohort_artifact::{Mirror, RepositoryFile};
use cohort_base::golden::round_trip;
use cohort_core::ids::{AppId, Channel, Digest, GroupId, MemberId, Platform, ServerId, Version};
use cohort_core::orders::Orders;
use cohort_core::report::Report;
use cohort_identity::{Peer, PeerName, Role};
use cohort_registry::api::{RangeAnswer, TxnAnswer, WatchAnswer, WatchReply};
use cohort_transfer::tracker::TransferAnswer;
use cohort_wire::agent::{
    ClaimMemberAnswer, CommandAnswer, CommandRequest, ContactsAnswer, ContactsRequest, Forwarded,
    GroupStatus, JoinGroupRequest, OrdersAnswer, OrdersRequest, PolicyInForce, SignedSubmission,
    Submission, ToGroup, TransferLeaderAnswer,
};
use cohort_wire::audit::AuditPage;
use cohort_wire::dscp::Dscp;
use cohort_wire::frame::{Hello, Welcome};
use cohort_wire::http::ApiError;
use cohort_wire::hub::{
    AuthorityAnswer, AuthorityRequest, AuthorityStatus, FinishAuthorityRequest, JoinAnswer,
    JoinRequest, PolicyAnswer, PolicyRequest, RecoverAnswer, RecoverRequest, RemoveAppAnswer,
    RemoveAppRequest, RemoveGroupRequest, RenewAnswer, RenewRequest, RevokeTokenRequest,
    TokenAnswer, TokenRequest,
};
use cohort_wire::kill::{KillAnswer, SignedKill};
use cohort_wire::revocation::{RevocationsAnswer, RevocationsExchange};

/// Each message that the bytes are, is the same after another round. Types are many and small, and
/// a wrong one fails at its first key, so all are tried.
pub(crate) fn messages(bytes: &[u8]) {
    macro_rules! each {
        ($($message:ty),* $(,)?) => { $(round_trip::<$message>(bytes);)* };
    }
    each![
        ApiError,
        AuditPage,
        AuthorityAnswer,
        AuthorityRequest,
        AuthorityStatus,
        ClaimMemberAnswer,
        CommandAnswer,
        CommandRequest,
        ContactsAnswer,
        ContactsRequest,
        FinishAuthorityRequest,
        Forwarded,
        GroupStatus,
        Hello,
        JoinAnswer,
        JoinGroupRequest,
        JoinRequest,
        KillAnswer,
        Orders,
        OrdersAnswer,
        PolicyAnswer,
        PolicyInForce,
        PolicyRequest,
        RangeAnswer,
        RecoverAnswer,
        RecoverRequest,
        RemoveAppAnswer,
        RemoveAppRequest,
        RemoveGroupRequest,
        RenewAnswer,
        RenewRequest,
        Report,
        RevocationsAnswer,
        RevocationsExchange,
        RevokeTokenRequest,
        SignedKill,
        Submission,
        ToGroup<ContactsRequest>,
        ToGroup<Forwarded>,
        ToGroup<MemberId>,
        ToGroup<Option<ServerId>>,
        ToGroup<OrdersRequest>,
        ToGroup<Vec<SignedSubmission>>,
        TokenAnswer,
        TokenRequest,
        TransferAnswer,
        TransferLeaderAnswer,
        TxnAnswer,
        WatchAnswer,
        WatchReply,
        Welcome,
    ];
}

/// Names: what is read is written the same, and no path of the repository leads out of it.
pub(crate) fn names(bytes: &[u8]) {
    fn one<T: FromStr + Display>(text: &str) -> Option<T> {
        let name: T = text.parse().ok()?;
        let written = name.to_string();
        let again: Option<T> = written.parse().ok();
        assert_eq!(again.map(|name| name.to_string()).as_ref(), Some(&written));
        Some(name)
    }
    fn exactly<T: FromStr + Display + Debug>(text: &str) {
        if let Some(name) = one::<T>(text) {
            assert_eq!(name.to_string(), text);
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    exactly::<AppId>(text);
    exactly::<Channel>(text);
    exactly::<Digest>(text);
    exactly::<GroupId>(text);
    exactly::<Platform>(text);
    exactly::<ServerId>(text);
    exactly::<Version>(text);
    one::<Dscp>(text);
    one::<Role>(text);
    let _ = PeerName::new(text);
    round_trip::<Peer>(bytes);
    if let Ok(mirror) = text.parse::<Mirror>() {
        let _ = mirror.to_string();
    }
    if let Some(file) = RepositoryFile::of(text) {
        assert!(text.split('/').all(|part| !part.is_empty() && !part.starts_with('.')), "{text}");
        assert!(file.bytes_max() > 0);
    }
}
