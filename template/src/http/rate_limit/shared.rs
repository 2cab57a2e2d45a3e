//! Budgets that all replicas share, in Redis. A busy client's requests are taken from them some at a time, so that few
//! of them wait for Redis.

use std::collections::HashMap;
use std::mem::take;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::Script;

use super::{Limiter, Policy, Verdict};
use crate::cache::connection::Redis;

/// After so long, what was taken ahead and not used is lost: it must not add to what the budgets give later.
const LASTS: Duration = Duration::from_secs(1);

/// Takes requests from the budget of each of KEYS, or from none when one is used up: the generic cell rate algorithm.
/// ARGV has for each the microseconds that a request is worth and those of the whole budget, and last how many are
/// wanted. One is taken at least, and at most one in 32 of what is left, so that a replica keeps little from the
/// others. Returns which budget is used up and for how long; or 0, how many were taken, and what is left of the first.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local time = redis.call('TIME')
         local now = time[1] * 1000000 + time[2]
         local due, left = {}, {}
         local taken = tonumber(ARGV[#ARGV])
         for i, key in ipairs(KEYS) do
           local cost, budget = ARGV[2 * i - 1], ARGV[2 * i]
           due[i] = math.max(tonumber(redis.call('GET', key) or 0), now)
           if due[i] + cost - budget > now then return {i, due[i] + cost - budget - now, 0} end
           left[i] = math.floor((now + budget - due[i]) / cost)
           taken = math.max(1, math.min(taken, math.floor(left[i] / 32)))
         end
         for i, key in ipairs(KEYS) do
           due[i] = due[i] + taken * ARGV[2 * i - 1]
           redis.call('SET', key, string.format('%.0f', due[i]), 'PX', math.ceil((due[i] - now) / 1000))
         end
         return {0, taken, left[1] - taken}",
    )
});

/// Clones share what was taken ahead.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    redis: Redis,
    /// By client, and the first policy that counts for a request.
    ahead: Arc<Mutex<HashMap<(IpAddr, &'static str), Ahead>>>,
}

/// Requests that were taken from all their budgets before they came.
#[derive(Debug, Default)]
struct Ahead {
    taken: u32,
    unused: u32,
    /// What the first budget still had then.
    left: u32,
    until: Option<Instant>,
}

impl Ahead {
    /// Uses one, and returns what is left of the first budget. Else how many to take: twice as many when all were used
    /// in time, or as many as were used. Who asks before those have come takes one for itself.
    fn spend(&mut self) -> Result<u32, u32> {
        let in_time = self.in_time();
        if in_time && self.unused > 0 {
            self.unused -= 1;
            return Ok(self.left.saturating_add(self.unused));
        }
        let Self { taken, unused, .. } = take(self);
        Err(if in_time { taken.saturating_mul(2) } else { taken - unused })
    }

    /// Keeps what was taken but one, which is used. Returns what is left of the first budget.
    fn keep(&mut self, taken: u32, left: u32) -> u32 {
        let unused = self.unused.saturating_add(taken - 1);
        let taken = self.taken.saturating_add(taken);
        *self = Self { taken, unused, left, until: Some(Instant::now() + LASTS) };
        left.saturating_add(unused)
    }

    fn in_time(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }
}

impl Shared {
    pub(super) fn new(redis: Redis) -> Self {
        Self { redis, ahead: Arc::default() }
    }

    /// Takes a request that the budgets of this process bear, as they say `here`, from those that all replicas share,
    /// and returns what these say. When Redis does not answer, what is known here counts.
    pub(super) async fn take(&self, limiters: &[Limiter], client: IpAddr, here: Verdict) -> Verdict {
        let first = &here.policy;
        let payer = (first.payer(client), first.name);
        let wanted = match self.ahead().entry(payer).or_default().spend() {
            Ok(left) => return Verdict { left, ..here },
            Err(wanted) => wanted,
        };
        let mut script = TAKE.prepare_invoke();
        for Limiter { policy, .. } in limiters {
            let Policy { name, per_second, burst, .. } = policy;
            // With its numbers: a budget of other numbers would be misread. One slot for all, in a cluster.
            let budget = format!("{{rate}}:{name}:{per_second}:{burst}:{}", policy.payer(client));
            script.key(self.redis.key(&budget));
            script.arg(micros(policy, 1)).arg(micros(policy, burst.get()));
        }
        script.arg(wanted);
        match self.redis.run::<(usize, u64, u64)>("rate_limit", script).await {
            Some((0, taken, left)) => {
                let [taken, left] = [taken, left].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
                let left = self.ahead().entry(payer).or_default().keep(taken, left);
                Verdict { left, ..here }
            }
            Some((refused, wait, _)) => {
                let policy = limiters[refused - 1].policy;
                Verdict { policy, left: 0, wait: Some(Duration::from_micros(wait)) }
            }
            None => here,
        }
    }

    /// Forgets clients for whom nothing is left that was taken ahead.
    pub(super) fn forget_idle(&self) {
        let mut ahead = self.ahead();
        ahead.retain(|_, ahead| ahead.in_time());
        ahead.shrink_to_fit();
    }

    fn ahead(&self) -> MutexGuard<'_, HashMap<(IpAddr, &'static str), Ahead>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// At least one: Redis divides by it.
fn micros(policy: &Policy, requests: u32) -> u64 {
    u64::try_from(policy.time_for(requests).as_micros()).unwrap_or(u64::MAX).max(1)
}
