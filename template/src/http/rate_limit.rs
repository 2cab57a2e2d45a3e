//! Rate limits: for each client, for all together, and stricter for writes. Beyond them 429.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use garde::Validate;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use ipnet::Ipv6Net;
use metrics::counter;
use serde::Deserialize;

use super::middleware::Client;
use super::problem::{Category, Problem};

/// How often clients that have not been seen lately are forgotten.
const SWEEP: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Deserialize, Validate)]
pub struct Config {
    #[garde(skip)]
    pub per_client_per_second: NonZeroU32,
    #[garde(skip)]
    pub per_client_burst: NonZeroU32,
    #[garde(skip)]
    pub global_per_second: NonZeroU32,
    #[garde(skip)]
    pub global_burst: NonZeroU32,
    #[garde(skip)]
    pub writes_per_second: NonZeroU32,
    #[garde(skip)]
    pub writes_burst: NonZeroU32,
}

/// The budgets of this process. Clones share them.
#[derive(Clone, Debug)]
pub struct RateLimit(Arc<Limiters>);

#[derive(Debug)]
struct Limiters {
    per_client: DefaultKeyedRateLimiter<IpAddr>,
    global: DefaultDirectRateLimiter,
    writes: DefaultKeyedRateLimiter<IpAddr>,
}

impl RateLimit {
    pub fn new(config: &Config) -> Self {
        for policy in ["per_client", "global", "writes"] {
            counter!("rate_limited_total", "policy" => policy).increment(0);
        }
        let quota = |per_second, burst| Quota::per_second(per_second).allow_burst(burst);
        Self(Arc::new(Limiters {
            per_client: RateLimiter::keyed(quota(config.per_client_per_second, config.per_client_burst)),
            global: RateLimiter::direct(quota(config.global_per_second, config.global_burst)),
            writes: RateLimiter::keyed(quota(config.writes_per_second, config.writes_burst)),
        }))
    }

    /// Forgets idle clients, for ever, so that memory follows those who are here and not all who ever were.
    pub async fn sweep(self) {
        let mut ticks = tokio::time::interval(SWEEP);
        loop {
            ticks.tick().await;
            for limiter in [&self.0.per_client, &self.0.writes] {
                limiter.retain_recent();
                limiter.shrink_to_fit();
            }
        }
    }

    /// The policy that refuses a request, and for how long.
    fn refusal(&self, client: IpAddr, is_write: bool) -> Option<(&'static str, Duration)> {
        let limiters = &*self.0;
        let client = key(client);
        let now = DefaultClock::default().now();
        let writes = if is_write { limiters.writes.check_key(&client) } else { Ok(()) };
        // The client's own budgets first: one who is refused must not use up what all share.
        let (policy, refused) = match (writes, limiters.per_client.check_key(&client)) {
            (Err(refused), _) => ("writes", refused),
            (_, Err(refused)) => ("per_client", refused),
            _ => ("global", limiters.global.check().err()?),
        };
        Some((policy, refused.wait_time_from(now)))
    }
}

/// One IPv6 customer has a whole /64 to choose addresses from.
fn key(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(v6) => Ipv6Net::new_assert(v6, 64).network().into(),
    }
}

/// Lets a request through while its budgets last.
pub async fn limit(
    State(limits): State<RateLimit>,
    client: Client,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let is_write = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let Some((policy, wait)) = limits.refusal(client.0, is_write) else {
        return Ok(next.run(request).await);
    };
    counter!("rate_limited_total", "policy" => policy).increment(1);
    let detail = "Too many requests. Wait as long as Retry-After says.";
    let problem = Problem::new(Category::RateLimited, StatusCode::TOO_MANY_REQUESTS, detail);
    // Rounded up: told a moment too early, the client would be refused again.
    Err(problem.retry_after(wait.as_secs() + 1))
}
