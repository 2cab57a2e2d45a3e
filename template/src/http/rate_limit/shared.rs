//! Budgets that all replicas share, in Redis. A busy client's requests are taken in batches, so few wait for Redis.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::Script;
use tokio::sync::Mutex as AsyncMutex;

use super::{Limiter, Verdict};
use crate::cache::connection::Redis;

/// How long a batch may be used. What is left of it then lapses: it must not add to what the budgets allow later.
const BATCH_TTL: Duration = Duration::from_secs(1);

/// Takes requests from the budget of every key, or from none if one is used up, by the generic cell rate algorithm.
/// ARGV has for each key a request's cost and the budget's size, both in microseconds; then how many requests wait and
/// how many are wanted. At most one in 32 of what is left is taken ahead, so that a replica withholds little from the
/// others. Returns which budget is used up and for how long; or 0, how many were taken and what the first has left.
static TAKE: LazyLock<Script> = LazyLock::new(|| Script::new(TAKE_LUA));
const TAKE_LUA: &str = "local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2]
    local due, left, least = {}, {}, math.huge
    for i, key in ipairs(KEYS) do
      local cost, budget = ARGV[2 * i - 1], ARGV[2 * i]
      due[i] = math.max(tonumber(redis.call('GET', key) or 0), now)
      -- The clock was set back: all would be refused until it is there again.
      if due[i] > now + budget then
        due[i] = now + budget
        redis.call('SET', key, string.format('%.0f', due[i]), 'PX', math.ceil(budget / 1000))
      end
      if due[i] + cost - budget > now then return {i, due[i] + cost - budget - now, 0} end
      left[i] = math.floor((now + budget - due[i]) / cost)
      least = math.min(least, left[i])
    end
    local waiting, wanted = ARGV[#ARGV - 1], ARGV[#ARGV]
    local taken = math.max(math.min(waiting, least), math.min(wanted, math.floor(least / 32)))
    for i, key in ipairs(KEYS) do
      due[i] = due[i] + taken * ARGV[2 * i - 1]
      redis.call('SET', key, string.format('%.0f', due[i]), 'PX', math.ceil((due[i] - now) / 1000))
    end
    return {0, taken, left[1] - taken}";

/// What [`TAKE`] returns.
type Reply = (usize, u64, u64);

/// Clones share the batches.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    redis: Redis,
    batches: Arc<Mutex<HashMap<BatchKey, Batch>>>,
}

/// A client, and the name of the first limiter that its request passes.
type BatchKey = (IpAddr, &'static str);

/// A batch: requests that were taken from all their budgets before they arrived.
#[derive(Debug, Default)]
struct Batch {
    taken: u32,
    unused: u32,
    /// What was left of the first budget then.
    left: u32,
    until: Option<Instant>,
    /// The verdict when none could be taken, and when that was.
    refused: Option<(Instant, Verdict)>,
    /// Held by the one caller that asks Redis, on behalf of all that wait for it.
    turn: Arc<AsyncMutex<()>>,
}

impl Batch {
    /// Uses one request of the batch, if there is one. Returns what is left of the first budget.
    fn spend(&mut self) -> Option<u32> {
        self.unused = self.unused.checked_sub(1).filter(|_| self.in_time())?;
        Some(self.left.saturating_add(self.unused))
    }

    /// How many to take next: twice the batch if all of it was used in time, or else as many as were used.
    fn wanted(&self) -> u32 {
        if self.in_time() { self.taken.saturating_mul(2) } else { self.taken - self.unused }
    }

    /// Whether Redis did not answer when it was last asked.
    fn was_down(&self) -> bool {
        self.refused.as_ref().is_some_and(|(_, verdict)| verdict.wait.is_none())
    }

    fn in_time(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }
}

impl Shared {
    pub(super) fn new(redis: Redis) -> Self {
        Self { redis, batches: Arc::default() }
    }

    /// Charges a request that this process's budgets allow, with the verdict `local`, to those that all replicas share,
    /// and returns their verdict. If Redis does not answer, `local` stands.
    pub(super) async fn take(&self, limiters: &[Limiter], client: IpAddr, local: Verdict) -> Verdict {
        let key = (limiters[0].budget_key(client), limiters[0].name);
        let spend = |batch: &mut Batch| batch.spend().ok_or_else(|| (batch.turn.clone(), batch.was_down()));
        let (turn, was_down) = match self.with_batch(key, spend) {
            Ok(left) => return Verdict { left, ..local },
            Err(turn) => turn,
        };
        let arrived = Instant::now();
        let _turn = match turn.try_lock() {
            Ok(acquired) => acquired,
            // One caller checks whether Redis answers again; the others don't wait for that.
            Err(_) if was_down => return local,
            Err(_) => turn.lock().await,
        };
        let wanted = match self.with_batch(key, |batch| (batch.spend(), batch.refused, batch.wanted())) {
            (Some(left), ..) => return Verdict { left, ..local },
            (None, Some((since, verdict)), _) if arrived < since => return verdict,
            (None, _, wanted) => wanted,
        };
        // Each caller that waits, this one included, holds a clone, and the map holds one more.
        let waiting = Arc::strong_count(&turn) - 1;
        // Boxed, so that the futures of waiting callers stay small.
        let verdict = match Box::pin(self.ask(limiters, client, waiting, wanted)).await {
            Some((0, taken, left)) => {
                let [taken, left] = [taken, left].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
                let (unused, until) = (taken.saturating_sub(1), Some(Instant::now() + BATCH_TTL));
                self.with_batch(key, |batch| {
                    *batch = Batch { taken, unused, left, until, refused: None, turn: turn.clone() };
                });
                return Verdict { left: left.saturating_add(unused), ..local };
            }
            Some((by, wait, _)) => Verdict { by: by - 1, left: 0, wait: Some(Duration::from_micros(wait)) },
            None => local,
        };
        self.with_batch(key, |batch| batch.refused = Some((Instant::now(), verdict)));
        verdict
    }

    /// `None` if Redis does not answer.
    async fn ask(&self, limiters: &[Limiter], client: IpAddr, waiting: usize, wanted: u32) -> Option<Reply> {
        let mut script = TAKE.prepare_invoke();
        for limiter @ Limiter { name, per_second, burst, .. } in limiters {
            // The key includes rate and burst: what was stored under other settings would be misread.
            let budget = format!("rate:{name}:{per_second}:{burst}:{}", limiter.budget_key(client));
            script.key(self.redis.key(&budget));
            let cost = cost(limiter);
            script.arg(cost).arg(cost * u128::from(burst.get()));
        }
        script.arg(waiting).arg(wanted);
        self.redis.run("rate_limit", script).await
    }

    /// Evicts clients whose batch has lapsed, unless a caller waits for the next.
    pub(super) fn forget_idle(&self) {
        let mut batches = self.batches.lock();
        batches.retain(|_, batch| batch.in_time() || Arc::strong_count(&batch.turn) > 1);
        batches.shrink_to_fit();
    }

    /// Runs `look` on the batch of `key`, with the map locked.
    fn with_batch<T>(&self, key: BatchKey, look: impl FnOnce(&mut Batch) -> T) -> T {
        look(self.batches.lock().entry(key).or_default())
    }
}

/// The time that a request takes of a budget, in microseconds: rounded up, or a large rate would be exceeded, and at least
/// 1, since the script divides by it.
fn cost(limiter: &Limiter) -> u128 {
    limiter.time_for(1).as_nanos().div_ceil(1000).max(1)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::num::NonZeroU32;

    use super::*;

    #[tokio::test]
    async fn clients_are_forgotten_once_nothing_is_left_of_what_was_taken() {
        let shared = Shared::new(Redis::nowhere());
        let key = (Ipv4Addr::LOCALHOST.into(), "per_client");
        let waits = shared.with_batch(key, |batch| batch.turn.clone());
        shared.forget_idle();
        assert_eq!(shared.batches.lock().len(), 1, "one waits for its turn");
        drop(waits);
        shared.with_batch(key, |batch| batch.until = Some(Instant::now() + BATCH_TTL));
        shared.forget_idle();
        assert_eq!(shared.batches.lock().len(), 1, "some may be left");
        shared.with_batch(key, |batch| batch.until = Some(Instant::now()));
        shared.forget_idle();
        assert!(shared.batches.lock().is_empty());
    }

    #[test]
    fn no_rate_is_rounded_up() {
        let cost_at = |per_second| {
            let rate = NonZeroU32::new(per_second).expect("not zero");
            cost(&Limiter::new("global", rate, NonZeroU32::MIN, false))
        };
        assert_eq!([1, 175_000, 600_000, u32::MAX].map(cost_at), [1_000_000, 6, 2, 1]);
    }
}
