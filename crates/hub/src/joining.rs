//! Joining: tokens and certificates.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use cohort_base::{Cause, chain};
use cohort_core::ids::ServerId;
use cohort_identity::{
    Anchors, IdentityRequest, JoinGrant, KnownName, Role, TokenRecord, TokenState,
};
use cohort_registry::keys;
use cohort_wire::entry;
use cohort_wire::http::{ApiError, ApiJson, Caller, Certificate};
use cohort_wire::hub::{
    JoinAnswer, JoinRequest, RenewAnswer, RenewRequest, RevokeTokenRequest, TokenAnswer,
    TokenListed, TokenRequest,
};

use crate::app::{App, blocking, now};
use crate::audit;
use crate::auth::{group_of, server_of};
use crate::config::RepositoryAccess;
use crate::placing::place;
use crate::refusal::{Answer, Refusal};

/// Longest validity of a join token, in seconds: thirty days. After that, a new token is better.
const TOKEN_VALID_S_MAX: u64 = 30 * 24 * 3600;

pub(crate) async fn token(
    State(app): State<Arc<App>>,
    Caller(by): Caller,
    headers: HeaderMap,
    ApiJson(request): ApiJson<TokenRequest>,
) -> Answer<TokenAnswer> {
    let authority = app.authority()?;
    if request.role == Role::Hub {
        let refusal = ApiError::bad_request("a hub does not join: it has the authority");
        return Err(refusal.hint("on the hub's machine: cohort init --dir DIR").into());
    }
    if request.role != Role::Agent && request.name.is_none() {
        let refusal = ApiError::bad_request("a person's token names the person");
        let role = request.role;
        let hint = format!("cohort token create --role {role} --name NAME");
        return Err(refusal.hint(hint).into());
    }
    let valid_s = request.valid_s.unwrap_or(app.config.token_valid_s);
    if valid_s == 0 || valid_s > TOKEN_VALID_S_MAX {
        let days = TOKEN_VALID_S_MAX / 86_400;
        return Err(
            ApiError::bad_request(format!("a token is valid for 1 s to {days} days")).into()
        );
    }
    let addresses = token_addresses(&app, request.addresses, &headers)?;
    let anchors = Anchors::of(&authority.anchor(), trusted_root(&app, None).await?.as_deref());
    let tokens = Arc::clone(&app.tokens);
    let grant = JoinGrant { role: request.role, name: request.name };
    let (role, now) = (request.role, now());
    let token = blocking(move || {
        // Tokens that expired long ago no longer need a file.
        let _ = tokens.prune(TOKEN_VALID_S_MAX, now);
        let expires_at = Some(now.as_secs() + valid_s);
        tokens.create(grant, &anchors, &addresses, expires_at, now)
    })
    .await??;
    // Before anybody knows its secret.
    let what = format!("join token {} created for role {role}, valid for {valid_s} s", token.id);
    audit::record(what).await?;
    tracing::info!(%by, token = token.id, %role, valid_s, "join token created");
    let text = token.to_text();
    Ok(Json(TokenAnswer { id: token.id, token: text, expires_at: token.expires_at }))
}

/// The hub's addresses for joining servers: as requested, else from the configuration, else the
/// address that the caller used.
fn token_addresses(
    app: &App,
    asked: Vec<String>,
    headers: &HeaderMap,
) -> Result<Vec<String>, ApiError> {
    if !asked.is_empty() {
        asked.iter().try_for_each(|address| entry::address(address))?;
        return Ok(asked);
    }
    if !app.config.addresses.is_empty() {
        return Ok(app.config.addresses.clone());
    }
    if !app.config.listen.ip().is_unspecified() {
        return Ok(vec![format!("{}:{}", app.config.listen.ip(), app.api_port)]);
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    match host {
        Some(host) if host.contains(':') => Ok(vec![host.to_owned()]),
        Some(_) | None => {
            Err(ApiError::bad_request("this hub does not know where agents reach it")
                .hint("set `addresses` in hub.toml, or name them when creating the token"))
        }
    }
}

pub(crate) async fn tokens(State(app): State<Arc<App>>) -> Answer<Vec<TokenListed>> {
    let joined = |record: &TokenRecord| match &record.state {
        TokenState::Used { peer, .. } => peer.role == Role::Agent,
        TokenState::Unused | TokenState::Revoked => false,
    };
    let records = app.tokens.list().into_iter().filter(|record| !joined(record));
    let listed = records.map(|record| {
        let TokenRecord { id, grant, created_at, expires_at, state, .. } = record;
        let JoinGrant { role, name } = grant;
        TokenListed { id, role, name, created_at, expires_at, state }
    });
    Ok(Json(listed.collect()))
}

pub(crate) async fn revoke_token(
    State(app): State<Arc<App>>,
    Caller(by): Caller,
    ApiJson(request): ApiJson<RevokeTokenRequest>,
) -> Answer<()> {
    let tokens = Arc::clone(&app.tokens);
    let id = request.id.clone();
    entry::sentence("the token", &id)?;
    audit::record(format!("join token {id} revoked")).await?;
    blocking(move || tokens.revoke(&id)).await??;
    tracing::info!(%by, token = request.id, "join token revoked");
    Ok(Json(()))
}

pub(crate) async fn join(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<JoinRequest>,
) -> Answer<JoinAnswer> {
    let authority = app.authority()?;
    let JoinRequest { token_id, token_secret, request: identity, server } = request;
    // First: whoever has no token learns nothing of the fleet.
    let root = app.tokens.check_secret(&token_id, &token_secret)?;
    let identity = IdentityRequest::from_text(&identity)?;
    let peer = identity.peer().clone();
    // Everything that can be wrong with the server is checked before the token is used up.
    let placed = match (peer.role, server) {
        (Role::Agent, Some(server)) => {
            let placed = place(&app.config.grouping, &ServerId::new(peer.name.as_str())?, server)?;
            placed.check(&app.registry).await?;
            Some(placed)
        }
        (Role::Agent, None) => {
            let wrong = "a joining server must give its address and platform";
            return Err(ApiError::bad_request(wrong).into());
        }
        (Role::Viewer | Role::Operator | Role::Publisher | Role::Hub, Some(_)) => {
            return Err(ApiError::bad_request(format!("{peer} is not a server")).into());
        }
        (Role::Viewer | Role::Operator | Role::Publisher | Role::Hub, None) => None,
    };
    let tokens = Arc::clone(&app.tokens);
    let issuer = Arc::clone(&authority);
    let group = placed.as_ref().map(|placed| placed.group().to_string());
    // Tokens from a backup do not say who has joined since.
    let known = placed.as_ref().map(|_| {
        let server = server_of(&peer);
        let is_taken = app.registry.get(&keys::server(&server)).is_some();
        let revoked_at = app.identity.revocations().revoked_at(&peer);
        KnownName { is_taken, removed_at: app.removed.removed_at(&server).max(revoked_at) }
    });
    let revoked_at = app.identity.revocations().revoked_at(&peer);
    let known = known.unwrap_or(KnownName { is_taken: false, removed_at: revoked_at });
    let issued_at = app.issue_time(&peer);
    let recorder = audit::recorder();
    let certificate = blocking(move || {
        let now = now();
        tokens.redeem(&token_id, &token_secret, &identity, known, now, |peer| {
            recorder.record(format!("{peer} joined with join token {token_id}"))?;
            Ok::<_, Cause>(issuer.issue(&identity, peer, group.as_deref(), issued_at)?)
        })
    })
    .await??;
    let group = match placed {
        Some(placed) => Some(placed.enrol(&app.registry).await?),
        None => None,
    };
    app.metrics.joined.inc();
    tracing::info!(%peer, group = ?group.as_ref().map(|group| &group.group), "joined");
    Ok(Json(JoinAnswer {
        certificate,
        authority: authority.anchor_pem().to_owned(),
        hub: app.identity.current().peer().name.clone(),
        trusted_root: trusted_root(&app, root).await?,
        mirrors: app.config.mirrors.clone(),
        repository_port: match app.config.repository_access {
            RepositoryAccess::Anyone => Some(app.repository_port),
            RepositoryAccess::Fleet => None,
        },
        group,
    }))
}

pub(crate) async fn renew(
    State(app): State<Arc<App>>,
    caller: Caller,
    certificate: Certificate,
    ApiJson(request): ApiJson<RenewRequest>,
) -> Answer<RenewAnswer> {
    let authority = app.authority()?;
    let author = app.author(caller, certificate);
    let group = match author.peer.role {
        Role::Agent => Some(app.registry.read(|state| group_of(&author, state))?.to_string()),
        Role::Viewer | Role::Operator | Role::Publisher | Role::Hub => None,
    };
    let peer = author.peer;
    let identity = IdentityRequest::from_text(&request.request)?;
    let allowed = peer.clone();
    let issued_at = app.issue_time(&peer);
    let authorities = authority.trusted_pem();
    let issue = move || authority.issue(&identity, &allowed, group.as_deref(), issued_at);
    let certificate = blocking(issue).await?.map_err(|error| ApiError::forbidden(chain(&error)))?;
    tracing::info!(%peer, "certificate renewed");
    Ok(Json(RenewAnswer { certificate, authorities }))
}

/// The repository's root that joining servers trust first, if there is one with this SHA-256, else
/// the newest; `None` without a repository.
async fn trusted_root(app: &App, sha256: Option<String>) -> Result<Option<String>, Refusal> {
    let config = app.config.clone();
    let read = blocking(move || config.read_trusted_root(sha256.as_deref())).await?;
    Ok(read.map_err(|error| {
        tracing::error!(reason = chain(&error), "cannot read the trusted root");
        ApiError::internal("cannot read the repository's root")
    })?)
}
