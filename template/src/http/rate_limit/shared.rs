//! Budgets that all replicas share, in Redis. A busy client's requests are taken some at a time, so that few wait.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::Script;
use tokio::sync::Mutex as Turn;

use super::{Limiter, Verdict};
use crate::cache::connection::Redis;

/// After so long, what was taken ahead and not used is lost: it must not add to what the budgets give later.
const LASTS: Duration = Duration::from_secs(1);

/// Takes requests from the budget of each of KEYS, or from none when one is used up: the generic cell rate algorithm.
/// ARGV has for each the microseconds that a request is worth and those of the whole budget, and last how many wait and
/// how many are wanted. Ahead are taken at most one in 32 of what is left, so that a replica keeps little from the
/// others. Returns which budget is used up and for how long; or 0, how many were taken, and what is left of the first.
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
type Told = (usize, u64, u64);

/// Clones share what was taken ahead.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    redis: Redis,
    ahead: Arc<Mutex<HashMap<Payer, Ahead>>>,
}

/// A client, and the first limiter of a request.
type Payer = (IpAddr, &'static str);

/// Requests that were taken from all their budgets before they came.
#[derive(Debug, Default)]
struct Ahead {
    taken: u32,
    unused: u32,
    /// What the first budget still had then.
    left: u32,
    until: Option<Instant>,
    /// What counted when none could be taken, and when.
    refused: Option<(Instant, Verdict)>,
    /// Held by the one who asks Redis, for all who wait for their turn.
    turn: Arc<Turn<()>>,
}

impl Ahead {
    /// Uses one. Returns what is left of the first budget.
    fn spend(&mut self) -> Option<u32> {
        self.unused = self.unused.checked_sub(1).filter(|_| self.in_time())?;
        Some(self.left.saturating_add(self.unused))
    }

    /// How many to take: twice as many when all were used in time, or as many as were used.
    fn wanted(&self) -> u32 {
        if self.in_time() { self.taken.saturating_mul(2) } else { self.taken - self.unused }
    }

    /// Whether Redis did not answer when it was last asked.
    fn silent(&self) -> bool {
        self.refused.as_ref().is_some_and(|(_, verdict)| verdict.wait.is_none())
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
        let payer = (limiters[0].payer(client), limiters[0].name);
        let spend = |ahead: &mut Ahead| ahead.spend().ok_or_else(|| (ahead.turn.clone(), ahead.silent()));
        let (turn, silent) = match self.of(payer, spend) {
            Ok(left) => return Verdict { left, ..here },
            Err(turn) => turn,
        };
        let came = Instant::now();
        let _mine = match turn.try_lock() {
            Ok(mine) => mine,
            // One goes and sees whether Redis answers again; nobody waits for that.
            Err(_) if silent => return here,
            Err(_) => turn.lock().await,
        };
        let wanted = match self.of(payer, |ahead| (ahead.spend(), ahead.refused, ahead.wanted())) {
            (Some(left), ..) => return Verdict { left, ..here },
            (None, Some((said, verdict)), _) if came < said => return verdict,
            (None, _, wanted) => wanted,
        };
        // All who wait hold it, and the map.
        let waiting = Arc::strong_count(&turn) - 1;
        // Boxed, so that those who wait need not carry the room that it takes.
        let verdict = match Box::pin(self.ask(limiters, client, waiting, wanted)).await {
            Some((0, taken, left)) => {
                let [taken, left] = [taken, left].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
                let (unused, until) = (taken.saturating_sub(1), Some(Instant::now() + LASTS));
                self.of(payer, |ahead| {
                    *ahead = Ahead { taken, unused, left, until, refused: None, turn: turn.clone() };
                });
                return Verdict { left: left.saturating_add(unused), ..here };
            }
            Some((by, wait, _)) => Verdict { by: by - 1, left: 0, wait: Some(Duration::from_micros(wait)) },
            None => here,
        };
        self.of(payer, |ahead| ahead.refused = Some((Instant::now(), verdict)));
        verdict
    }

    /// None when Redis does not answer.
    async fn ask(&self, limiters: &[Limiter], client: IpAddr, waiting: usize, wanted: u32) -> Option<Told> {
        let mut script = TAKE.prepare_invoke();
        // At least one: Redis divides by it.
        let micros = |limiter: &Limiter, requests| limiter.time_for(requests).as_micros().max(1);
        for limiter @ Limiter { name, per_second, burst, .. } in limiters {
            // With its numbers: a budget of other numbers would be misread.
            let budget = format!("rate:{name}:{per_second}:{burst}:{}", limiter.payer(client));
            script.key(self.redis.key(&budget));
            script.arg(micros(limiter, 1)).arg(micros(limiter, burst.get()));
        }
        script.arg(waiting).arg(wanted);
        self.redis.run("rate_limit", script).await
    }

    /// Forgets clients for whom nothing is left that was taken ahead.
    pub(super) fn forget_idle(&self) {
        let mut ahead = self.ahead.lock();
        ahead.retain(|_, ahead| ahead.in_time() || Arc::strong_count(&ahead.turn) > 1);
        ahead.shrink_to_fit();
    }

    /// What `look` finds at what was taken for `payer`.
    fn of<T>(&self, payer: Payer, look: impl FnOnce(&mut Ahead) -> T) -> T {
        look(self.ahead.lock().entry(payer).or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn clients_are_forgotten_once_nothing_is_left_of_what_was_taken() {
        let shared = Shared::new(Redis::nowhere());
        let payer = (Ipv4Addr::LOCALHOST.into(), "per_client");
        let waits = shared.of(payer, |ahead| ahead.turn.clone());
        shared.forget_idle();
        assert_eq!(shared.ahead.lock().len(), 1, "one waits for its turn");
        drop(waits);
        shared.of(payer, |ahead| ahead.until = Some(Instant::now() + LASTS));
        shared.forget_idle();
        assert_eq!(shared.ahead.lock().len(), 1, "some may be left");
        shared.of(payer, |ahead| ahead.until = Some(Instant::now()));
        shared.forget_idle();
        assert!(shared.ahead.lock().is_empty());
    }
}
