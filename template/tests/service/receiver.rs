//! A server that the service calls: it records what it is sent, and answers as the test tells it to.

use crate::process::PATIENCE;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::IntoResponse;
use serde_json::Value;
use service::lifecycle::Stop;
use service::server::{self, InFlight, Limits};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Longer than any test waits.
const LIMITS: Limits =
    Limits { header_read: PATIENCE, idle: PATIENCE, stalled_write: PATIENCE, max_connections: 100 };

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a body of JSON")
    }
}

/// The server. It ends with the test.
#[derive(Debug)]
pub struct Receiver {
    /// `http://host:port`, without a path.
    pub url: String,
    /// `host:port`.
    pub address: String,
    calls: watch::Sender<Vec<Call>>,
    answer: watch::Sender<Option<StatusCode>>,
    serving: AbortHandle,
}

impl Receiver {
    /// A server that answers 204.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (calls, answer) = (watch::Sender::default(), watch::Sender::new(Some(StatusCode::NO_CONTENT)));
        let router = Router::new().fallback(take).with_state((calls.clone(), answer.clone()));
        let serving = server::serve(listener, router, LIMITS, InFlight::default(), Stop::default());
        let serving = tokio::spawn(serving).abort_handle();
        Self { url: format!("http://{address}"), address, calls, answer, serving }
    }

    /// Sets the status that calls are answered with from now on. With none, they wait until this changes.
    pub fn answers(&self, status: impl Into<Option<u16>>) {
        let code = |status: u16| StatusCode::from_u16(status).expect("a status code");
        self.answer.send_replace(status.into().map(code));
    }

    /// All calls, once there are at least `count`.
    pub async fn calls(&self, count: usize) -> Vec<Call> {
        let mut calls = self.calls.subscribe();
        let enough = timeout(PATIENCE, calls.wait_for(|calls| calls.len() >= count)).await;
        let calls = enough.expect("the calls come in time").expect("the receiver is there");
        calls.clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

type Shared = (watch::Sender<Vec<Call>>, watch::Sender<Option<StatusCode>>);

async fn take(
    State((calls, answer)): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    calls.send_modify(|calls| calls.push(Call { path: uri.path().to_owned(), headers, body }));
    let mut answer = answer.subscribe();
    let code = answer.wait_for(Option::is_some).await.ok().and_then(|code| *code);
    // Clients heed this only if the status is a redirect.
    (code.unwrap_or(StatusCode::NO_CONTENT), [(LOCATION, "/elsewhere")])
}
