//! Routes with the roles that may use them, and their table.

use std::convert::Infallible;
use std::fmt::{self, Write as _};

use axum::Router;
use axum::extract::Request;
use axum::handler::Handler;
use axum::middleware::{self, Next};
use axum::response::IntoResponse as _;
use axum::routing::{MethodFilter, MethodRouter, on};
use cohort_identity::{Peer, Role};
use http::Method;

use super::caller::allow;
use super::error::ApiError;

/// Who may use an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Any client, also without a certificate.
    Anyone,
    /// Certificates of these roles.
    Roles(&'static [Role]),
}

impl Who {
    /// Whether a client may use it; `None`: without a certificate.
    #[must_use]
    pub fn admits(self, role: Option<Role>) -> bool {
        match (self, role) {
            (Who::Anyone, _) => true,
            (Who::Roles(roles), Some(role)) => roles.contains(&role),
            (Who::Roles(_), None) => false,
        }
    }
}

/// A method and a path, and who may use them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub method: Method,
    /// A pattern, such as `/v1/servers/{server}`.
    pub path: String,
    pub who: Who,
}

/// The endpoints of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints(pub Vec<Endpoint>);

impl fmt::Display for Endpoints {
    /// One line per endpoint: for each role, least privileged first, a letter or a dot.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Endpoint { method, path, who } in &self.0 {
            let mut roles = String::new();
            for role in std::iter::once(None).chain(Role::ALL.map(Some)) {
                let name = role.map_or("anyone", Role::as_str);
                let shown = if who.admits(role) { name } else { "." };
                write!(roles, " {shown:width$}", width = name.len())?;
            }
            let method = method.as_str();
            let line = format!("{method:<6} {path:<32}{roles}");
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Builds a router whose every route says who may use it. Others are refused before anything of
/// their request but its head is read.
#[derive(Debug)]
pub struct Routes<S> {
    router: Router<S>,
    endpoints: Vec<Endpoint>,
}

impl<S: Clone + Send + Sync + 'static> Default for Routes<S> {
    fn default() -> Self {
        Routes { router: Router::new(), endpoints: Vec::new() }
    }
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// Adds a route.
    #[must_use]
    pub fn add<H, T>(mut self, method: &Method, path: &str, who: Who, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        let filter = MethodFilter::try_from(method.clone()).expect("a method of HTTP/1.1");
        let mut route: MethodRouter<S, Infallible> = on(filter, handler);
        if let Who::Roles(roles) = who {
            let guard = move |request: Request, next: Next| async move {
                let allowed = match request.extensions().get::<Peer>() {
                    Some(peer) => allow(peer, roles),
                    None => Err(ApiError::unauthenticated()),
                };
                match allowed {
                    Ok(()) => next.run(request).await,
                    Err(error) => error.into_response(),
                }
            };
            route = route.route_layer(middleware::from_fn(guard));
        }
        self.router = self.router.route(path, route);
        self.endpoints.push(Endpoint { method: method.clone(), path: path.to_owned(), who });
        self
    }

    /// Adds a route for `GET`.
    #[must_use]
    pub fn get<H: Handler<T, S>, T: 'static>(self, path: &str, who: Who, handler: H) -> Self {
        self.add(&Method::GET, path, who, handler)
    }

    /// Adds a route for `POST`.
    #[must_use]
    pub fn post<H: Handler<T, S>, T: 'static>(self, path: &str, who: Who, handler: H) -> Self {
        self.add(&Method::POST, path, who, handler)
    }

    /// The router, and the table of what it serves.
    pub fn build(self) -> (Router<S>, Endpoints) {
        (self.router, Endpoints(self.endpoints))
    }
}
