//! A running service, and what tests do with it.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Client, Method, RequestBuilder};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::process::{Ended, Launch, PATIENCE, Process, Variables};
use crate::wire::Wire;

/// A service that is ready, and a client for it.
#[derive(Debug)]
pub struct TestApp {
    pub process: Process,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub client: Client,
}

impl TestApp {
    /// Starts a service with `variables` on top of the test defaults, and waits until it is ready.
    pub async fn spawn(variables: Variables<'_>) -> Self {
        Self::launch(Launch::new(variables)).await
    }

    pub async fn launch(launch: Launch) -> Self {
        //@ if postgres
        let launch = launch.with_database().await;
        //@ end
        let app = Self::starting(launch).await;
        app.ready().await
    }

    /// Starts a service and waits only until it listens.
    pub async fn starting(launch: Launch) -> Self {
        let mut process = launch.start("serve");
        let start = process.event("service.start").await;
        let at = |field: &str| start[field].as_str().and_then(|at| at.parse().ok()).expect("an address");
        let (address, admin) = (at("bind"), at("admin"));
        // reqwest needs a crypto provider, though ours uses no TLS. Fails harmlessly if another test has installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // The environment of the tests may configure a proxy, which could not reach the service.
        let client = Client::builder().no_proxy().build().expect("a client");
        Self { process, address, admin, client }
    }

    pub async fn ready(mut self) -> Self {
        self.process.event("service.ready").await;
        self
    }

    /// A request to the public listener, which the caller completes and sends.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address)).timeout(PATIENCE)
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::to(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::to(json_body(self.request(Method::POST, path), body)).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        Answer::to(json_body(self.request(Method::PATCH, path), body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        Answer::to(self.request(Method::DELETE, path)).await
    }

    /// Creates a task and returns it.
    pub async fn create(&self, title: &str) -> Value {
        let answer = self.post("/v1/tasks", &json!({ "title": title })).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()
    }

    pub async fn complete(&self, task: &Value) -> Answer {
        Answer::to(self.request(Method::POST, &format!("{}/complete", path_of(task)))).await
    }

    /// Reads a path of the admin listener.
    pub async fn admin(&self, path: &str) -> Answer {
        Answer::to(self.client.get(format!("http://{}{path}", self.admin)).timeout(PATIENCE)).await
    }

    pub async fn metrics(&self) -> String {
        self.admin("/metrics").await.body
    }

    /// The value of one metric series, such as `http_connections` or `errors_total{category="timeout"}`.
    pub async fn sample(&self, series: &str) -> Option<f64> {
        let page = self.metrics().await;
        page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    /// Opens a connection for sending raw bytes.
    pub async fn connect(&self) -> Wire {
        Wire::connect(self.address).await
    }

    /// Stops the service as an orchestrator does.
    pub async fn stop(self) -> Ended {
        self.process.signal(Signal::TERM);
        self.process.ended().await
    }
}

/// A response, with its whole body.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    /// Sends the request and reads the response.
    pub async fn to(request: RequestBuilder) -> Self {
        let answer = request.send().await.expect("an answer");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Self { status, headers, body: answer.text().await.expect("a body of text") }
    }

    /// The value of a header, or an empty string if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

/// The request with a JSON body. reqwest's own feature for this would build the client a second time.
pub fn json_body(request: RequestBuilder, body: &Value) -> RequestBuilder {
    request.header(CONTENT_TYPE, "application/json").body(body.to_string())
}

/// The path of a task.
pub fn path_of(task: &Value) -> String {
    format!("/v1/tasks/{}", task["id"].as_str().expect("a task has an id"))
}

/// Calls `ask` repeatedly until its result fits.
pub async fn eventually<T: std::fmt::Debug>(ask: impl AsyncFn() -> T, fits: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if fits(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "still {answer:?}");
        sleep(Duration::from_millis(20)).await;
    }
}
