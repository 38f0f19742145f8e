//! How the object-store library sends its requests: with the HTTP client, TLS and roots that all of
//! Cohort uses, so that it does not bring its own.

use std::time::Duration;

use async_trait::async_trait;
use cohort_base::Cause;
use http_body_util::BodyExt as _;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};

/// Metadata services of clouds, which issue credentials. Not retried: outside of clouds, nothing
/// responds at these addresses.
const MACHINE_ADDRESSES: [&str; 3] =
    ["169.254.169.254", "169.254.170.2", "metadata.google.internal"];

/// Longest wait for a metadata service.
const MACHINE_TIME_MAX: Duration = Duration::from_secs(3);

/// Longest time to connect to a store.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// Longest wait for a response, on top of the time to send the request.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

/// Slowest upload that is not aborted, in bytes per second: four parts at a time fit through 1
/// Mbit/s.
const SENT_BYTES_PER_S_MIN: u64 = 32 << 10;

/// There are no credentials in the environment, and the metadata service has none.
#[derive(Debug, thiserror::Error)]
#[error("no credentials in the environment, and none from {machine}")]
pub(super) struct NoCredentials {
    machine: String,
    #[source]
    source: Cause,
}

/// Makes clients for the library of object stores.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    client: reqwest::Client,
    /// For metadata services, which are not reachable through a proxy.
    machine: reqwest::Client,
}

impl Connector {
    pub(super) fn new() -> reqwest::Result<Self> {
        let builder = || {
            reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .user_agent(concat!("cohort/", env!("CARGO_PKG_VERSION")))
        };
        let client = builder().connect_timeout(CONNECT_TIME_MAX).build()?;
        let machine = builder().timeout(MACHINE_TIME_MAX).no_proxy().build()?;
        Ok(Self { client, machine })
    }

    /// Queries a metadata service. A refusal is final.
    async fn ask_machine(
        &self,
        name: String,
        request: reqwest::Request,
    ) -> Result<reqwest::Response, HttpError> {
        let none = |source| {
            let machine = name.clone();
            HttpError::new(HttpErrorKind::Unknown, NoCredentials { machine, source })
        };
        let answer = self.machine.execute(request).await;
        let answer = answer.map_err(|error| none(error.without_url().into()))?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            status => Err(none(format!("it answers with status {status}").into())),
        }
    }
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
        let sending = Duration::from_secs(length / SENT_BYTES_PER_S_MIN);
        *request.timeout_mut() = Some(ANSWER_TIME_MAX + sending);
        let answer = match machine {
            Some(name) => self.ask_machine(name, request).await?,
            None => self.client.execute(request).await.map_err(transport)?,
        };
        let (parts, body) = http::Response::<reqwest::Body>::from(answer).into_parts();
        let body = HttpResponseBody::new(body.map_err(transport));
        Ok(HttpResponse::from_parts(parts, body))
    }
}

/// Classifies an error for the library's retries, without the URL, which may be signed.
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
