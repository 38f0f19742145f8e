//! How object stores are asked: by the same HTTP client, TLS and roots as any other origin, so that
//! the library of object stores brings no second one.

use std::time::Duration;

use async_trait::async_trait;
use http::StatusCode;
use http_body_util::BodyExt as _;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};

use crate::origins::retry_after;

/// Where machines in clouds ask who they are. Not to be tried again and again: elsewhere nobody
/// answers there.
const MACHINE_ADDRESSES: [&str; 3] =
    ["169.254.169.254", "169.254.170.2", "metadata.google.internal"];

/// How long a machine may take to say who it is.
const MACHINE_TIME_MAX: Duration = Duration::from_secs(3);

/// How long a store may take for an answer while pushing, when nothing has to be sent first.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

/// The slowest line that a request's body is waited for, in bytes per second: four parts at once
/// get through 1 Mbit/s.
const SENT_BYTES_PER_S_MIN: u64 = 32 << 10;

/// The store wants to be left alone.
#[derive(Debug, thiserror::Error)]
#[error("busy for {} ms", .0.as_millis())]
pub(super) struct Busy(pub(super) Duration);

/// There are no credentials, and the machine has none for us.
#[derive(Debug, thiserror::Error)]
#[error("there are no credentials: not in the environment, and {machine} has none: {reason}")]
pub(super) struct NoCredentials {
    machine: String,
    reason: String,
}

/// Makes clients for the library of object stores.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    client: reqwest::Client,
    /// For the machine's own addresses, which no proxy reaches.
    machine: reqwest::Client,
    tells_busy: bool,
}

impl Connector {
    /// One whose user tries again when the store is busy.
    pub(super) fn that_waits(client: reqwest::Client) -> reqwest::Result<Self> {
        Ok(Self { client, machine: machine()?, tells_busy: false })
    }

    /// One that tells how long the store wants to be left alone ([`Busy`]).
    pub(super) fn that_tells(client: reqwest::Client) -> reqwest::Result<Self> {
        Ok(Self { client, machine: machine()?, tells_busy: true })
    }

    /// Asks the machine who it is. What it refuses is final: it will not know more in a second.
    async fn ask_machine(
        &self,
        name: String,
        request: reqwest::Request,
    ) -> Result<reqwest::Response, HttpError> {
        let none = |reason: String| {
            let machine = name.clone();
            HttpError::new(HttpErrorKind::Unknown, NoCredentials { machine, reason })
        };
        let answer = self.machine.execute(request).await;
        let answer = answer.map_err(|error| none(error.without_url().to_string()))?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            status => Err(none(format!("it answers with status {status}"))),
        }
    }
}

fn machine() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .timeout(MACHINE_TIME_MAX)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let url = url::Url::parse(&parts.uri.to_string());
        let url = url.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let machine = url.host_str().filter(|host| MACHINE_ADDRESSES.contains(host));
        let machine = machine.map(str::to_owned);
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        let length = body.content_length() as u64;
        if length > 0 {
            *request.body_mut() = Some(reqwest::Body::wrap(body));
        }
        // A cache knows itself how long to wait.
        if !self.tells_busy {
            let sending = Duration::from_secs(length / SENT_BYTES_PER_S_MIN);
            *request.timeout_mut() = Some(ANSWER_TIME_MAX + sending);
        }
        let answer = match machine {
            Some(name) => self.ask_machine(name, request).await?,
            None => self.client.execute(request).await.map_err(transport)?,
        };
        let busy = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
        if self.tells_busy && busy.contains(&answer.status()) {
            let busy = Busy(retry_after(answer.headers()));
            return Err(HttpError::new(HttpErrorKind::Unknown, busy));
        }
        let (parts, body) = http::Response::<reqwest::Body>::from(answer).into_parts();
        let body = HttpResponseBody::new(body.map_err(transport));
        Ok(HttpResponse::from_parts(parts, body))
    }
}

/// Says of an error whether trying again may help. The URL may be signed, and is left out.
fn transport(error: reqwest::Error) -> HttpError {
    let kind = if error.is_connect() {
        HttpErrorKind::Connect
    } else if error.is_timeout() {
        HttpErrorKind::Timeout
    } else if error.is_request() || error.is_body() || error.is_decode() {
        HttpErrorKind::Interrupted
    } else {
        HttpErrorKind::Unknown
    };
    HttpError::new(kind, error.without_url())
}
