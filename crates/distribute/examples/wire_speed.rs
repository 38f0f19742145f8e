//! One server of a transfer, or the mirror, as a process of its own: for measuring in network
//! namespaces. See `xtask/src/bench/distribute/layout.sh`.
//!
//! ```text
//! wire_speed make DIR BYTES                   an artifact and an authority below DIR
//! wire_speed mirror DIR IP:PORT               serves the artifact
//! wire_speed node DIR NAME IP:PORT URL        waits for DIR/go, fetches, writes DIR/done-NAME
//! ```
//!
//! `DIR/leader` names the leader, and may change; `DIR/peers` says `NAME=IP:PORT` of all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use cohort_artifact::hash_file;
use cohort_core::ids::{GroupId, ServerId};
use cohort_core::orders::{FetchOrder, Source};
use cohort_core::release::{Release, Rollback};
use cohort_distribute::{
    ArtifactStore, ByteCounters, Downloads, FetchContext, FetchStatus, Guides, Limits, MirrorList,
    Participant, ServeLimits, StoreOptions, TRANSFER, Tracker, TrackerCalls, TransferAnswer,
    TransferRequest, WirePeers, bulk_router, follow,
};
use cohort_identity::{Alpn, Authority, ClientAuth, Peer, Role};
use cohort_wire::http::{
    ApiError, ApiJson, Call, Caller, Client, Handler, Target, serve, serve_plain,
};
use cohort_wire::limits::ServerLimits;
use cohort_wire::tls::IdentitySlot;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use rustls_pki_types::UnixTime;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

type Failed = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["make", dir, bytes] => make(Path::new(dir), bytes.parse()?),
        ["mirror", dir, listen] => mirror(Path::new(dir), listen).await,
        ["node", dir, name, listen, url] => node(PathBuf::from(dir), name, listen, url).await,
        _ => Err("see the head of this file".into()),
    }
}

fn make(dir: &Path, bytes: usize) -> Result<(), Failed> {
    std::fs::create_dir_all(dir.join("authority"))?;
    Authority::create(&dir.join("authority"), UnixTime::now())?;
    let mut artifact = vec![0; bytes];
    blake3::Hasher::new()
        .update(dir.as_os_str().as_encoded_bytes())
        .finalize_xof()
        .fill(&mut artifact);
    let path = dir.join("artifact");
    std::fs::write(&path, artifact)?;
    let found = hash_file(&path)?;
    std::fs::write(dir.join("units"), found.units.to_bytes())?;
    std::fs::write(dir.join("root"), format!("{} {}", found.root, found.length))?;
    Ok(())
}

struct Files {
    artifact: Bytes,
    units: Bytes,
}

async fn mirror(dir: &Path, listen: &str) -> Result<(), Failed> {
    let artifact = std::fs::read(dir.join("artifact"))?.into();
    let units = std::fs::read(dir.join("units"))?.into();
    let router = Router::new().fallback(file).with_state(Arc::new(Files { artifact, units }));
    let listener = TcpListener::bind(listen).await?;
    serve_plain(listener, router, ServerLimits::default(), CancellationToken::new()).await;
    Ok(())
}

async fn file(State(files): State<Arc<Files>>, request: Request) -> Response {
    let whole =
        if request.uri().path().ends_with(".units") { &files.units } else { &files.artifact };
    let range = request.headers().get(RANGE).and_then(|range| {
        let (first, last) = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
        Some(first.parse::<usize>().ok()?..(last.parse::<usize>().ok()? + 1).min(whole.len()))
    });
    let mut response = Response::new(Body::empty());
    let bytes = match range {
        Some(range) => {
            *response.status_mut() = http::StatusCode::PARTIAL_CONTENT;
            let text = format!("bytes {}-{}/{}", range.start, range.end - 1, whole.len());
            if let Ok(text) = text.parse() {
                response.headers_mut().insert(CONTENT_RANGE, text);
            }
            whole.slice(range)
        }
        None => whole.clone(),
    };
    response.headers_mut().insert(CONTENT_LENGTH, bytes.len().into());
    *response.body_mut() = Body::from(bytes);
    response
}

struct Leader {
    dir: PathBuf,
    client: Client,
    addresses: BTreeMap<String, String>,
}

impl Leader {
    fn target(&self) -> Result<Target, Failed> {
        let leader = std::fs::read_to_string(self.dir.join("leader"))?;
        let peer = Peer::new(Role::Agent, leader.trim())?;
        let address = self.addresses.get(leader.trim()).ok_or("no such server")?.clone();
        Ok(Target { address, peer, alpn: Alpn::Control })
    }
}

impl TrackerCalls for Leader {
    fn report(
        &self,
        request: TransferRequest,
    ) -> BoxFuture<'static, Result<TransferAnswer, String>> {
        let (client, target) = (self.client.clone(), self.target());
        Box::pin(async move {
            let target = target.map_err(|error| error.to_string())?;
            let call = Call::post(TRANSFER, &request).deadline(Duration::from_secs(2)).idempotent();
            client.call_json(&target, call).await.map_err(|error| error.to_string())
        })
    }
}

struct Tracking {
    tracker: Tracker,
    dir: PathBuf,
    name: String,
    addresses: BTreeMap<String, String>,
}

async fn transfer(
    State(tracking): State<Arc<Tracking>>,
    caller: Caller,
    ApiJson(request): ApiJson<TransferRequest>,
) -> Result<ApiJson<TransferAnswer>, ApiError> {
    let leader = std::fs::read_to_string(tracking.dir.join("leader")).unwrap_or_default();
    if leader.trim() != tracking.name {
        tracking.tracker.clear();
        return Err(ApiError::unavailable("not_leader", "this server does not lead"));
    }
    let name = caller.require(&[Role::Agent])?.name.as_str().to_owned();
    let bad = |error: String| ApiError::bad_request(error);
    let server: ServerId = name.parse().map_err(|_| bad("no server".to_owned()))?;
    let address = tracking.addresses.get(&name).cloned().unwrap_or_default();
    let from = Participant { server, address, rack: None, leads: name == tracking.name };
    let answer = tracking.tracker.report(&from, &request, Instant::now());
    answer.map(ApiJson).map_err(|error| bad(error.to_string()))
}

async fn node(dir: PathBuf, name: &str, listen: &str, url: &str) -> Result<(), Failed> {
    let authority = Authority::open(&dir.join("authority"))?;
    let life = Duration::from_secs(24 * 3_600);
    let identity =
        authority.make_identity(&Peer::new(Role::Agent, name)?, life, UnixTime::now())?;
    let slot = IdentitySlot::new(identity);
    let folder = dir.join(name).join("artifacts");
    let store = Arc::new(ArtifactStore::open(folder, StoreOptions::default())?);
    let peers = std::fs::read_to_string(dir.join("peers"))?;
    let pairs = peers.lines().filter_map(|line| line.split_once('='));
    let addresses: BTreeMap<String, String> =
        pairs.map(|(name, at)| (name.to_owned(), at.to_owned())).collect();
    let tracking = Tracking {
        tracker: Tracker::default(),
        dir: dir.clone(),
        name: name.to_owned(),
        addresses: addresses.clone(),
    };
    let router = Router::new().route(TRANSFER, post(transfer)).with_state(Arc::new(tracking));
    let bulk = bulk_router(Arc::clone(&store), ServeLimits::default());
    let routes =
        BTreeMap::from([(Alpn::Bulk, Handler::Http(bulk)), (Alpn::Control, Handler::Http(router))]);
    let listener = TcpListener::bind(listen).await?;
    let stop = CancellationToken::new();
    let limits = ServerLimits::default();
    tokio::spawn(serve(
        listener,
        Arc::clone(&slot),
        ClientAuth::Required,
        routes,
        limits,
        stop.clone(),
    ));
    let client = Client::new(slot);
    let (guides, counters) = (Arc::new(Guides::default()), Arc::new(ByteCounters::default()));
    let downloads = Arc::new(Downloads::new(FetchContext {
        store,
        mirrors: Arc::new(MirrorList::new(&[url])?),
        peers: Arc::new(WirePeers::new(client.clone())),
        limits: Arc::new(Limits::default()),
        counters,
        download: Arc::default(),
        guides: Some(Arc::clone(&guides)),
    }));
    let group: GroupId = "bench.zone".parse()?;
    let calls = Arc::new(Leader { dir: dir.clone(), client, addresses });
    tokio::spawn(follow(Arc::clone(&downloads), guides, group, 1, calls, stop.clone()));
    std::fs::write(dir.join(format!("ready-{name}")), "")?;
    while !dir.join("go").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let root = std::fs::read_to_string(dir.join("root"))?;
    let (root, length) = root.split_once(' ').ok_or("root")?;
    let release = Release {
        version: "1.0.0".parse()?,
        platform: "linux/amd64".parse()?,
        artifact: root.parse()?,
        manifest: "0".repeat(64).parse()?,
        length: length.parse()?,
        rollback: Rollback::Revert,
    };
    let sources: Vec<Source> = Vec::new();
    let order = FetchOrder { release: release.clone(), from_mirror: false, sources };
    downloads.set_orders(&[order]);
    let mut statuses = downloads.statuses();
    let whole =
        |all: &BTreeMap<_, FetchStatus>| all.get(&release.artifact) == Some(&FetchStatus::Held);
    statuses.wait_for(whole).await?;
    let at = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    std::fs::write(dir.join(format!("done-{name}.part")), at.to_string())?;
    std::fs::rename(dir.join(format!("done-{name}.part")), dir.join(format!("done-{name}")))?;
    // The others may still need it.
    std::future::pending::<()>().await;
    Ok(())
}
