//! The first start: a join token becomes a certificate, and this server a part of the fleet.

use std::path::Path;
use std::time::Duration;

use cohort_core::ids::GroupId;
use cohort_identity::{Alpn, Identity, JoinToken, Peer, PeerName, Role};
use cohort_store::DurableFile;
use cohort_wire::http::{Call, Client, Target};
use cohort_wire::hub::{JOIN, JoinAnswer, JoinRequest, JoinedGroup, JoiningServer};
use serde::{Deserialize, Serialize};

use crate::config::AgentConfig;
use crate::error::AgentError;

/// The name under which every hub is known, until joining says another.
const HUB_NAME: &str = "hub";
/// A join token's file is a line of text.
const TOKEN_FILE_BYTES_MAX: u64 = 8 * 1024;

/// What joining told, kept for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    /// The schema of this very structure.
    pub schema: u32,
    /// The hub's own name.
    pub hub: PeerName,
    /// Where it was reached.
    pub hub_addresses: Vec<String>,
    /// The first trusted root of the repository.
    pub trusted_root: Option<String>,
    /// Mirrors.
    pub mirrors: Vec<String>,
    /// The group.
    pub group: GroupId,
    /// The labels that made it this group.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Its members, as known then.
    pub members: Vec<cohort_core::orders::MemberAddress>,
}

/// Makes the identity, or loads it.
pub(crate) async fn join(config: &AgentConfig) -> Result<(Identity, Joined), AgentError> {
    let dir = config.data_dir.join("identity");
    let (mut file, joined) = DurableFile::<Joined>::open(config.data_dir.join("joined.json"))
        .map_err(|error| AgentError::Kept(error.to_string()))?;
    if let Some(joined) = joined
        && Identity::exists(&dir)
    {
        let identity = Identity::load(&dir).map_err(|error| AgentError::Kept(error.to_string()))?;
        return Ok((identity, joined));
    }
    let token = read_token(config)?;
    let peer = Peer::new(Role::Agent, config.server.as_str())
        .map_err(|error| AgentError::Config(error.to_string()))?;
    let request = Identity::prepare_request(&dir, peer)
        .map_err(|error| AgentError::Kept(error.to_string()))?;
    let body = JoinRequest {
        token_id: token.id.clone(),
        token_secret: token.secret().to_owned(),
        request: request.to_text(),
        server: Some(JoiningServer {
            address: advertised(config),
            platform: config.platform.clone(),
            labels: config.labels.clone(),
            rack: config.rack.clone(),
        }),
    };
    let (answer, address) = ask(config, &token, &body).await?;
    let Some(JoinedGroup { group, labels, members }) = answer.group else {
        return Err(AgentError::NotJoined("the hub named no group for this server".into()));
    };
    let identity = Identity::accept(&dir, &answer.certificate, &answer.authority)
        .map_err(|error| AgentError::NotJoined(error.to_string()))?;
    let mut mirrors = answer.mirrors;
    if mirrors.is_empty()
        && let Some((host, _)) = address.rsplit_once(':')
    {
        mirrors.push(format!("http://{host}:{}/", answer.repository_port));
    }
    let mut hub_addresses = config.hub.clone();
    hub_addresses.extend(token.addresses.clone());
    hub_addresses.dedup();
    let joined = Joined {
        schema: 1,
        hub: answer.hub,
        hub_addresses,
        trusted_root: answer.trusted_root,
        mirrors,
        group,
        labels,
        members,
    };
    file.save(&joined).map_err(|error| AgentError::Kept(error.to_string()))?;
    tracing::info!(group = %joined.group, "this server has joined");
    Ok((identity, joined))
}

/// The address that others are told.
pub(crate) fn advertised(config: &AgentConfig) -> String {
    config.advertise.clone().unwrap_or_else(|| config.listen.clone())
}

fn read_token(config: &AgentConfig) -> Result<JoinToken, AgentError> {
    let Some(path) = &config.join_token_file else {
        return Err(AgentError::NotJoined(
            "there is no certificate and no join_token_file; \
             run `cohort token create` where the hub is, and name the file in agent.toml"
                .into(),
        ));
    };
    let text = read_bounded(path)?;
    text.trim()
        .parse()
        .map_err(|error| AgentError::NotJoined(format!("{}: {error}", path.display())))
}

fn read_bounded(path: &Path) -> Result<String, AgentError> {
    use std::io::Read as _;
    let fail = |source| AgentError::File { path: path.to_owned(), what: "read", source };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut text = String::new();
    file.take(TOKEN_FILE_BYTES_MAX).read_to_string(&mut text).map_err(fail)?;
    Ok(text)
}

/// Asks every address of the hub in turn, and again until one answers or refuses for good.
async fn ask(
    config: &AgentConfig,
    token: &JoinToken,
    body: &JoinRequest,
) -> Result<(JoinAnswer, String), AgentError> {
    let client = Client::joining(&token.fingerprint);
    let mut addresses = config.hub.clone();
    addresses.extend(token.addresses.iter().cloned());
    if addresses.is_empty() {
        let reason = "neither agent.toml nor the join token names a hub".into();
        return Err(AgentError::NotJoined(reason));
    }
    let hub =
        Peer::new(Role::Hub, HUB_NAME).map_err(|error| AgentError::Config(error.to_string()))?;
    let mut pause = Duration::from_millis(200);
    loop {
        for address in &addresses {
            let target = Target { address: address.clone(), peer: hub.clone(), alpn: Alpn::Hub };
            match client.call_json::<JoinAnswer>(&target, Call::post(JOIN, body)).await {
                Ok(answer) => return Ok((answer, address.clone())),
                Err(error) if error.status().is_some_and(|status| status < 500) => {
                    return Err(AgentError::NotJoined(format!(
                        "{error}; {}",
                        error.hints().join("; ")
                    )));
                }
                Err(error) => tracing::warn!(%error, %address, "the hub did not let us join yet"),
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}
