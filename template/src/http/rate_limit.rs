//! Rate limits: for each client, for all together, and stricter for writes. Beyond them 429.

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

/// How often clients that have not been seen lately are forgotten.
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

/// So many requests a second, and so many at once after a pause; and the budgets that this process keeps by that.
#[derive(Debug)]
struct Limiter {
    name: &'static str,
    per_second: NonZeroU32,
    burst: NonZeroU32,
    /// Whether each client has a budget of its own.
    per_client: bool,
    /// As clients are told of it.
    told: HeaderValue,
    budgets: Budgets,
}

impl Limiter {
    fn new(name: &'static str, per_second: NonZeroU32, burst: NonZeroU32, per_client: bool) -> Self {
        counter!("rate_limited_total", "policy" => name).increment(0);
        let quota = Quota::per_second(per_second).allow_burst(burst);
        let budgets = RateLimiter::keyed(quota).with_middleware();
        let window = seconds(Duration::from_secs(burst.get().into()) / per_second.get());
        let told = HeaderValue::try_from(format!("\"{name}\";q={burst};w={window}")).expect("visible ASCII");
        Self { name, per_second, burst, per_client, told, budgets }
    }

    /// The time in which `requests` are allowed.
    fn time_for(&self, requests: u32) -> Duration {
        Duration::from_secs(requests.into()) / self.per_second.get()
    }

    /// Whose budget a client's request is taken from. One IPv6 customer has a whole /64 to choose from.
    fn payer(&self, client: IpAddr) -> IpAddr {
        match client {
            _ if !self.per_client => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V4(_) => client,
            IpAddr::V6(v6) => Ipv6Net::new_assert(v6, 64).network().into(),
        }
    }

    /// Forgets clients whose budget is whole again: they would get the same one anew.
    fn forget_idle(&self) {
        self.budgets.retain_recent();
        self.budgets.shrink_to_fit();
    }
}

/// What the limiters of a request say of it.
#[derive(Clone, Copy, Debug)]
struct Verdict {
    /// Which of them counts: the first, or the one that refuses.
    by: usize,
    /// Requests left of its budget.
    left: u32,
    /// Set where the request is refused: until it would not be.
    wait: Option<Duration>,
}

/// The budgets of this process. Clones share them.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// The stricter before those that more requests share: one who is refused must not use up what all need.
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
            // Kept by each process for itself.
            limiters,
            //@ if redis
            shared,
            //@ end
        })
    }

    /// Forgets idle clients, for ever, so that memory follows those who are here and not all who ever were.
    pub async fn sweep(self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            self.limiters.iter().for_each(Limiter::forget_idle);
            //@ if redis
            self.shared.forget_idle();
            //@ end
        }
    }

    /// Takes a request from the budgets of this process.
    fn take(limiters: &[Limiter], client: IpAddr) -> Verdict {
        let mut first = None;
        for (by, limiter) in limiters.iter().enumerate() {
            match limiter.budgets.check_key(&limiter.payer(client)) {
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
    limits: Arc<RateLimit>,
    request: Request,
    next: impl FnOnce(Request) -> A,
) -> impl Future<Output = Response> {
    let client = request.extensions().get::<Client>();
    let client = client.map_or(Ipv4Addr::UNSPECIFIED.into(), |client| client.address);
    let is_write = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    // Not begun before it may be: to keep the request itself until then would take more room.
    let answering = next(request);
    async move {
        let limiters = &limits.limiters[usize::from(!is_write)..];
        let said = RateLimit::take(limiters, client);
        //@ if redis
        // Who has used up a budget here has done so everywhere.
        let said = if said.wait.is_some() { said } else { limits.shared.take(limiters, client, said).await };
        //@ end
        let Verdict { by, left, wait } = said;
        let limiter = &limiters[by];
        let mut response = match wait {
            None => answering.await,
            Some(wait) => {
                counter!("rate_limited_total", "policy" => limiter.name).increment(1);
                let detail = "Too many requests. Wait as long as Retry-After says.";
                let mut problem = Problem::new(Category::RateLimited, StatusCode::TOO_MANY_REQUESTS, detail);
                problem.retry_after = Some(seconds(wait));
                problem.into_response()
            }
        };
        let full = wait.unwrap_or_else(|| limiter.time_for(limiter.burst.get().saturating_sub(left)));
        let limit = format!("\"{}\";r={left};t={}", limiter.name, seconds(full));
        let headers = response.headers_mut();
        headers.insert(POLICY, limiter.told.clone());
        headers.extend(HeaderValue::try_from(limit).map(|limit| (LIMIT, limit)));
        response
    }
}

/// Rounded up: told a moment too early, a client would be refused again.
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
    }
}
