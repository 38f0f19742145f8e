//! The first start: exchanges the join token for a certificate and the server's place in the fleet.

use cohort_artifact::Mirror;
use cohort_artifact::client::AddressError;
use cohort_base::{FileError, OnPath as _, chain, retry};
use cohort_core::ids::{GroupId, Platform, ServerId};
use cohort_identity::{Identity, JoinToken, Peer, PeerName, Role};
use cohort_registry::records::{SCHEMA, ServerRecord};
use cohort_store::DurableFile;
use cohort_wire::entry;
use cohort_wire::http::{Call, CallError, Client, Target};
use cohort_wire::hub::{
    JOIN, JoinAnswer, JoinRequest, JoinedGroup, JoiningServer, LABEL_BYTES_MAX,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use crate::config::AgentConfig;
use crate::error::AgentError;

/// The name in every hub's certificate, until the answer to joining says another.
const HUB_NAME: &str = "hub";
/// The version of the record of joining.
const VERSION: u32 = 1;
/// A join token's file is one line of text.
const TOKEN_FILE_BYTES_MAX: u64 = 8 * 1024;

/// The hub's answer to joining; kept for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    pub hub: PeerName,
    /// Where it was reached.
    pub hub_addresses: Vec<String>,
    /// The first trusted root of the repository.
    pub trusted_root: Option<String>,
    /// Mirrors of the repository, as URLs.
    pub mirrors: Vec<String>,
    pub group: GroupId,
    /// The labels by which it did.
    pub labels: BTreeMap<String, String>,
    /// What this server said of itself when it joined.
    pub platform: Platform,
    pub rack: Option<String>,
    /// The group's members at that time.
    pub members: Vec<cohort_core::orders::MemberAddress>,
}

impl Joined {
    /// What the hub wrote of this server when it joined, with the present address.
    pub(crate) fn record(&self, config: &AgentConfig) -> ServerRecord {
        let mut labels = config.labels.clone();
        labels.extend(self.labels.clone());
        ServerRecord {
            schema: SCHEMA,
            server: config.server.clone(),
            address: advertised(config),
            labels,
            rack: self.rack.clone(),
            group: self.group.clone(),
        }
    }

    /// The hub's API, at each of its addresses; at least one.
    pub(crate) fn hub_targets(&self, config: &AgentConfig) -> Result<Vec<Target>, AgentError> {
        let hub = Peer::new(Role::Hub, self.hub.as_str())
            .map_err(AgentError::kept("record of joining"))?;
        let addresses = if config.hub.is_empty() { &self.hub_addresses } else { &config.hub };
        if addresses.is_empty() {
            return Err(AgentError::config("hub")("it names no hub, and neither did joining"));
        }
        Ok(Target::hub(&hub, addresses))
    }

    /// The mirrors of agent.toml, or those that joining named.
    pub(crate) fn mirrors(&self, config: &AgentConfig) -> Result<Vec<Mirror>, AgentError> {
        let mirrors = if config.mirrors.is_empty() { &self.mirrors } else { &config.mirrors };
        let parsed: Result<Vec<Mirror>, AddressError> =
            mirrors.iter().map(|mirror| mirror.parse()).collect();
        parsed.map_err(AgentError::config("mirrors"))
    }
}

/// What is missing of what joining left on the disk, and what to do; `None` if nothing is, or this
/// server never joined.
fn lost_part(config: &AgentConfig, joined: bool, identity: bool) -> Option<String> {
    let lost = match (joined, identity) {
        (true, true) | (false, false) => return None,
        (true, false) => "identity",
        (false, true) => "joined.json",
    };
    Some(format!(
        "{} is lost: to join again, run `cohort token create --name {}`, and write the token to \
         join_token_file",
        config.data_dir.join(lost).display(),
        config.server
    ))
}

/// What a server without an identity may be: a new one, or one whose agent looks in another
/// directory than the one that it joined with.
fn no_identity(config: &AgentConfig) -> String {
    let dir = config.data_dir.display();
    format!("{dir} has no identity: if this server has joined before, check data_dir in agent.toml")
}

/// The identity on this server's disk, if it is that of `server`.
fn load(dir: &Path, server: &ServerId) -> Result<Identity, AgentError> {
    let identity = Identity::load(dir).map_err(|source| {
        let (dir, server) = (dir.to_owned(), server.clone());
        AgentError::Identity { dir, server, source: source.into() }
    })?;
    let name = identity.peer().name.as_str();
    if name == server.as_str() {
        return Ok(identity);
    }
    Err(AgentError::kept("identity")(format!(
        "it is {name}'s, and `server` is {server}: set server = \"{name}\"; or, to rename this \
         server, run `cohort group remove-server GROUP {name}`, and use an empty data_dir and a \
         new token"
    )))
}

/// Checks that agent.toml still describes the server that joined: only the hub decides which group
/// a server belongs to, once.
fn check_unmoved(config: &AgentConfig, joined: &Joined) -> Result<(), AgentError> {
    let Joined { group, labels, platform, rack, .. } = joined;
    let server = &config.server;
    if config.rack != *rack {
        let rack = rack.as_deref().unwrap_or("none");
        tracing::warn!(
            rack,
            "ignoring the rack of agent.toml: this is the one that the server joined with; to \
             change it, remove the server from its group and let it join again"
        );
    }
    // The hub derives this label from the platform, unless it is set.
    let derived =
        |key: &str| (key == "platform").then(|| config.platform.as_str().replace('/', "-"));
    let changed = labels.iter().find_map(|(key, was)| {
        let now = config.labels.get(key).cloned().or_else(|| derived(key));
        (now.as_ref() != Some(was)).then(|| (format!("label {key}"), was.clone(), now))
    });
    let other = config.platform != *platform;
    let platform = (platform.to_string(), Some(config.platform.to_string()));
    let moved = other.then(|| ("platform".to_owned(), platform.0, platform.1));
    let Some((what, was, now)) = changed.or(moved) else { return Ok(()) };
    let now = now.unwrap_or_else(|| "not set".to_owned());
    Err(AgentError::config("labels")(format!(
        "{what} is {now}, but {server} joined {group} with {was}: set it back; or, to move this \
         server to another group, run `cohort group remove-server {group} {server}`, and use an \
         empty data_dir and a new token"
    )))
}

/// Loads the identity, or joins and makes it.
pub(crate) async fn join(config: &AgentConfig) -> Result<(Identity, Joined), AgentError> {
    let dir = config.data_dir.join("identity");
    let (mut file, joined) =
        DurableFile::<Joined>::open(config.data_dir.join("joined.json"), VERSION)
            .map_err(AgentError::kept("record of joining"))?;
    let has_identity = Identity::exists(&dir);
    let lost = lost_part(config, joined.is_some(), has_identity);
    if let Some(joined) = joined
        && has_identity
    {
        let identity = load(&dir, &config.server)?;
        check_unmoved(config, &joined)?;
        return Ok((identity, joined));
    }
    if lost.is_none() {
        tracing::info!(data_dir = %config.data_dir.display(), "no identity there yet, joining");
    }
    let token = read_token(config, lost.as_deref())?;
    let peer =
        Peer::new(Role::Agent, config.server.as_str()).map_err(AgentError::config("server"))?;
    let request = Identity::prepare_request(&dir, peer).map_err(AgentError::kept("identity"))?;
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
    let hub_addresses = hub_addresses(&config.hub, &token.addresses);
    let missing = lost.unwrap_or_else(|| no_identity(config));
    let (answer, address) = ask(&hub_addresses, &token, &body, &missing).await?;
    let handed = token.anchors.check(&answer.authority, answer.trusted_root.as_deref());
    handed.map_err(AgentError::not_joined)?;
    let Some(JoinedGroup { group, labels, members }) = answer.group else {
        return Err(AgentError::not_joined("the hub named no group for this server"));
    };
    let joined = Joined {
        hub: answer.hub,
        hub_addresses,
        trusted_root: answer.trusted_root,
        mirrors: mirrors_or_hub(answer.mirrors, &address, answer.repository_port),
        group,
        labels,
        platform: config.platform.clone(),
        rack: config.rack.clone(),
        members,
    };
    // The identity last: until then, the waiting key gets a certificate again.
    file.save(&joined).map_err(AgentError::kept("record of joining"))?;
    let identity = Identity::accept(&dir, &answer.certificate, &answer.authority)
        .map_err(AgentError::not_joined)?;
    tracing::info!(group = %joined.group, "joined the fleet");
    Ok((identity, joined))
}

/// Each address of the hub once, in the order to try: those of agent.toml, then the token's.
fn hub_addresses(configured: &[String], of_token: &[String]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    configured.iter().chain(of_token).filter(|address| seen.insert(*address)).cloned().collect()
}

/// The mirrors to use: those that the hub names, else the hub itself, where it answered: its plain
/// port, or the one for those with a certificate.
fn mirrors_or_hub(named: Vec<String>, hub: &str, repository_port: Option<u16>) -> Vec<String> {
    match (hub.rsplit_once(':'), repository_port) {
        (Some((host, _)), Some(port)) if named.is_empty() => vec![format!("http://{host}:{port}/")],
        (Some(_), None) if named.is_empty() => vec![format!("cohort://{hub}/")],
        _ => named,
    }
}

/// Whether the hub refused this server, so that no retry helps.
fn is_refusal(error: &CallError) -> bool {
    error.status().is_some_and(|status| status < 500)
}

/// The peer port that this server advertises, `host:port`.
pub(crate) fn advertised(config: &AgentConfig) -> String {
    config.advertise.clone().unwrap_or_else(|| config.listen.clone())
}

/// Checks what this server tells others of itself, before they do. An address such as 0.0.0.0 means
/// every server to itself: nobody else would find this one.
pub(crate) fn check_advertised(config: &AgentConfig) -> Result<(), AgentError> {
    let address = advertised(config);
    entry::address(&address).map_err(AgentError::config("advertise"))?;
    entry::labels(&config.labels).map_err(AgentError::config("labels"))?;
    let rack = config.rack.iter().try_for_each(|rack| entry::word("rack", rack, LABEL_BYTES_MAX));
    rack.map_err(AgentError::config("rack"))?;
    let unspecified = |address: SocketAddr| address.ip().is_unspecified();
    if address.parse().is_ok_and(unspecified) {
        return Err(AgentError::config("advertise")(format!(
            "other servers cannot reach `{address}`; set advertise (or listen) to an address of \
             this server, such as 10.0.0.11:7417"
        )));
    }
    Ok(())
}

/// `lost`: what is missing of an earlier join.
fn read_token(config: &AgentConfig, lost: Option<&str>) -> Result<JoinToken, AgentError> {
    let Some(path) = &config.join_token_file else {
        return Err(AgentError::not_joined(lost.map_or_else(
            || {
                format!(
                    "{}; if not, run `cohort token create` with an operator's context and set \
                     join_token_file",
                    no_identity(config)
                )
            },
            str::to_owned,
        )));
    };
    let text = read_bounded(path)?;
    text.trim().parse().map_err(|error| {
        AgentError::not_joined(format!("{} holds no join token: {error}", path.display()))
    })
}

fn read_bounded(path: &Path) -> Result<String, FileError> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).on_path("read", path)?;
    let mut text = String::new();
    file.take(TOKEN_FILE_BYTES_MAX).read_to_string(&mut text).on_path("read", path)?;
    Ok(text)
}

/// Tries every address of the hub in turn until one accepts this server or refuses it. `missing` is
/// why it has to join.
async fn ask(
    addresses: &[String],
    token: &JoinToken,
    body: &JoinRequest,
    missing: &str,
) -> Result<(JoinAnswer, String), AgentError> {
    let client = Client::joining(&token.anchors.authority);
    if addresses.is_empty() {
        return Err(AgentError::not_joined("neither agent.toml nor the join token names a hub"));
    }
    let hub = Peer::new(Role::Hub, HUB_NAME).expect("a constant name");
    let targets = Target::hub(&hub, addresses);
    let mut pauses = retry::SHARED.pauses();
    loop {
        for target in &targets {
            match client.call_json::<JoinAnswer>(target, Call::post(JOIN, body)).await {
                Ok(answer) => return Ok((answer, target.address.clone())),
                Err(error) if is_refusal(&error) => {
                    let mut text = format!("{missing}; the hub refuses it: {}", chain(&error));
                    for hint in error.hints() {
                        text.push_str("; ");
                        text.push_str(&hint);
                    }
                    return Err(AgentError::not_joined(text));
                }
                Err(error) => {
                    let (error, address) = (chain(&error), &target.address);
                    tracing::warn!(error, address, "the hub does not answer, retrying to join");
                }
            }
        }
        tokio::time::sleep(pauses.next_pause()).await;
    }
}

#[cfg(test)]
mod join_test {
    use std::collections::BTreeMap;
    use std::io;
    use std::path::Path;

    use cohort_core::ids::MemberId;
    use cohort_core::orders::MemberAddress;
    use cohort_identity::{Anchors, JoinTokenError};
    use cohort_wire::http::ApiError;

    use super::*;
    use crate::testing::{Lab, joined};

    fn strings(all: &[&str]) -> Vec<String> {
        all.iter().copied().map(str::to_owned).collect()
    }

    fn config() -> AgentConfig {
        serde_json::from_str(r#"{"server":"web-1","platform":"intel"}"#).unwrap()
    }

    #[test]
    fn each_address_of_the_hub_is_tried_once_and_those_of_agent_toml_first() {
        let addresses = hub_addresses(&strings(&["b:1", "a:1"]), &strings(&["c:1", "b:1", "c:1"]));
        assert_eq!(addresses, strings(&["b:1", "a:1", "c:1"]));
        assert_eq!(hub_addresses(&[], &strings(&["c:1"])), strings(&["c:1"]));
        assert_eq!(hub_addresses(&[], &[]), strings(&[]));
    }

    #[test]
    fn only_a_refusal_ends_joining() {
        let address = || "hub:7418".to_owned();
        let answered =
            |answer| CallError::Answered { address: address(), answer: Box::new(answer) };
        for refused in [
            ApiError::bad_request("no such label"),
            ApiError::unauthenticated(),
            ApiError::forbidden("the token is spent"),
            ApiError::not_found("no such path"),
            ApiError::conflict("another server has this name"),
        ] {
            assert!(is_refusal(&answered(refused.clone())), "{refused:?}");
        }
        let peer = Box::new(Peer::new(Role::Hub, HUB_NAME).unwrap());
        let broken = || io::Error::from(io::ErrorKind::ConnectionReset);
        for again in [
            answered(ApiError::internal("a full disk")),
            answered(ApiError::overloaded("too many requests")),
            CallError::Refused { address: address() },
            CallError::Unreachable { address: address(), source: broken() },
            // Another address may be the token's hub.
            CallError::Identity { address: address(), expected: peer, source: broken().into() },
            CallError::Broken { address: address(), doing: "reading", source: broken().into() },
            CallError::Malformed { address: address(), source: broken().into() },
        ] {
            assert!(!is_refusal(&again), "{again:?}");
        }
    }

    #[test]
    fn the_hub_is_the_mirror_if_it_names_none() {
        let named = strings(&["https://mirror.example/"]);
        assert_eq!(mirrors_or_hub(named.clone(), "hub:7418", Some(7419)), named);
        let hub = |address, port| mirrors_or_hub(Vec::new(), address, port);
        assert_eq!(hub("hub:7418", Some(7419)), ["http://hub:7419/"]);
        assert_eq!(hub("[fd00::1]:7418", Some(7419)), ["http://[fd00::1]:7419/"]);
        assert_eq!(hub("hub:7418", None), ["cohort://hub:7418/"]);
        assert_eq!(hub("[fd00::1]:7418", None), ["cohort://[fd00::1]:7418/"]);
    }

    #[test]
    fn agent_toml_overrides_the_hub_and_the_mirrors_that_joining_named() {
        let joined = Joined { mirrors: strings(&["/srv/joined"]), ..joined() };
        let hubs = |config: &AgentConfig| {
            let targets = joined.hub_targets(config).unwrap();
            targets.into_iter().map(|target| target.address).collect::<Vec<_>>()
        };
        let mut config = config();
        assert_eq!(hubs(&config), joined.hub_addresses);
        assert_eq!(joined.mirrors(&config).unwrap(), [Mirror::Folder("/srv/joined".into())]);
        config.hub = strings(&["hub:7418"]);
        config.mirrors = strings(&["/srv/own"]);
        assert_eq!(hubs(&config), config.hub);
        assert_eq!(joined.mirrors(&config).unwrap(), [Mirror::Folder("/srv/own".into())]);
        config.mirrors = strings(&["not a URL"]);
        let refused = joined.mirrors(&config);
        assert!(matches!(refused, Err(AgentError::Config { key: "mirrors", .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn a_part_that_is_lost_is_named_with_the_command_that_brings_it_back() {
        let (lab, folder) = (Lab::new().await, tempfile::tempdir().unwrap());
        let data = folder.path();
        let config = AgentConfig { data_dir: data.to_owned(), ..config() };
        let refused = async || chain(&join(&config).await.expect_err("it has no token"));
        let names = |error: &str, part: &str| {
            error.contains(&format!("{} is lost", data.join(part).display()))
                && error.contains("cohort token create --name web-1")
        };
        let first = refused().await;
        let looked = format!("{} has no identity", data.display());
        assert!(first.contains(&looked) && first.contains("check data_dir"), "{first}");
        assert!(!names(&first, "identity"));
        lab.slot("web-1").current().save(&data.join("identity")).unwrap();
        let error = refused().await;
        assert!(names(&error, "joined.json"), "{error}");
        let path = data.join("joined.json");
        let (mut file, _) = DurableFile::<Joined>::open(&path, VERSION).unwrap();
        file.save(&Joined { labels: BTreeMap::new(), ..joined() }).unwrap();
        std::fs::remove_file(data.join("identity/key.pem")).unwrap();
        let damaged = join(&config).await;
        let Err(AgentError::Identity { dir, .. }) = damaged else { panic!() };
        assert_eq!(dir, data.join("identity"));
        std::fs::remove_dir_all(data.join("identity")).unwrap();
        let error = refused().await;
        assert!(names(&error, "identity"), "{error}");
        // A record that another version wrote is not mistaken for a damaged one.
        let (mut file, _) = DurableFile::<Joined>::open(data.join("next"), VERSION + 1).unwrap();
        file.save(&joined()).unwrap();
        std::fs::rename(data.join("next"), &path).unwrap();
        let error = refused().await;
        assert!(error.contains(&format!("{}", path.display())) && path.exists(), "{error}");
    }

    /// The owner of the hub has the authority's key, and a repository of its own.
    #[tokio::test]
    async fn a_hub_that_hands_out_another_root_is_refused() {
        let (lab, folder) = (Lab::new().await, tempfile::tempdir().unwrap());
        let answer = |root: Option<&str>| JoinAnswer {
            certificate: "PEM".to_owned(),
            authority: lab.authority.certificate_pem().to_owned(),
            hub: PeerName::new(HUB_NAME).unwrap(),
            trusted_root: root.map(str::to_owned),
            mirrors: Vec::new(),
            repository_port: Some(1),
            group: None,
        };
        let joins = async |anchors: &Anchors, answer: JoinAnswer| {
            let address = lab.serve_joining(answer).await;
            let token = JoinToken::generate(anchors, &[address], None).unwrap();
            let path = folder.path().join("token");
            std::fs::write(&path, token.to_text()).unwrap();
            let data_dir = folder.path().to_owned();
            let config = AgentConfig { data_dir, join_token_file: Some(path), ..config() };
            let Err(AgentError::NotJoined(why)) = join(&config).await else { panic!() };
            assert!(!folder.path().join("joined.json").exists());
            why.downcast_ref().cloned()
        };
        let anchors = Anchors::of(&lab.authority.fingerprint(), Some("ours"));
        for forged in [Some("theirs"), None] {
            let refused = joins(&anchors, answer(forged)).await;
            assert_eq!(refused, Some(JoinTokenError::OtherRoot), "{forged:?}");
        }
        let none = Anchors { trusted_root: None, ..anchors.clone() };
        assert_eq!(joins(&none, answer(Some("theirs"))).await, Some(JoinTokenError::OtherRoot));
        let other = Lab::new().await.authority.certificate_pem().to_owned();
        let forged = JoinAnswer { authority: other, ..answer(Some("ours")) };
        assert_eq!(joins(&anchors, forged).await, Some(JoinTokenError::OtherAuthority));
        // This one lacks only a group.
        assert_eq!(joins(&anchors, answer(Some("ours"))).await, None);
    }

    #[test]
    fn a_server_whose_labels_changed_is_refused_with_the_way_to_move_it() {
        let labels = [("platform", "linux-amd64"), ("zone", "zone-a")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let platform: Platform = "linux/amd64".parse().unwrap();
        let joined = Joined { labels, platform: platform.clone(), ..joined() };
        let mut config = AgentConfig { platform, ..config() };
        config.labels = [("zone", "zone-a"), ("owner", "ann")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        check_unmoved(&config, &joined).unwrap();
        config.rack = Some("r2".to_owned());
        check_unmoved(&config, &joined).expect("the rack is that of joining");
        let refused = |config: &AgentConfig| {
            let error = check_unmoved(config, &joined).unwrap_err();
            assert!(chain(&error).contains("group remove-server"), "{}", chain(&error));
        };
        refused(&AgentConfig { platform: "linux/arm64".parse().unwrap(), ..config.clone() });
        config.labels.insert("zone".to_owned(), "zone-b".to_owned());
        refused(&config);
        config.labels.remove("zone");
        refused(&config);
    }

    #[test]
    fn an_address_that_nobody_can_reach_is_not_advertised() {
        let check = |listen: &str, advertise: Option<&str>| {
            let mut config = config();
            config.listen = listen.into();
            config.advertise = advertise.map(Into::into);
            check_advertised(&config).is_ok()
        };
        assert!(!check("0.0.0.0:7417", None) && !check("[::]:7417", None));
        assert!(!check("10.0.0.11:7417", Some("0.0.0.0:7417")));
        assert!(check("10.0.0.11:7417", None) && check("0.0.0.0:7417", Some("web-1.lan:7417")));
    }

    #[test]
    fn the_record_of_joining_is_read_by_every_later_version() {
        let member = MemberAddress {
            server: "web-1".parse().unwrap(),
            address: "10.0.0.1:7417".to_owned(),
            member: MemberId(1),
        };
        let joined = Joined {
            hub: PeerName::new("hub").unwrap(),
            hub_addresses: vec!["hub.example:7418".to_owned()],
            trusted_root: Some("{}".to_owned()),
            mirrors: vec!["http://hub.example:7419/".to_owned()],
            group: "intel.zone-a".parse().unwrap(),
            labels: BTreeMap::from([("zone".to_owned(), "zone-a".to_owned())]),
            platform: "intel".parse().unwrap(),
            rack: Some("r1".to_owned()),
            members: vec![member],
        };
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/joined.jsonl");
        cohort_base::golden::hold(&golden, &[joined]);
    }
}
