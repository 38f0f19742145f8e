use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::{ClientLimits, Content, FetchError, Mirror, MirrorClient, Wanted};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(100);

/// A server on loopback that sends the given bytes for each path, including the head.
struct Server {
    address: SocketAddr,
    answers: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// Request lines with the headers that matter here.
    log: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Arc::new(Mutex::new(BTreeMap::<String, Vec<u8>>::new()));
        let log = Arc::new(Mutex::new(Vec::new()));
        let (given, heard) = (Arc::clone(&answers), Arc::clone(&log));
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut lines = BufReader::new(&mut stream).lines();
                let mut request = Vec::new();
                while let Some(line) = lines.next_line().await.unwrap().filter(|l| !l.is_empty()) {
                    request.push(line);
                }
                let path = request[0].split(' ').nth(1).unwrap().to_owned();
                heard.lock().push(request.join("\n"));
                let answer = given.lock().get(&path).cloned();
                stream.write_all(&answer.unwrap_or_else(|| head(404, &[]))).await.unwrap();
                // Silence, not an end: a client that waits for more keeps waiting.
                open.push(stream);
            }
        });
        Self { address, answers, log, _task: AbortOnDropHandle::new(task) }
    }

    fn put(&self, path: &str, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        let mut answer = head(status, headers);
        answer.extend_from_slice(body);
        self.answers.lock().insert(path.to_owned(), answer);
    }

    fn mirror(&self) -> Mirror {
        format!("http://{}/r", self.address).parse().unwrap()
    }

    fn requests(&self) -> Vec<String> {
        self.log.lock().clone()
    }
}

fn head(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !headers.iter().any(|(name, _)| *name == "content-length") {
        text += "content-length: 0\r\n";
    }
    (text + "\r\n").into_bytes()
}

fn patient() -> MirrorClient {
    let limits = ClientLimits { connect: LONG, first_byte: LONG, idle: LONG, file: LONG };
    MirrorClient::new(limits).unwrap()
}

fn is_connection(error: &FetchError, cause: &str) -> bool {
    let FetchError::Connection(source) = error else { return false };
    format!("{source:?}").contains(cause)
}

#[tokio::test]
async fn redirects_lead_to_other_hosts_and_take_no_secrets_along() {
    let (near, far) = (Server::start().await, Server::start().await);
    far.put("/x/a?signed=1", 200, &[("content-length", "3")], b"far");
    near.put("/r/hop?token=t", 302, &[("location", "/r/far")], b"");
    near.put("/r/far", 307, &[("location", &format!("http://{}/x/a?signed=1", far.address))], b"");
    let url = format!("http://user:secret@{}/r?token=t", near.address);
    let mirror: Mirror = url.parse().unwrap();
    assert_eq!(patient().fetch(&mirror, "hop", 3).await.unwrap(), "far");
    assert!(near.requests()[0].to_lowercase().contains("authorization: basic"));
    let there = far.requests().concat().to_lowercase();
    assert!(!there.contains("authorization") && !there.contains("token"), "{there}");
    assert!(!there.contains("referer"), "{there}");
}

#[tokio::test]
async fn redirects_end() {
    let server = Server::start().await;
    server.put("/r/circle", 302, &[("location", "/r/back")], b"");
    server.put("/r/back", 302, &[("location", "/r/circle")], b"");
    for hop in 0..7 {
        let next = format!("/r/{}", hop + 1);
        server.put(&format!("/r/{hop}"), 302, &[("location", &next)], b"");
    }
    server.put("/r/7", 200, &[], b"");
    let (client, mirror) = (patient(), server.mirror());
    let error = client.fetch(&mirror, "circle", 9).await.unwrap_err();
    assert!(is_connection(&error, "Circle"), "{error:?}");
    let error = client.fetch(&mirror, "0", 9).await.unwrap_err();
    assert!(is_connection(&error, "TooMany"), "{error:?}");
    assert!(client.fetch(&mirror, "2", 9).await.unwrap().is_empty());
}

#[tokio::test]
async fn absent_is_not_empty_and_not_refused() {
    let server = Server::start().await;
    let xml = |code: &str| format!("<?xml?><Error><Code>{code}</Code></Error>");
    let put = |path: &str, status: u16, body: &str| {
        let length = body.len().to_string();
        let headers = [("content-length", length.as_str()), ("content-type", "application/xml")];
        server.put(path, status, &headers, body.as_bytes());
    };
    put("/r/gone", 410, "");
    put("/r/forbidden", 403, "");
    put("/r/unlisted", 403, &xml("AccessDenied"));
    put("/r/key", 403, &xml("SignatureDoesNotMatch"));
    put("/r/object", 404, &xml("NoSuchKey"));
    put("/r/bucket", 404, &xml("NoSuchBucket"));
    put("/r/login", 401, "");
    put("/r/nothing", 204, "");
    put("/r/broken", 500, "");
    put("/r/empty", 200, "");
    let (client, mirror) = (patient(), server.mirror());
    for path in ["missing", "gone", "forbidden", "unlisted", "object"] {
        let result = client.fetch(&mirror, path, 9).await;
        assert!(matches!(result, Err(FetchError::Absent)), "{path}: {result:?}");
    }
    for (path, expected, name) in [
        ("key", 403, Some("SignatureDoesNotMatch")),
        ("bucket", 404, Some("NoSuchBucket")),
        ("login", 401, None),
        ("nothing", 204, None),
        ("broken", 500, None),
    ] {
        let result = client.fetch(&mirror, path, 9).await;
        let Err(FetchError::Status { status, code }) = result else { panic!("{path}: {result:?}") };
        assert_eq!((status.as_u16(), code.as_deref()), (expected, name), "{path}");
    }
    assert!(client.fetch(&mirror, "empty", 9).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_query_of_a_mirror_goes_with_every_request() {
    let server = Server::start().await;
    server.put("/r/deep/a?sv=1&sig=s", 200, &[("content-length", "1")], b"a");
    let url = format!("http://user:secret@{}/r?sv=1&sig=s", server.address);
    let mirror: Mirror = url.parse().unwrap();
    assert_eq!(patient().fetch(&mirror, "deep/a", 9).await.unwrap(), "a");
    assert_eq!(mirror.to_string(), format!("http://{}/r/", server.address), "no secrets");
    let refused = MirrorClient::new(ClientLimits { first_byte: SHORT, ..ClientLimits::default() });
    drop(server);
    let error = refused.unwrap().fetch(&mirror, "deep/a", 9).await.unwrap_err();
    assert!(!format!("{error:?}").contains("sig"), "{error:?}");
}

#[tokio::test]
async fn busy_tells_for_how_long() {
    let server = Server::start().await;
    server.put("/r/a", 503, &[("retry-after", "7")], b"");
    server.put("/r/b", 429, &[("retry-after", "Sat, 21 Nov 2026 07:00:00 GMT")], b"");
    for (path, seconds) in [("a", 7), ("b", 1)] {
        let result = patient().fetch(&server.mirror(), path, 9).await;
        let Err(FetchError::Busy { retry_after }) = result else { panic!("{result:?}") };
        assert_eq!(retry_after, Duration::from_secs(seconds));
    }
}

#[tokio::test]
async fn silence_is_cut_off() {
    let server = Server::start().await;
    server.put("/r/half", 200, &[("content-length", "9")], b"half");
    server.answers.lock().insert("/r/mute".to_owned(), Vec::new());
    let limits = ClientLimits { connect: LONG, first_byte: LONG, idle: SHORT, file: LONG };
    let client = MirrorClient::new(limits).unwrap();
    let error = client.fetch(&server.mirror(), "half", 9).await.unwrap_err();
    assert!(matches!(error, FetchError::TimedOut { what: "byte", .. }), "{error:?}");
    for limits in [
        ClientLimits { first_byte: SHORT, idle: LONG, ..limits },
        ClientLimits { file: SHORT, idle: LONG, ..limits },
    ] {
        let client = MirrorClient::new(limits).unwrap();
        let error = client.fetch(&server.mirror(), "mute", 9).await.unwrap_err();
        assert!(matches!(error, FetchError::TimedOut { .. }), "{error:?}");
    }
    let mut answer = client.get(&server.mirror(), "half", &Wanted::default()).await.unwrap();
    assert_eq!(answer.at_most(3, LONG).await.unwrap(), "hal");
    let error = answer.at_most(3, SHORT / 2).await.unwrap_err();
    assert!(matches!(error, FetchError::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn bodies_have_a_longest_length() {
    let server = Server::start().await;
    server.put("/r/announced", 200, &[("content-length", "10")], b"0123456789");
    let chunked = [("transfer-encoding", "chunked"), ("content-length", "")];
    let raw = String::from_utf8(head(200, &chunked)).unwrap().replace("content-length: \r\n", "");
    let endless = raw + "a\r\n0123456789\r\na\r\n0123456789\r\n";
    server.answers.lock().insert("/r/endless".to_owned(), endless.into_bytes());
    let (client, mirror) = (patient(), server.mirror());
    assert_eq!(client.fetch(&mirror, "announced", 10).await.unwrap().len(), 10);
    let folder = tempfile::tempdir().unwrap();
    for path in ["announced", "endless"] {
        let error = client.fetch(&mirror, path, 9).await.unwrap_err();
        assert!(matches!(error, FetchError::TooLarge { limit_bytes: 9 }), "{path}: {error:?}");
        let mut into = tokio::fs::File::create(folder.path().join(path)).await.unwrap();
        let error = client.fetch_to(&mirror, path, 9, &mut into).await.unwrap_err();
        assert!(matches!(error, FetchError::TooLarge { limit_bytes: 9 }), "{path}: {error:?}");
    }
}

#[tokio::test]
async fn a_part_is_the_one_asked_for() {
    let server = Server::start().await;
    let ten = ("content-length", "10");
    let put = |path: &str, range: &str| {
        server.put(path, 206, &[ten, ("content-range", range)], b"0123456789");
    };
    put("/r/right", "bytes 10-19/40");
    put("/r/unknown", "bytes 10-19/*");
    put("/r/end", "bytes 10-19/20");
    put("/r/earlier", "bytes 9-18/40");
    put("/r/short", "bytes 10-18/40");
    put("/r/long", "bytes 10-20/40");
    put("/r/none", "units 1-2");
    put("/r/lengths", "bytes 10-14/15");
    server.put("/r/whole", 200, &[ten], b"0123456789");
    server.put("/r/beyond", 416, &[("content-range", "bytes */3")], b"");
    let (client, mirror) = (patient(), server.mirror());
    let ask = async |path: &'static str, first, last| {
        let wanted = Wanted { range: Some((first, last)), ..Wanted::default() };
        client.get(&mirror, path, &wanted).await.map(|answer| answer.content)
    };
    let part = |total| Content::Part { first: 10, last: 19, total };
    assert_eq!(ask("right", 10, 19).await.unwrap(), part(Some(40)));
    assert_eq!(ask("unknown", 10, 19).await.unwrap(), part(None));
    assert_eq!(ask("end", 10, 29).await.unwrap(), part(Some(20)));
    assert!(server.requests()[0].contains("range: bytes=10-19"));
    for path in ["earlier", "short", "long", "none", "lengths"] {
        let error = ask(path, 10, 19).await.unwrap_err();
        assert!(matches!(error, FetchError::WrongRange { .. }), "{path}: {error:?}");
    }
    assert!(matches!(ask("whole", 10, 19).await, Err(FetchError::RangeIgnored)));
    assert_eq!(ask("whole", 0, 9).await.unwrap(), Content::Whole);
    let Err(FetchError::Status { status, .. }) = ask("beyond", 10, 19).await else { panic!() };
    assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
}

#[tokio::test]
async fn a_copy_that_is_the_same_is_not_sent_again() {
    let server = Server::start().await;
    server.put("/r/a", 304, &[("etag", "\"1\"")], b"");
    let (client, mirror) = (patient(), server.mirror());
    let wanted = Wanted { etag: Some("\"1\""), modified: Some("then"), ..Wanted::default() };
    let answer = client.get(&mirror, "a", &wanted).await.unwrap();
    assert_eq!((answer.content, answer.etag.as_deref()), (Content::Unchanged, Some("\"1\"")));
    let asked = server.requests().concat();
    assert!(asked.contains("if-none-match: \"1\"") && !asked.contains("if-modified-since"));
    let by_time = Wanted { modified: Some("then"), ..Wanted::default() };
    let _ = client.get(&mirror, "a", &by_time).await.unwrap();
    assert!(server.requests().concat().contains("if-modified-since: then"));
    // The client did not ask whether it had changed.
    let result = client.get(&mirror, "a", &Wanted::default()).await;
    assert!(matches!(result, Err(FetchError::Status { .. })));
}

#[tokio::test]
async fn a_folder_is_a_mirror() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("blobs")).unwrap();
    std::fs::write(folder.path().join("blobs/a"), "0123456789").unwrap();
    let url = format!("file://{}", folder.path().display());
    let (client, mirror): (_, Mirror) = (patient(), url.parse().unwrap());
    assert_eq!(mirror, folder.path().to_str().unwrap().parse().unwrap());
    assert_eq!(client.fetch(&mirror, "blobs/a", 10).await.unwrap(), "0123456789");
    let error = client.fetch(&mirror, "blobs/a", 9).await.unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { .. }), "{error:?}");
    for path in ["blobs", "blobs/b", "blobs/a/c"] {
        let error = client.fetch(&mirror, path, 9).await.unwrap_err();
        assert!(matches!(error, FetchError::Absent), "{path}: {error:?}");
    }
    let wanted = Wanted { range: Some((7, 99)), ..Wanted::default() };
    let mut answer = client.get(&mirror, "blobs/a", &wanted).await.unwrap();
    assert_eq!(answer.content, Content::Part { first: 7, last: 9, total: Some(10) });
    assert_eq!(answer.rest(99, LONG).await.unwrap(), "789");
    let wanted = Wanted { range: Some((10, 11)), ..Wanted::default() };
    let result = client.get(&mirror, "blobs/a", &wanted).await;
    assert!(matches!(result, Err(FetchError::WrongRange { .. })));
}

#[test]
fn only_addresses_of_files_are_mirrors() {
    let hubs =
        ["cohort://hub", "cohort://hub:0", "cohort://u@hub:1", "cohort://hub:1/x", "cohort://"];
    for bad in ["", "mirror", "ftp://a.test/", "http://a/#f", "s3://bucket"].iter().chain(&hubs) {
        assert!(bad.parse::<Mirror>().is_err(), "{bad}");
    }
    let shown = |text: &str| text.parse::<Mirror>().unwrap().to_string();
    assert_eq!(shown("https://user:secret@a.test/deep?sig=s"), "https://a.test/deep/");
    assert_eq!(shown("/srv/mirror"), "/srv/mirror");
    for hub in ["cohort://hub.test:7418/", "cohort://[fd00::1]:7418/", "cohort://hub.test:443/"] {
        assert_eq!(shown(hub), hub);
        assert_eq!(shown(hub.trim_end_matches('/')), hub);
    }
}

#[test]
fn an_address_that_is_refused_is_shown_without_its_secrets() {
    for text in [
        "https://user:s3cret@a.test/deep#?sig=s3cret",
        "https://a.test:port/deep?sig=s3cret",
        "https://user:s3/s3cret@a.test:port/",
        "ftp://user:s3cret@a.test/?sig=s3cret",
        "s3://key:s3cret@bucket/prefix?sig=s3cret",
        "user:s3cret@a.test/deep",
        "https://user:s3cret?x@a.test/deep",
        "a.test/deep?sig=s3cret",
        "https://?sig=s3cret",
    ] {
        let error = text.parse::<Mirror>().unwrap_err();
        let shown = format!("{} {error:?}", cohort_base::chain(&error));
        assert!(!shown.contains("s3cret"), "{shown}");
    }
    let mirror: Mirror = "https://user:s3cret@a.test/?sig=s3cret".parse().unwrap();
    assert!(!format!("{mirror:?}").contains("s3cret"));
}
