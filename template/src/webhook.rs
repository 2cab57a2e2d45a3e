//! The outbound call: tells a receiver of what happened, as Standard Webhooks says
//! (<https://github.com/standard-webhooks/standard-webhooks>).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use garde::Validate;
use reqwest::StatusCode;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::value::{SecretUrl, is_http, millis, optional};
use crate::jobs::{Failure, Job, Kind};
use crate::task::Task;
use crate::telemetry::context::Context;

#[derive(Debug, Deserialize, Validate)]
pub struct Config {
    #[serde(deserialize_with = "optional")]
    #[garde(custom(is_http))]
    pub url: Option<SecretUrl>,
    #[serde(deserialize_with = "optional")]
    #[garde(custom(is_signing_secret))]
    pub secret: Option<SecretString>,
    #[serde(with = "humantime_serde")]
    #[garde(custom(millis(10, 300_000)))]
    pub timeout: Duration,
    #[garde(skip)]
    pub allow_private_addresses: bool,
}

impl Config {
    /// Whether the URL names an address that [`Self::allow_private_addresses`] forbids.
    pub fn forbids_own_url(&self) -> bool {
        let host = self.url.as_ref().and_then(|url| url.0.host_str()).unwrap_or_default();
        let literal = host.trim_matches(['[', ']']).parse();
        !self.allow_private_addresses && literal.is_ok_and(|address| is_private(&address))
    }
}

fn is_signing_secret(secret: &Option<SecretString>, (): &()) -> garde::Result {
    match secret.as_ref().map(signing_key) {
        None | Some(Some(_)) => Ok(()),
        Some(None) => Err(garde::Error::new("expected \"whsec_\" and 24 to 64 bytes in base64")),
    }
}

fn signing_key(secret: &SecretString) -> Option<hmac::Key> {
    let bytes = BASE64.decode(secret.expose_secret().strip_prefix("whsec_")?).ok()?;
    (24..=64).contains(&bytes.len()).then(|| hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// The job that tells of a completed task.
pub fn task_completed(task: &Task) -> Job {
    #[derive(Serialize)]
    struct Event<'a> {
        r#type: &'static str,
        timestamp: String,
        data: &'a Task,
    }
    let timestamp = task.updated_at.format(&Rfc3339).unwrap_or_default();
    let event = Event { r#type: "task.completed", timestamp, data: task };
    Job::new(Kind::Webhook, serde_json::to_string(&event).expect("a task is always JSON"))
}

/// The receiver, if one is configured: without it no client is built, which would load the system's roots.
#[derive(Clone, Debug)]
pub struct Webhook(Option<Receiver>);

#[derive(Clone, Debug)]
struct Receiver {
    client: reqwest::Client,
    url: SecretUrl,
    key: Option<hmac::Key>,
}

impl Webhook {
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let Some(url) = config.url.clone() else { return Ok(Self(None)) };
        let client = reqwest::Client::builder()
            .timeout(config.timeout)
            // A redirect could lead anywhere, with our signature on it.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(Resolver { private: config.allow_private_addresses }))
            .build()
            .context("webhook client")?;
        Ok(Self(Some(Receiver { client, url, key: config.secret.as_ref().and_then(signing_key) })))
    }

    pub fn enabled(&self) -> bool {
        self.0.is_some()
    }

    /// Delivers one job.
    pub async fn deliver(self, job: Job) -> Result<(), Failure> {
        let switched_off = || Failure { reason: "webhook.url is no longer set".to_owned(), retry: false };
        let receiver = self.0.ok_or_else(switched_off)?;
        let timestamp = OffsetDateTime::now_utc().unix_timestamp().to_string();
        let mut request = receiver
            .client
            .post(receiver.url.0)
            .header("content-type", "application/json")
            .header("webhook-id", job.id.to_string())
            .header("webhook-timestamp", &timestamp);
        if let Some(key) = &receiver.key {
            let signed = format!("{}.{timestamp}.{}", job.id, job.payload);
            let signature = BASE64.encode(hmac::sign(key, signed.as_bytes()));
            request = request.header("webhook-signature", format!("v1,{signature}"));
        }
        if let Some(trace) = Context::current().and_then(|context| context.trace) {
            request = request.header("traceparent", trace.traceparent());
        }
        match request.body(job.payload).send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(refusal(answer.status())),
            // Without the URL, whose path or query may be a secret.
            Err(error) => {
                let reason = format!("{:#}", anyhow::Error::from(error.without_url()));
                Err(Failure { reason, retry: true })
            }
        }
    }
}

fn refusal(status: StatusCode) -> Failure {
    let passing = matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::CONFLICT
            | StatusCode::TOO_EARLY
            | StatusCode::TOO_MANY_REQUESTS
    );
    Failure { reason: format!("answered {status}"), retry: passing || !status.is_client_error() }
}

/// The system's resolver, less the addresses inside our own network: a URL from outside must not make us
/// talk to a neighbour (server-side request forgery).
#[derive(Debug)]
struct Resolver {
    private: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let private = self.private;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|at| private || !is_private(&at.ip())).collect();
            if allowed.is_empty() {
                return Err("no address that webhook.allow_private_addresses permits".into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

fn is_private(address: &IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            // 100.64.0.0/10 is shared by carriers and clouds (RFC 6598).
            let shared = first == 100 && (64..128).contains(&second);
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || shared
                || first == 0
                || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
        }
    }
}
