//! Replacing the authority on a running fleet: the new one issues at once, certified by the old
//! one; servers renew within the hour; once all have, trust in the old one ends.

use cohort_identity::UnixTime;
use cohort_wire::intent::SignedIntent;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use cohort_base::chain;
use cohort_core::ids::{AppId, ServerId};
use cohort_identity::{Authority, AuthorityError, Identity, LIFETIME, Role};
use cohort_registry::fleet::read_fleet;
use cohort_wire::http::{ApiError, ApiJson, Caller};
use cohort_wire::hub::{
    AuthorityAnswer, AuthorityRequest, AuthorityStatus, FinishAuthorityRequest,
};

use crate::HubError;
use crate::app::{App, blocking, now};
use crate::audit;
use crate::auth::server_of;
use crate::refusal::{Answer, Refusal};

/// Most names in one sentence.
const NAMED_MAX: usize = 5;

/// Tells an agent which authority issues, and notes whether its certificate is of that one.
pub(crate) async fn follow(
    State(app): State<Arc<App>>,
    Caller(by): Caller,
    ApiJson(request): ApiJson<AuthorityRequest>,
) -> Answer<AuthorityAnswer> {
    // Before the authority is read: whoever replaces it then clears this.
    let mut followed = app.followed.lock();
    let authority = app.authority()?;
    let answer = AuthorityAnswer { issuer: authority.fingerprint(), trusts: authority.trusted() };
    if by.role == Role::Agent {
        let server = server_of(&by);
        if request.issuer.as_ref() == Some(&answer.issuer) {
            followed.insert(server);
        } else {
            followed.remove(&server);
        }
    }
    Ok(Json(answer))
}

pub(crate) async fn status(State(app): State<Arc<App>>) -> Answer<AuthorityStatus> {
    let authority = app.authority()?;
    Ok(Json(status_of(&app, &authority).await?))
}

pub(crate) async fn rotate(
    State(app): State<Arc<App>>,
    Caller(by): Caller,
) -> Answer<AuthorityStatus> {
    let _one = app.rotating.lock().await;
    let old = app.authority()?;
    if old.is_rotating() {
        return Err(failed(AuthorityError::Rotating.into()).into());
    }
    audit::record(format!("authority {} gets a successor", old.fingerprint())).await?;
    let hub = Arc::clone(&app);
    let replaced = replace(&app, move || {
        // First the authority: nobody could verify a certificate of one that is lost.
        let next = old.rotate(&hub.config.authority_dir(), now())?;
        let identity = own_identity(&hub, &next)?;
        Ok((next, identity))
    });
    let next = replaced.await?;
    app.followed.lock().clear();
    tracing::warn!(%by, authority = next.fingerprint(), "a new authority issues; both are trusted");
    Ok(Json(status_of(&app, &next).await?))
}

pub(crate) async fn finish(
    State(app): State<Arc<App>>,
    Caller(by): Caller,
    ApiJson(request): ApiJson<FinishAuthorityRequest>,
) -> Answer<AuthorityStatus> {
    let _one = app.rotating.lock().await;
    let authority = app.authority()?;
    if !authority.is_rotating() {
        return Err(failed(AuthorityError::NotRotating.into()).into());
    }
    let status = status_of(&app, &authority).await?;
    let behind = if request.leave_behind { &[][..] } else { &status.behind };
    may_finish(behind, &status, app.kill.on_count())?;
    audit::record(format!("authority {} alone is trusted", authority.fingerprint())).await?;
    // Those that are not used yet name the old authority.
    let tokens = Arc::clone(&app.tokens);
    let revoked = blocking(move || tokens.revoke_unused()).await??;
    tracing::warn!(revoked, "unused join tokens revoked");
    let hub = Arc::clone(&app);
    let replaced = replace(&app, move || {
        let next = authority.alone()?;
        // First the hub's identity: until the authority is saved, this can be done again.
        let identity = own_identity(&hub, &next)?;
        next.save_alone(&hub.config.authority_dir())?;
        Ok((next, identity))
    });
    let next = replaced.await?;
    tracing::warn!(%by, authority = next.fingerprint(), "the old authority ended");
    Ok(Json(status_of(&app, &next).await?))
}

/// What keeps the old authority: names at most a few.
fn may_finish(
    behind: &[ServerId],
    status: &AuthorityStatus,
    kill_on: usize,
) -> Result<(), ApiError> {
    let refused = |error: String| Err(ApiError::conflict(error));
    if let [first, ..] = behind {
        let names: Vec<&str> = behind.iter().take(NAMED_MAX).map(ServerId::as_str).collect();
        let more = if behind.len() > names.len() { ", …" } else { "" };
        let names = names.join(", ");
        return refused(format!(
            "servers have no certificate of the new authority yet, as far as this hub has heard \
             since its start: {names}{more}"
        ))
        .map_err(|error| {
            error
                .hint("servers look once an hour: wait, or restart the agent of one that is late")
                .hint(format!("a server that is gone: cohort group remove-server GROUP {first}"))
                .hint(
                    "to end the old authority all the same: cohort authority finish --leave-behind",
                )
        });
    }
    let AuthorityStatus { apps, revocations, .. } = status;
    if let [first, ..] = &apps[..] {
        let names: Vec<&str> = apps.iter().take(NAMED_MAX).map(AppId::as_str).collect();
        return refused(format!(
            "only the old authority proves who wrote the policies of: {}",
            names.join(", ")
        ))
        .map_err(|error| {
            error
                .hint("renew your certificate: cohort context renew")
                .hint(format!("then apply each again: cohort app apply -f {first}.toml"))
        });
    }
    if !revocations.is_empty() {
        let count = revocations.len();
        return refused(format!("only the old authority proves who signed {count} revocations"))
            .map_err(|error| {
                error
                    .hint("renew your certificate: cohort context renew")
                    .hint("then finish again, which signs them again: cohort authority finish")
            });
    }
    if kill_on > 0 {
        return refused("a kill switch is on, and its author's certificate may be old".to_owned())
            .map_err(|error| error.hint("cohort kill off"));
    }
    Ok(())
}

/// Makes and saves the next authority and the hub's identity by it, and puts them in use.
async fn replace(
    app: &App,
    make: impl FnOnce() -> Result<(Authority, Identity), HubError> + Send + 'static,
) -> Result<Arc<Authority>, ApiError> {
    let made = blocking(make).await.map_err(HubError::Part).flatten();
    let (next, identity) = made.map_err(failed)?;
    let next = Arc::new(next);
    *app.authority.write() = Some(Arc::clone(&next));
    app.identity.replace(identity);
    Ok(next)
}

/// Makes and saves a certificate of the hub's own.
fn own_identity(app: &App, authority: &Authority) -> Result<Identity, HubError> {
    let identity = authority.make_identity(app.identity.current().peer(), LIFETIME, now())?;
    identity.save(&app.config.identity_dir())?;
    Ok(identity)
}

fn failed(error: HubError) -> ApiError {
    match error {
        HubError::Authority(error @ (AuthorityError::Rotating | AuthorityError::NotRotating)) => {
            ApiError::conflict(chain(&error)).hint("see it: cohort authority show")
        }
        error => ApiError::internal(chain(&error)),
    }
}

async fn status_of(app: &App, authority: &Authority) -> Result<AuthorityStatus, Refusal> {
    let fleet = read_fleet(&app.registry).await?;
    let followed: BTreeSet<ServerId> = app.followed.lock().clone();
    let is_behind = |server: &ServerId| authority.is_rotating() && !followed.contains(server);
    let behind: Vec<ServerId> =
        fleet.servers.iter().map(|it| it.server.clone()).filter(is_behind).collect();
    let own = [authority.certificate().clone()];
    let intents = fleet.policies.iter().chain(&fleet.removed);
    // As of its date: a certificate that has expired since was issued by this authority, too.
    let proves = |signed: &SignedIntent| {
        let at = signed.unverified().map_or(0, |intent| intent.at);
        let then = UnixTime::since_unix_epoch(Duration::from_secs(at));
        signed.verify(&own, now()).or_else(|_| signed.verify(&own, then)).is_ok()
    };
    let apps = intents.filter(|(_, signed)| !proves(signed));
    let apps = apps.map(|(app, _)| app.clone()).collect();
    let revocations = app.identity.revocations().unproven(&own, now());
    let (issuer, trusts) = (authority.fingerprint(), authority.trusted());
    let servers = fleet.servers.len();
    Ok(AuthorityStatus { issuer, trusts, servers, behind, apps, revocations })
}
