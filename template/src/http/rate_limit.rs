//! Rate limits: per client, global, and a stricter one for writes. Requests over a limit are answered 429.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};
use ipnet::Ipv6Net;
use metrics::counter;
use serde::Deserialize;

use super::problem::{Category, Problem};
use crate::server::Client;
//@ if redis

mod shared;
//@ end

/// How often idle clients are evicted.
const SWEEP: Duration = Duration::from_secs(10);

/// <https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/>
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub const HEADERS: [HeaderName; 2] = [POLICY, LIMIT];

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Config {
    pub per_client_per_second: NonZeroU32,
    pub per_client_burst: NonZeroU32,
    pub global_per_second: NonZeroU32,
    pub global_burst: NonZeroU32,
    pub writes_per_second: NonZeroU32,
    pub writes_burst: NonZeroU32,
}

type Budgets = RateLimiter<IpAddr, DefaultKeyedStateStore<IpAddr>, DefaultClock, StateInformationMiddleware>;

/// A rate, a burst (how many requests may come at once after a pause), and this process's budgets for them.
#[derive(Debug)]
struct Limiter {
    name: &'static str,
    per_second: NonZeroU32,
    burst: NonZeroU32,
    /// Whether each client has a budget of its own.
    per_client: bool,
    /// The value of the header `ratelimit-policy`.
    policy: HeaderValue,
    budgets: Budgets,
}

impl Limiter {
    fn new(name: &'static str, per_second: NonZeroU32, burst: NonZeroU32, per_client: bool) -> Self {
        counter!("rate_limited_total", "policy" => name).increment(0);
        let quota = Quota::per_second(per_second).allow_burst(burst);
        let budgets = RateLimiter::keyed(quota).with_middleware();
        let window = seconds(Duration::from_secs(burst.get().into()) / per_second.get());
        let policy = HeaderValue::try_from(format!("\"{name}\";q={burst};w={window}")).expect("ASCII");
        Self { name, per_second, burst, per_client, policy, budgets }
    }

    /// How long the rate takes to allow `requests`.
    fn time_for(&self, requests: u32) -> Duration {
        Duration::from_secs(requests.into()) / self.per_second.get()
    }

    /// Whose budget a request is charged to. IPv6 is counted by /64: one customer has a whole /64 to choose from.
    fn budget_key(&self, client: IpAddr) -> IpAddr {
        match client {
            _ if !self.per_client => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V4(_) => client,
            IpAddr::V6(v6) => Ipv6Net::new_assert(v6, 64).network().into(),
        }
    }

    /// Evicts clients whose budget is full again: a new one would be the same.
    fn forget_idle(&self) {
        self.budgets.retain_recent();
        self.budgets.shrink_to_fit();
    }
}

/// What the limiters decide about a request.
#[derive(Clone, Copy, Debug)]
struct Verdict {
    /// Index of the limiter that the answer reports: the first, or the one that refuses.
    by: usize,
    /// Requests left in its budget.
    left: u32,
    /// Set if the request is refused: how long until one would be let through.
    wait: Option<Duration>,
}

/// All limiters. Clones share their budgets.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// Stricter ones come before those that more requests share: a refused client must not use up what everyone needs.
    limiters: Arc<[Limiter; 3]>,
    //@ if redis
    shared: shared::Shared,
    //@ end
}

impl RateLimit {
    pub fn open(config: &crate::config::Config) -> anyhow::Result<Self> {
        //@ if redis
        let shared = shared::Shared::new(crate::cache::connection::Redis::open(&config.redis)?);
        //@ end
        let config = &config.rate_limit;
        let limiters = Arc::new([
            Limiter::new("writes", config.writes_per_second, config.writes_burst, true),
            Limiter::new("per_client", config.per_client_per_second, config.per_client_burst, true),
            Limiter::new("global", config.global_per_second, config.global_burst, false),
        ]);
        Ok(Self {
            // Kept per process.
            limiters,
            //@ if redis
            shared,
            //@ end
        })
    }

    /// Runs forever: evicts idle clients, so that memory grows with the active ones and not with all ever seen.
    pub async fn sweep(self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            self.limiters.iter().for_each(Limiter::forget_idle);
            //@ if redis
            self.shared.forget_idle();
            //@ end
        }
    }

    /// Charges a request to the budgets of this process.
    fn take(limiters: &[Limiter], client: IpAddr) -> Verdict {
        let mut first = None;
        for (by, limiter) in limiters.iter().enumerate() {
            match limiter.budgets.check_key(&limiter.budget_key(client)) {
                Ok(state) => _ = first.get_or_insert(state.remaining_burst_capacity()),
                Err(refused) => {
                    let wait = Some(refused.wait_time_from(DefaultClock::default().now()));
                    return Verdict { by, left: 0, wait };
                }
            }
        }
        Verdict { by: 0, left: first.unwrap_or_default(), wait: None }
    }
}

/// Lets a request through while its budgets last.
pub fn limit<A: Future<Output = Response>>(
    limits: &'static RateLimit,
    request: Request,
    next: impl FnOnce(Request) -> A,
) -> impl Future<Output = Response> {
    let client = request.extensions().get::<Client>();
    let client = client.map_or(Ipv4Addr::UNSPECIFIED.into(), |client| client.address);
    let is_write = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    // Not polled until the request is let through: holding the request itself until then would take more memory.
    let answering = next(request);
    async move {
        let limiters = &limits.limiters[usize::from(!is_write)..];
        let said = RateLimit::take(limiters, client);
        //@ if redis
        // A budget that is used up here is used up everywhere: Redis need not be asked.
        let said = if said.wait.is_some() { said } else { limits.shared.take(limiters, client, said).await };
        //@ end
        let Verdict { by, left, wait } = said;
        let limiter = &limiters[by];
        let mut response = match wait {
            None => answering.await,
            Some(wait) => {
                counter!("rate_limited_total", "policy" => limiter.name).increment(1);
                tracing::debug!(policy = limiter.name, "rate_limit.refused");
                let detail = "Too many requests. Retry after the time given in Retry-After.";
                let mut problem = Problem::new(Category::RateLimited, StatusCode::TOO_MANY_REQUESTS, detail);
                problem.retry_after = Some(seconds(wait));
                problem.into_response()
            }
        };
        let full = wait.unwrap_or_else(|| limiter.time_for(limiter.burst.get().saturating_sub(left)));
        let limit = format!("\"{}\";r={left};t={}", limiter.name, seconds(full));
        let headers = response.headers_mut();
        headers.insert(POLICY, limiter.policy.clone());
        headers.extend(HeaderValue::try_from(limit).map(|limit| (LIMIT, limit)));
        response
    }
}

/// Rounded up: a client that came back a moment too early would be refused again.
fn seconds(wait: Duration) -> u64 {
    (wait + Duration::from_nanos(999_999_999)).as_secs().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn million_clients_are_forgotten_once_they_are_gone() {
        let (per_second, burst) = (NonZeroU32::new(1000).expect("not 0"), NonZeroU32::MIN);
        let limiters = [Limiter::new("per_client", per_second, burst, true)];
        for number in 0..1_000_000 {
            let client = Ipv4Addr::from_bits(number).into();
            assert!(RateLimit::take(&limiters, client).wait.is_none(), "{client} has not come before");
        }
        assert_eq!(limiters[0].budgets.len(), 1_000_000);
        tokio::time::sleep(limiters[0].time_for(2)).await;
        limiters[0].forget_idle();
        assert!(limiters[0].budgets.is_empty(), "{} are remembered", limiters[0].budgets.len());
        assert!(SWEEP < Duration::from_mins(1), "so often that they never take much memory");
    }
}
