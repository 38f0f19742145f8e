//! A hub in a temporary directory, and its clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cohort_hub::{Hub, HubConfig, HubError};
use cohort_identity::{Alpn, Authority, Identity, LIFETIME, Peer, Role, UnixTime};
use cohort_registry::RemoteRegistry;
use cohort_wire::http::{ApiError, Call, CallError, Client, Target};
use cohort_wire::hub::{
    JOIN, JoinAnswer, JoinRequest, JoiningServer, PolicyRequest, TOKEN, TokenAnswer, TokenRequest,
};
use cohort_wire::intent::{AppIntent, SignedIntent, Wanted};
use cohort_wire::tls::IdentitySlot;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) fn now() -> UnixTime {
    UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
}

pub(crate) struct Running {
    pub(crate) folder: TempDir,
    pub(crate) authority: Arc<Authority>,
    pub(crate) config: HubConfig,
    pub(crate) api: SocketAddr,
    pub(crate) plain: SocketAddr,
    stop: CancellationToken,
    ended: JoinHandle<Result<(), HubError>>,
}

impl Running {
    pub(crate) async fn start() -> Running {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut HubConfig)) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let mut config = HubConfig::new(folder.path().join("data"));
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.repository_listen = "127.0.0.1:0".parse().unwrap();
        change(&mut config);
        let authority = Authority::create(&config.authority_dir(), now()).unwrap();
        Self::run(folder, Arc::new(authority), config).await
    }

    async fn run(folder: TempDir, authority: Arc<Authority>, config: HubConfig) -> Running {
        let hub = Hub::start(config.clone()).await.unwrap();
        let (api, plain) = (hub.api_address(), hub.repository_address());
        let stop = CancellationToken::new();
        let ended = tokio::spawn(hub.run_until(stop.clone()));
        Running { folder, authority, config, api, plain, stop, ended }
    }

    /// Stops it and waits until it has ended. Returns what outlives it.
    pub(crate) async fn stop(self) -> (TempDir, Arc<Authority>, HubConfig) {
        self.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(20), self.ended).await;
        ended.expect("it ends in time").expect("no panic").expect("no error");
        (self.folder, self.authority, self.config)
    }

    pub(crate) async fn restart(self) -> Running {
        self.restart_with(|_, _| {}).await
    }

    /// Stops it, changes something, and starts it again.
    pub(crate) async fn restart_with(self, change: impl FnOnce(&Path, &mut HubConfig)) -> Running {
        let (folder, authority, mut config) = self.stop().await;
        change(&config.data_dir.clone(), &mut config);
        Self::run(folder, authority, config).await
    }

    pub(crate) fn target(&self) -> Target {
        let peer = Peer::new(Role::Hub, "hub").unwrap();
        Target { address: self.api.to_string(), peer, alpn: Alpn::Hub }
    }

    pub(crate) fn identity(&self, role: Role, name: &str) -> Identity {
        let peer = Peer::new(role, name).unwrap();
        self.authority.make_identity(&peer, LIFETIME, now()).unwrap()
    }

    pub(crate) fn client(&self, role: Role, name: &str) -> Caller {
        let client = Client::new(IdentitySlot::new(self.identity(role, name)));
        Caller { client, target: self.target() }
    }

    pub(crate) fn operator(&self) -> Caller {
        self.client(Role::Operator, "ada")
    }

    /// A policy that the operator `ada` signs, for the next revision of the registry.
    pub(crate) async fn policy(&self, policy: serde_json::Value) -> PolicyRequest {
        let signed = self.signed("ada", Wanted::Policy(policy)).await;
        PolicyRequest { signed, expected: None }
    }

    /// What an operator wants of `web`.
    pub(crate) async fn signed(&self, operator: &str, wanted: Wanted) -> SignedIntent {
        let fleet: cohort_registry::fleet::Fleet = self.operator().get("/v1/fleet").await.unwrap();
        let revision = cohort_core::ids::Revision(fleet.revision + 1);
        let intent = AppIntent { app: "web".parse().unwrap(), revision, wanted, at: 1 };
        SignedIntent::sign(&self.identity(Role::Operator, operator), &intent).unwrap()
    }

    pub(crate) async fn token(&self, role: Role, name: Option<&str>) -> TokenAnswer {
        let name = name.map(|name| cohort_identity::PeerName::new(name).unwrap());
        let request = TokenRequest { role, name, valid_s: None, addresses: vec![] };
        self.operator().post(TOKEN, &request).await.unwrap()
    }

    /// Joins as a new agent with its own token. Returns the hub's response and the agent's client.
    pub(crate) async fn join_agent(&self, name: &str, zone: &str) -> (JoinAnswer, Caller) {
        let token = self.token(Role::Agent, None).await;
        let (answer, identity) = self.join(&token, Role::Agent, name, Some(server(zone))).await;
        let client = Client::new(IdentitySlot::new(identity.unwrap()));
        (answer.unwrap(), Caller { client, target: self.target() })
    }

    pub(crate) async fn join(
        &self,
        token: &TokenAnswer,
        role: Role,
        name: &str,
        server: Option<JoiningServer>,
    ) -> (Result<JoinAnswer, ApiError>, Option<Identity>) {
        let token: cohort_identity::JoinToken = token.token.parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let peer = Peer::new(role, name).unwrap();
        let request = Identity::prepare_request(dir.path(), peer).unwrap();
        let request = JoinRequest {
            token_id: token.id.clone(),
            token_secret: token.secret().to_owned(),
            request: request.to_text(),
            server,
        };
        let caller =
            Caller { client: Client::joining(&token.anchors.authority), target: self.target() };
        let answer: Result<JoinAnswer, ApiError> = caller.post(JOIN, &request).await;
        let identity = answer.as_ref().ok().map(|answer| {
            Identity::accept(dir.path(), &answer.certificate, &answer.authority).unwrap()
        });
        (answer, identity)
    }

    /// One plain HTTP request on its own connection.
    pub(crate) async fn plain(&self, method: &str, path: &str, headers: &str) -> Plain {
        let mut stream = tokio::net::TcpStream::connect(self.plain).await.unwrap();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes));
        read.await.expect("an answer in time").unwrap();
        Plain::parse(&bytes)
    }
}

pub(crate) fn server(zone: &str) -> JoiningServer {
    JoiningServer {
        address: "127.0.0.1:7417".to_owned(),
        platform: "linux/amd64".parse().unwrap(),
        labels: BTreeMap::from([
            ("zone".to_owned(), zone.to_owned()),
            ("platform".to_owned(), "intel".to_owned()),
        ]),
        rack: Some("r1".to_owned()),
    }
}

/// A client of the hub.
pub(crate) struct Caller {
    pub(crate) client: Client,
    pub(crate) target: Target,
}

impl Caller {
    pub(crate) async fn post<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, ApiError> {
        self.call(Call::post(path, body)).await
    }

    pub(crate) async fn get<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<T, ApiError> {
        self.call(Call::get(path)).await
    }

    pub(crate) async fn call<T: serde::de::DeserializeOwned>(
        &self,
        call: Call,
    ) -> Result<T, ApiError> {
        self.client.call_json(&self.target, call).await.map_err(answered)
    }

    /// A call whose response has no body.
    pub(crate) async fn send(&self, call: Call) -> Result<u16, ApiError> {
        let answer = self.client.stream(&self.target, call).await.map_err(answered)?;
        Ok(answer.status.as_u16())
    }

    pub(crate) fn registry(&self) -> RemoteRegistry {
        RemoteRegistry::new(self.client.clone(), vec![self.target.clone()])
    }
}

fn answered(error: CallError) -> ApiError {
    match error {
        CallError::Answered { answer, .. } => *answer,
        other => panic!("no answer: {other} {other:?}"),
    }
}

/// The response to a plain request.
#[derive(Debug)]
pub(crate) struct Plain {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Plain {
    fn parse(bytes: &[u8]) -> Plain {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        Plain { status, headers, body: bytes[end + 4..].to_vec() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
