//! nginx from the distribution's packages, before and behind a cache.
//!
//! `cargo xtask test` installs it. If it is missing, these tests report a skip.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{DEADLINE, Origin, Running, Sample, UNIT, config, quick};

/// An nginx that stops when dropped.
struct Nginx {
    url: String,
    child: Child,
}

impl Nginx {
    /// Starts one with this content of a `server { }`; `None` if nginx is not installed.
    async fn start(dir: &Path, server: &str) -> Option<Self> {
        // Free now; if another process takes it in between, the start fails, but the test is not
        // wrong.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        fs::create_dir_all(dir).unwrap();
        let at = dir.display();
        let text = format!(
            "daemon off; master_process off; worker_processes 1; pid {at}/pid;
             error_log {at}/error.log;
             events {{ worker_connections 512; }}
             http {{
                 access_log {at}/access.log;
                 client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;
                 fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi;
                 scgi_temp_path {at}/scgi;
                 proxy_cache_path {at}/kept keys_zone=cohort:1m;
                 server {{ listen 127.0.0.1:{port}; {server} }}
             }}"
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, text).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir).arg("-c").arg(&file).stdin(Stdio::null());
        let Ok(child) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
            assert!(std::env::var("CI").is_err(), "nginx is missing: install nginx-light");
            eprintln!("nginx is not installed: nothing is tested with it");
            return None;
        };
        let nginx = Self { url: format!("http://127.0.0.1:{port}"), child };
        let begun = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(begun.elapsed() < DEADLINE, "nginx does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Some(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn repository(dir: &Path, sample: &Sample) {
    for folder in ["blobs", "metadata"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    fs::write(dir.join(sample.path().trim_start_matches('/')), &sample.bytes).unwrap();
    fs::write(dir.join(sample.units_path().trim_start_matches('/')), sample.hashes.to_bytes())
        .unwrap();
    fs::write(dir.join("metadata/timestamp.json"), "one").unwrap();
    // Started by root, nginx's workers run as another user.
    open_to_all(dir);
}

fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    if let Some(above) = dir.parent() {
        fs::set_permissions(above, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[tokio::test]
async fn nginx_is_an_origin() {
    let sample = Sample::new("nginx", 40 * UNIT + 77);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repository");
    fs::create_dir(&root).unwrap();
    repository(&root, &sample);
    let server = format!("root {};", root.display());
    let Some(nginx) = Nginx::start(&dir.path().join("nginx"), &server).await else { return };
    let mut config = config(dir.path(), &[], quick());
    config.origins = vec![nginx.url.clone()];
    let cache = Running::start(config).await;
    cache.assert_gives(&sample).await;
    cache.assert_gives(&sample).await;
    assert_eq!(cache.metric("misses_total").await, 41);
    assert_eq!(cache.get("/metadata/timestamp.json").await.1.unwrap(), "one");
    let before = cache.metric("origin_bytes_total").await;
    assert_eq!(cache.get("/metadata/timestamp.json").await.1.unwrap(), "one");
    let after = cache.metric("origin_bytes_total").await;
    assert_eq!(after, before, "nginx only said that it is still the same");
    assert_eq!(cache.get("/metadata/2.root.json").await.0, 404);
    fs::write(root.join("metadata/timestamp.json"), "newer").unwrap();
    assert_eq!(cache.get("/metadata/timestamp.json").await.1.unwrap(), "newer");
}

#[tokio::test]
async fn nginx_is_a_cache_before_and_behind() {
    let sample = Sample::new("both", 40 * UNIT + 77);
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path());
    let origin = Origin::start(&[&sample]);
    origin.put("/metadata/timestamp.json", "one");
    // As in docs/operating.md: artifacts in slices, metadata never from the cache.
    let proxy = |to: &str| {
        format!(
            "location /blobs/ {{
                 slice 1m; proxy_cache cohort; proxy_cache_key $uri$slice_range;
                 proxy_set_header Range $slice_range; proxy_http_version 1.1;
                 proxy_cache_valid 200 206 30d; proxy_cache_lock on;
                 proxy_pass {to};
             }}
             location / {{ proxy_pass {to}; }}"
        )
    };
    // Without the path, which nginx would substitute for the location's.
    let origin_url = origin.url.trim_end_matches("/r");
    let behind_dir = dir.path().join("behind");
    let Some(behind) = Nginx::start(&behind_dir, &proxy(origin_url)).await else { return };
    let mut config = config(dir.path(), &[], quick());
    config.origins = vec![behind.url.clone()];
    let mut cache = Running::start(config).await;
    let before_dir = dir.path().join("before");
    let before = Nginx::start(&before_dir, &proxy(&cache.url)).await.unwrap();
    let direct = std::mem::replace(&mut cache.url, before.url.clone());
    for _ in 0..2 {
        cache.assert_gives(&sample).await;
        let range = format!("bytes={}-", 17 * UNIT + 3);
        let answer = cache.send(&sample.path(), &[("range", &range)]).await;
        assert_eq!(answer.status(), 206);
        assert!(answer.bytes().await.unwrap() == sample.bytes[17 * UNIT + 3..]);
    }
    assert_eq!(cache.get("/metadata/timestamp.json").await.1.unwrap(), "one");
    origin.put("/metadata/timestamp.json", "two");
    assert_eq!(cache.get("/metadata/timestamp.json").await.1.unwrap(), "two");
    cache.url = direct;
    assert_eq!(cache.metric("misses_total").await, 41, "each unit came once");
    let served = cache.metric("served_bytes_total").await;
    assert!(served < sample.bytes.len() as u64 * 2, "nginx keeps as well: {served}");
}
