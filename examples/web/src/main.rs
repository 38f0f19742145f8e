//! The small web service that the demo deploys: `--port N`; `/`, `/version`, `/healthz`, `/say`.
//!
//! Its version, text and faults come from `release.toml` in its own release. It prints a line when
//! it starts to listen and one when it stops, with the boot-time clock, so that tests can tell when
//! each server was in service; and one for each request of `/say`.

mod release;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use release::Release;

const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Timeout for one client.
const CLIENT_MAX: Duration = Duration::from_secs(5);

const CLIENTS_MAX: usize = 128;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match serve().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cohort-example-web: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Site {
    release: Release,
    platform: String,
}

async fn serve() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let port = port()?;
    let release = Release::read()?;
    let platform = std::env::var("COHORT_PLATFORM").unwrap_or_default();
    let site = Arc::new(Site { release, platform });
    let faults = &site.release.faults;
    let mut terminate = signal(SignalKind::terminate())?;
    if let Some(ms) = faults.slow_start_ms(&site.platform) {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(ms)) => {}
            _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        }
    }
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let listener =
        TcpListener::bind(address).await.map_err(|error| format!("{address}: {error}"))?;
    say("start", &site);
    let die_after = faults.die_after_ms(&site.platform);
    let dying = async {
        match die_after {
            Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            None => std::future::pending().await,
        }
    };
    let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
    tokio::select! {
        () = accept(listener, &site, &clients) => Ok(ExitCode::FAILURE),
        () = dying => {
            say("die", &site);
            Ok(ExitCode::from(3))
        }
        _ = terminate.recv() => {
            say("stop", &site);
            // Accept no new clients; let connected ones finish.
            let all = clients.acquire_many(CLIENTS_MAX as u32);
            let _late = tokio::time::timeout(Duration::from_secs(1), all).await;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn port() -> Result<u16, String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [flag, port] if flag == "--port" => {
            port.parse().map_err(|_| format!("invalid port `{port}`"))
        }
        _ => Err("usage: cohort-example-web --port PORT".to_owned()),
    }
}

fn say(event: &str, site: &Site) {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let ms = now.tv_sec * 1000 + now.tv_nsec / 1_000_000;
    println!("boot_ms={ms} event={event} version={}", site.release.version);
}

async fn accept(listener: TcpListener, site: &Arc<Site>, clients: &Arc<Semaphore>) {
    loop {
        let Ok(permit) = Arc::clone(clients).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let site = Arc::clone(site);
                tokio::spawn(async move {
                    let _late = tokio::time::timeout(CLIENT_MAX, answer(stream, &site)).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn answer(mut stream: TcpStream, site: &Site) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut buffer = [0; 1024];
        let count = stream.read(&mut buffer).await?;
        if count == 0 || head.len() + count > HEAD_BYTES_MAX {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..count]);
    }
    let Site { release, platform } = site;
    if release.faults.hang(platform) {
        std::future::pending::<()>().await;
    }
    let head = String::from_utf8_lossy(&head);
    let (status, body) = match head.split(' ').nth(1).unwrap_or_default() {
        "/" => ("200 OK", format!("{}\n", release.body)),
        "/version" => ("200 OK", format!("{}\n", release.version)),
        "/say" => {
            say("asked", site);
            ("200 OK", String::new())
        }
        "/healthz" if release.faults.unhealthy(platform) => (
            "500 Internal Server Error",
            format!("release {} is broken on {platform}\n", release.version),
        ),
        "/healthz" => ("200 OK", "ok\n".to_owned()),
        _ => ("404 Not Found", "not found\n".to_owned()),
    };
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}
