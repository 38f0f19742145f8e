//! Who comes in: join tokens, certificates, and which group a server belongs to.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use cohort_core::ids::{GroupId, Platform, ServerId};
use cohort_core::orders::MemberAddress;
use cohort_identity::{IdentityRequest, JoinGrant, RedeemError, Role, lifetime_of};
use cohort_registry::records::{GroupInfo, SCHEMA, ServerRecord, decode, encode};
use cohort_registry::typed::{get, read_members};
use cohort_registry::{Compare, Op, Registry, Txn, keys};
use cohort_wire::http::{ApiError, ApiJson, Caller};
use cohort_wire::hub::{
    ADDRESS_BYTES_MAX, JoinAnswer, JoinRequest, JoinedGroup, JoiningServer, LABEL_BYTES_MAX,
    LABELS_MAX, RenewAnswer, RenewRequest, RevokeTokenRequest, TokenAnswer, TokenRequest,
};

use crate::app::{App, blocking, now};
use crate::auth::{Need, require};
use crate::metrics::Metrics;
use crate::registry_api::explain;

/// The longest that a join token may be good, in seconds: thirty days. A right to come in that is
/// older than that is better given anew.
const TOKEN_VALID_S_MAX: u64 = 30 * 24 * 3600;
/// A root is a few kilobytes.
const ROOT_BYTES_MAX: u64 = 1024 * 1024;
/// How often the join is written when others change the same group: twenty servers join at once.
const ATTEMPTS_MAX: u32 = 64;

pub(crate) async fn token(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    ApiJson(request): ApiJson<TokenRequest>,
) -> Result<ApiJson<TokenAnswer>, ApiError> {
    let by = require(Some(&caller.0), Need::Operate)?.clone();
    let authority = app.authority()?;
    if request.role == Role::Hub {
        let refusal = ApiError::bad_request("a hub does not join: it has the authority");
        return Err(refusal.hint("use `cohort init` on the hub's machine"));
    }
    let valid_s = request.valid_s.unwrap_or(app.config.token_valid_s);
    if valid_s == 0 || valid_s > TOKEN_VALID_S_MAX {
        let days = TOKEN_VALID_S_MAX / 86_400;
        return Err(ApiError::bad_request(format!("a token is good for 1 s to {days} days")));
    }
    let addresses = token_addresses(&app, request.addresses, &headers)?;
    let tokens = Arc::clone(&app.tokens);
    let grant = JoinGrant { role: request.role, name: request.name };
    let (role, now) = (request.role, now());
    let token = blocking(move || {
        // What expired long ago needs no file any more.
        let _ = tokens.prune(TOKEN_VALID_S_MAX, now);
        let expires_at = Some(now.as_secs() + valid_s);
        tokens.create(grant, &authority.fingerprint(), &addresses, expires_at, now)
    })
    .await?
    .map_err(|error| explain_redeem(&error))?;
    tracing::info!(%by, token = token.id, %role, valid_s, "join token made");
    let text = token.to_text();
    Ok(ApiJson(TokenAnswer { id: token.id, token: text, expires_at: token.expires_at }))
}

/// Where those who join find this hub: what the asker says, else the configuration, else how the
/// asker itself has come here.
fn token_addresses(
    app: &App,
    asked: Vec<String>,
    headers: &HeaderMap,
) -> Result<Vec<String>, ApiError> {
    if !asked.is_empty() {
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
        Some(_) | None => Err(ApiError::bad_request("it is not known where agents reach this hub")
            .hint("set `addresses` in hub.toml, or name them when making the token")),
    }
}

pub(crate) async fn revoke_token(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiJson(request): ApiJson<RevokeTokenRequest>,
) -> Result<ApiJson<()>, ApiError> {
    let by = require(Some(&caller.0), Need::Operate)?.clone();
    let tokens = Arc::clone(&app.tokens);
    let id = request.id.clone();
    blocking(move || tokens.revoke(&id)).await?.map_err(|error| explain_redeem(&error))?;
    tracing::info!(%by, token = request.id, "join token revoked");
    Ok(ApiJson(()))
}

pub(crate) async fn join(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<JoinRequest>,
) -> Result<ApiJson<JoinAnswer>, ApiError> {
    let authority = app.authority()?;
    let JoinRequest { token_id, token_secret, request: identity, server } = request;
    let identity = IdentityRequest::from_text(&identity)
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let peer = identity.peer().clone();
    // All that can be wrong with the server is looked at before the token is used up.
    let placed = match (peer.role, server) {
        (Role::Agent, Some(server)) => {
            let name = ServerId::new(peer.name.as_str())
                .map_err(|error| ApiError::bad_request(error.to_string()))?;
            Some(place(&app, &name, server)?)
        }
        (Role::Agent, None) => {
            return Err(ApiError::bad_request("a server that joins says its address and platform"));
        }
        (Role::Viewer | Role::Operator | Role::Publisher | Role::Hub, Some(_)) => {
            return Err(ApiError::bad_request(format!("{peer} is no server")));
        }
        (Role::Viewer | Role::Operator | Role::Publisher | Role::Hub, None) => None,
    };
    if let Some(placed) = &placed {
        check_platform(&app, placed)?;
    }
    let tokens = Arc::clone(&app.tokens);
    let issuer = Arc::clone(&authority);
    let certificate = blocking(move || {
        let now = now();
        tokens.redeem(&token_id, &token_secret, &identity, now, |peer| {
            issuer.issue(&identity, peer, lifetime_of(peer.role), now)
        })
    })
    .await?
    .map_err(|error| explain_redeem(&error))?;
    let group = match placed {
        Some(placed) => Some(enrol(&app, placed).await?),
        None => None,
    };
    Metrics::add(&app.metrics.joined);
    tracing::info!(%peer, group = ?group.as_ref().map(|group| &group.group), "joined");
    Ok(ApiJson(JoinAnswer {
        certificate,
        authority: authority.certificate_pem().to_owned(),
        hub: app.identity.current().peer().name.clone(),
        trusted_root: trusted_root(&app).await?,
        mirrors: app.config.mirrors.clone(),
        repository_port: app.repository_port,
        group,
    }))
}

pub(crate) async fn renew(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiJson(request): ApiJson<RenewRequest>,
) -> Result<ApiJson<RenewAnswer>, ApiError> {
    let authority = app.authority()?;
    let peer = require(Some(&caller.0), Need::Certificate)?.clone();
    if peer.role == Role::Agent && app.registry.get(&keys::server(&server_id(&peer)?)).is_none() {
        return Err(ApiError::forbidden(format!("{peer} is not known to this hub any more"))
            .hint("it was removed: join again with a new token"));
    }
    let identity = IdentityRequest::from_text(&request.request)
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let issuer = Arc::clone(&authority);
    let allowed = peer.clone();
    let certificate = blocking(move || issuer.renew(&identity, &allowed, now()))
        .await?
        .map_err(|error| ApiError::forbidden(error.to_string()))?;
    tracing::info!(%peer, "certificate renewed");
    let authority = authority.certificate_pem().to_owned();
    Ok(ApiJson(RenewAnswer { certificate, authority }))
}

fn server_id(peer: &cohort_identity::Peer) -> Result<ServerId, ApiError> {
    ServerId::new(peer.name.as_str()).map_err(|error| ApiError::bad_request(error.to_string()))
}

/// A server and the group that it belongs to.
struct Placed {
    record: ServerRecord,
    platform: Platform,
    group_labels: BTreeMap<String, String>,
}

/// Checks what a server says of itself, and finds its group.
fn place(app: &App, server: &ServerId, joining: JoiningServer) -> Result<Placed, ApiError> {
    let JoiningServer { address, platform, mut labels, rack } = joining;
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if address.len() > ADDRESS_BYTES_MAX
        || port.is_none_or(|(_, port)| port.parse::<u16>().is_err())
    {
        return Err(ApiError::bad_request("the server's address is not of the form host:port"));
    }
    if labels.len() > LABELS_MAX {
        let many = labels.len();
        return Err(ApiError::bad_request(format!("{many} labels; {LABELS_MAX} at the most")));
    }
    let plain = |text: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        (1..=LABEL_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed)
    };
    for (key, value) in labels.iter().chain(rack.iter().map(|rack| (rack, rack))) {
        if !plain(key) || !plain(value) {
            return Err(ApiError::bad_request(format!(
                "label `{}` is refused: keys and values are 1 to {LABEL_BYTES_MAX} of letters, \
                 digits and `._-/`",
                key.chars().take(80).collect::<String>()
            )));
        }
    }
    labels.entry("platform".to_owned()).or_insert_with(|| platform.as_str().replace('/', "-"));
    let group_labels: BTreeMap<String, String> = app
        .config
        .grouping
        .iter()
        .filter_map(|key| labels.get(key).map(|value| (key.clone(), value.clone())))
        .collect();
    let parts: Vec<&str> =
        app.config.grouping.iter().filter_map(|key| labels.get(key)).map(String::as_str).collect();
    let name = if parts.is_empty() { "default".to_owned() } else { parts.join(".") };
    let group = GroupId::new(name).map_err(|error| {
        ApiError::bad_request(error.to_string()).hint(format!(
            "the labels {} make the name of the group",
            app.config.grouping.join(", ")
        ))
    })?;
    let record =
        ServerRecord { schema: SCHEMA, server: server.clone(), address, labels, rack, group };
    Ok(Placed { record, platform, group_labels })
}

/// All servers of a group run the same artifacts.
fn check_platform(app: &App, placed: &Placed) -> Result<(), ApiError> {
    let Some(pair) = app.registry.get(&keys::group_info(&placed.record.group)) else {
        return Ok(());
    };
    let info: GroupInfo = decode(&pair).map_err(|error| explain(&error))?;
    if info.platform == placed.platform {
        return Ok(());
    }
    Err(ApiError::conflict(format!(
        "group {} runs {}, and this server is {}",
        info.group, info.platform, placed.platform
    ))
    .hint("give the server another label, so that it belongs to another group"))
}

/// Writes the server's record, and its group's if it is the first, in one transaction.
async fn enrol(app: &App, placed: Placed) -> Result<JoinedGroup, ApiError> {
    let Placed { record, platform, group_labels } = placed;
    let info_key = keys::group_info(&record.group);
    let info = GroupInfo {
        schema: SCHEMA,
        group: record.group.clone(),
        labels: group_labels.clone(),
        platform,
    };
    let registry: &dyn Registry = &app.registry;
    for _ in 0..ATTEMPTS_MAX {
        let there = get(registry, &info_key).await.map_err(|error| explain(&error))?;
        let mut then = vec![Op::put(keys::server(&record.server), encode(&record))];
        let revision = match &there {
            Some(pair) => pair.mod_revision,
            None => {
                then.push(Op::put(&info_key, encode(&info)));
                0
            }
        };
        if let Some(pair) = &there {
            let known: GroupInfo = decode(pair).map_err(|error| explain(&error))?;
            if known.platform != info.platform {
                return Err(ApiError::conflict(format!(
                    "group {} runs {} by now",
                    known.group, known.platform
                )));
            }
        }
        let compare = vec![Compare::unchanged_since(&info_key, revision)];
        let txn = Txn { compare, then, otherwise: vec![] };
        let answer = registry.txn(txn).await.map_err(|error| explain(&error))?;
        if !answer.succeeded {
            continue;
        }
        let members =
            read_members(registry, &record.group).await.map_err(|error| explain(&error))?;
        let members = members.map_or_else(Vec::new, |members| members.members);
        let address = |member: cohort_registry::records::MemberRecord| MemberAddress {
            server: member.server,
            address: member.address,
            member: member.member,
        };
        return Ok(JoinedGroup {
            group: record.group,
            labels: group_labels,
            members: members.into_iter().map(address).collect(),
        });
    }
    Err(ApiError::overloaded(format!("group {} is changed by too many at once", record.group)))
}

async fn trusted_root(app: &App) -> Result<Option<String>, ApiError> {
    let path = app.config.trusted_root();
    let read = async {
        let length = tokio::fs::metadata(&path).await?.len();
        if length > ROOT_BYTES_MAX {
            let reason = format!("{length} bytes; {ROOT_BYTES_MAX} at the most");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, reason));
        }
        tokio::fs::read_to_string(&path).await
    };
    match read.await {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            tracing::error!(file = %path.display(), %error, "trusted root cannot be read");
            Err(ApiError::internal("the repository's root cannot be read"))
        }
    }
}

fn explain_redeem(error: &RedeemError) -> ApiError {
    let again = "ask an operator for a new one: cohort token create";
    match error {
        RedeemError::Unknown
        | RedeemError::Used
        | RedeemError::Expired
        | RedeemError::Revoked
        | RedeemError::Grant { .. } => ApiError::forbidden(error.to_string()).hint(again),
        RedeemError::NameTaken { .. } => ApiError::conflict(error.to_string())
            .hint("cohort token create --name NAME makes a token that replaces its holder"),
        RedeemError::Token(_) => ApiError::bad_request(error.to_string()),
        RedeemError::TooMany => ApiError::unavailable("full", error.to_string()),
        _ => {
            tracing::error!(%error, "join token cannot be handled");
            ApiError::internal(error.to_string())
        }
    }
}
