//! The outbound call, following Standard Webhooks (<https://github.com/standard-webhooks/standard-webhooks>).

use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use garde::Validate;
use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{RequestBuilder, StatusCode, Url};
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
//@ if otlp
use tracing::{Span, info_span};
//@ end

use crate::config::value::{check, is_http, millis, optional};
use crate::health::{Check, LastFailure};
use crate::jobs::{Failure, Job, Kind};
use crate::task::Task;
use crate::telemetry::context::Context;

#[derive(Debug, Deserialize, Validate)]
#[garde(allow_unvalidated)]
pub struct Config {
    #[serde(deserialize_with = "optional")]
    #[garde(custom(is_http))]
    pub url: Option<SecretString>,
    #[serde(deserialize_with = "optional")]
    #[garde(custom(is_signing_secret))]
    pub secret: Option<SecretString>,
    #[serde(deserialize_with = "millis::<10, 300_000, _>")]
    pub timeout: Duration,
    pub allow_private_addresses: bool,
}

impl Config {
    /// Whether the URL names an address that [`Self::allow_private_addresses`] forbids.
    pub fn forbids_own_url(&self) -> bool {
        let url = self.url.as_ref().and_then(|url| url.expose_secret().parse::<Url>().ok());
        let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
        let literal = host.trim_matches(['[', ']']).parse();
        !self.allow_private_addresses && literal.is_ok_and(is_private)
    }
}

fn is_signing_secret(secret: &Option<SecretString>, (): &()) -> garde::Result {
    let fits = secret.as_ref().is_none_or(|secret| signing_key(secret).is_some());
    check(fits, "expected \"whsec_\" and 24 to 64 bytes in base64")
}

fn signing_key(secret: &SecretString) -> Option<hmac::Key> {
    let bytes = BASE64.decode(secret.expose_secret().strip_prefix("whsec_")?).ok()?;
    (24..=64).contains(&bytes.len()).then(|| hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// The job that announces a completed task.
pub fn task_completed(task: &Task) -> Job {
    let timestamp = task.updated_at.format(&Rfc3339).unwrap_or_default();
    let event = json!({ "type": "task.completed", "timestamp": timestamp, "data": task });
    Job::new(Kind::Webhook, event.to_string())
}

#[derive(Clone, Debug)]
pub struct Webhook {
    client: reqwest::Client,
    url: SecretString,
    key: Option<hmac::Key>,
    last: LastFailure,
}

impl Webhook {
    /// None without a URL. No client is built then, as that would load the system's root certificates.
    pub fn new(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(url) = config.url.clone() else { return Ok(None) };
        let client = reqwest::Client::builder()
            .timeout(config.timeout)
            // Shared by all addresses of the receiver: a silent one leaves the others time.
            .connect_timeout(config.timeout / 2)
            // A redirect could send our signed request anywhere. Standard Webhooks counts it as a failure.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Resolver { private: config.allow_private_addresses })
            .build()
            .context("webhook client")?;
        let key = config.secret.as_ref().and_then(signing_key);
        Ok(Some(Self { client, url, key, last: LastFailure::default() }))
    }

    pub fn check(&self) -> Check {
        Check::passive("webhook", self.last.clone())
    }

    pub async fn deliver(receiver: Option<Self>, job: Job) -> Result<(), Failure> {
        //@ if postgres
        // Retried: where the job runs next, the URL may be set, as in a rollout.
        //@ end
        let switched_off = || Failure { reason: "webhook.url is not set".to_owned(), retry: true };
        let Self { client, url, key, last } = receiver.ok_or_else(switched_off)?;
        let timestamp = OffsetDateTime::now_utc().unix_timestamp().to_string();
        let mut request = client
            .post(url.expose_secret())
            .header("content-type", "application/json")
            .header("webhook-id", job.id.to_string())
            .header("webhook-timestamp", &timestamp);
        if let Some(key) = &key {
            let signed = format!("{}.{timestamp}.{}", job.id, job.payload);
            let signature = BASE64.encode(hmac::sign(key, signed.as_bytes()));
            request = request.header("webhook-signature", format!("v1,{signature}"));
        }
        let trace = Context::current().and_then(|context| context.trace);
        //@ if otlp
        let (span, trace) = crate::telemetry::otlp::span(None, trace, || {
            let url = url.expose_secret().parse::<Url>().ok();
            info_span!(
                "webhook",
                otel.name = "POST",
                otel.kind = "client",
                http.request.method = "POST",
                server.address = url.as_ref().and_then(Url::host_str),
                http.response.status_code = tracing::field::Empty,
            )
        });
        //@ end
        if let Some(trace) = trace {
            request = request.header("traceparent", trace.traceparent());
        }
        let sending = send(request.body(job.payload), last);
        //@ if otlp
        let sending = crate::telemetry::otlp::within(span, sending);
        //@ end
        sending.await
    }
}

async fn send(request: RequestBuilder, last: LastFailure) -> Result<(), Failure> {
    let status = request.send().await.map(|response| response.status());
    //@ if otlp
    if let Ok(status) = status {
        Span::current().record("http.response.status_code", i64::from(status.as_u16()));
    }
    //@ end
    let (reason, retry) = match status {
        Ok(status) if status.is_success() => {
            last.send_replace(None);
            return Ok(());
        }
        Ok(status) => {
            // Request Timeout, Conflict, Too Early.
            let transient = [408, 409, 425].contains(&status.as_u16());
            let transient = transient || status == StatusCode::TOO_MANY_REQUESTS || !status.is_client_error();
            (format!("answered {status}"), transient)
        }
        // The URL is left out, as its path or query may hold a secret.
        Err(error) => (format!("{:#}", anyhow::Error::from(error.without_url())), true),
    };
    // A receiver that rejects a job for good is up.
    last.send_replace(retry.then(|| reason.clone()));
    Err(Failure { reason, retry })
}

/// The system's resolver, minus private addresses, against server-side request forgery. The client connects to the
/// very addresses checked here. A host that is an address is not resolved: see [`Config::forbids_own_url`].
#[derive(Debug)]
struct Resolver {
    private: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let private = self.private;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|at| private || !is_private(at.ip())).collect();
            if allowed.is_empty() {
                return Err(
                    "the host has no public address, and webhook.allow_private_addresses is false".into()
                );
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Addresses not used on the public internet (IANA's special-purpose address registries). Of IPv6 only `2000::/3` is
/// public, minus what embeds an IPv4 address (Teredo, 6to4) or is reserved for documentation.
static NOT_PUBLIC: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    let networks = "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 \
              192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/3 \
                    ::/3 4000::/2 8000::/1 2001::/23 2001:db8::/32 2002::/16 3fff::/20";
    networks.split_whitespace().map(|network| network.parse().expect("a network")).collect()
});

fn is_private(address: IpAddr) -> bool {
    let address = match address.to_canonical() {
        IpAddr::V6(v6) => match v6.octets() {
            // In an IPv6-only network, the gateway connects to the IPv4 address at the end (NAT64, RFC 6052).
            [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, v4 @ ..] => IpAddr::from(v4),
            _ => address,
        },
        v4 @ IpAddr::V4(_) => v4,
    };
    NOT_PUBLIC.iter().any(|network| network.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_inside_are_told_from_those_outside() {
        let inside = "127.0.0.1 0.0.0.0 10.1.2.3 172.31.0.1 192.168.1.1 100.64.0.1 169.254.169.254 224.0.0.1 \
                      255.255.255.255 ::1 :: ::ffff:127.0.0.1 ::127.0.0.1 ::ffff:0:10.0.0.1 fe80::1 fec0::1 \
                      fd00:ec2::254 ff02::1 64:ff9b::10.0.0.1 64:ff9b:1::10.0.0.1 2002:7f00:1::1 2001::1 5f00::1 \
                      10.255.255.255 100.127.255.255 192.168.255.255 192.0.0.192 192.0.2.1 192.88.99.1 \
                      198.19.255.255 198.51.100.1 203.0.113.1 2001:1ff::1 2001:db8::1 3fff::1";
        let outside = "1.1.1.1 100.128.0.1 172.32.0.1 198.20.0.1 223.255.255.255 ::ffff:1.1.1.1 64:ff9b::1.1.1.1 \
                       2606:4700::1111";
        let private = |text: &&str| is_private(text.parse().expect("an address"));
        assert_eq!(inside.split_whitespace().filter(|text| !private(text)).collect::<Vec<_>>(), [""; 0]);
        assert_eq!(outside.split_whitespace().filter(private).collect::<Vec<_>>(), [""; 0]);
    }
}
