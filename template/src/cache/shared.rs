//! The cache tier that replicas share, in Redis.

use std::mem::replace;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use metrics::counter;
use parking_lot::Mutex;
use redis::Script;
use tokio::time::timeout;
use tracing::warn;
use uuid::Uuid;

use super::Cache;
use super::connection::{Config, Redis};
use super::missed::Missed;
use crate::store::Error;
use crate::task::{Rendered, Task};

/// A version below that of any task.
pub(super) const NO_VERSION: i64 = 0;
/// The version of a deleted task: none comes after it.
pub(super) const DELETED: i64 = i64::MAX;
/// How long a load may take and still be stored.
const LEASE: Duration = Duration::from_secs(10);

/// Between two attempts to subscribe to the changes of other replicas.
pub(super) const RECONNECT: Duration = Duration::from_millis(500);

/// After this long without a message from other replicas, the subscription is pinged.
const QUIET: Duration = Duration::from_secs(1);

/// Between two attempts to store what could not be stored at first.
const CATCH_UP: Duration = Duration::from_millis(200);

/// Bumped when tasks are stored in another shape: two releases share their marks, but neither reads the other's tasks.
const SHAPE: &str = "v1";
const TASK: &str = "task";
const CHANGES: &str = "task:changes";

/// What is stored: `version:`, the shape and the JSON; or, instead of shape and JSON, a mark left by the write of that
/// version. A lookup that finds nothing leaves a mark of its own, under [`NO_VERSION`].
static LOOK_UP: LazyLock<Script> = LazyLock::new(|| Script::new(LOOK_UP_LUA));
const LOOK_UP_LUA: &str = "local found = redis.pcall('GET', KEYS[1])
    if type(found) == 'string' then return found end
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return ARGV[1]";

/// Replaces what the lookup found with the task that was loaded since, or with a mark that there is none, and replaces
/// nothing else: a fill must not win if it raced a write, comes after a flush, or was read from a server that lags.
/// Returns whether this version or a later one is there.
static FILL: LazyLock<Script> = LazyLock::new(|| Script::new(FILL_LUA));
const FILL_LUA: &str = "local there = redis.call('GET', KEYS[1])
    local version = there and tonumber(string.match(there, '^%d+') or 0)
    if there == ARGV[1] and version <= tonumber(ARGV[2]) then
        redis.call('SET', KEYS[1], ARGV[2] .. ':' .. ARGV[3] .. ARGV[4], 'PX', ARGV[5])
        return true
    end
    return there and version >= tonumber(ARGV[2])";

/// Stores a mark unless a newer version is there, and tells the other replicas. If this version was only read, it may
/// stay as it is, and they are told only where there is an older one, since nobody has told of its successor. Version 0
/// means an unknown outcome: it replaces any version, but stores nothing if there is no entry, since nothing old can
/// come back then.
static SUPERSEDE: LazyLock<Script> = LazyLock::new(|| Script::new(SUPERSEDE_LUA));
const SUPERSEDE_LUA: &str = "local seen = redis.pcall('GET', KEYS[1])
    local version = type(seen) == 'string' and tonumber(string.match(seen, '^%d+') or 0) or 0
    local written = ARGV[6] == '1'
    if ARGV[1] ~= '0' and version > tonumber(ARGV[1]) then return end
    if version == tonumber(ARGV[1]) and not written then return end
    if seen or ARGV[1] ~= '0' then
        redis.call('SET', KEYS[1], ARGV[1] .. ':' .. ARGV[2], 'PX', ARGV[3])
    end
    if written or version > 0 then redis.call('PUBLISH', ARGV[4], ARGV[5]) end";

/// What Redis has for a task.
#[derive(Debug)]
pub(super) enum Found {
    Task(Rendered),
    /// No task that may be believed, but something in its place: a mark, or a task that is too old.
    Instead(String),
    /// Redis was not asked, or did not answer.
    Unknown,
}

/// Clones share what they know.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) redis: Redis,
    missed: Arc<Mutex<Missed>>,
    ttl: Duration,
}

impl Shared {
    pub(super) fn open(config: &Config) -> anyhow::Result<Self> {
        Ok(Self { redis: Redis::open(config)?, missed: Arc::default(), ttl: config.ttl })
    }

    pub(super) async fn get(&self, id: Uuid) -> Found {
        // Read before Redis is asked: once a version is forgotten here, Redis has that or a later one.
        // While nothing may be believed, Redis is asked all the same, so that what is loaded can replace what it has.
        let min_version = self.missed.lock().min_version(id).unwrap_or(DELETED);
        let mut look_up = LOOK_UP.key(self.key(id));
        look_up.arg(format!("{NO_VERSION}:{}", mark())).arg(LEASE.as_millis().to_string());
        let (outcome, found) = match self.redis.run::<String>("get", look_up).await {
            Some(found) => match believed(&found, min_version) {
                Some(task) => ("hit", Found::Task(task)),
                None => ("miss", Found::Instead(found)),
            },
            None => ("error", Found::Unknown),
        };
        counter!("cache_requests_total", "tier" => "redis", "outcome" => outcome).increment(1);
        found
    }

    /// Stores what was loaded after a lookup that `found` no task, or remembers that Redis does not have it.
    pub(super) async fn fill(&self, id: Uuid, loaded: &Result<Rendered, Error>, found: &Found) {
        let (version, json, lifetime) = match loaded {
            Ok(task) => (task.version, task.json.clone(), self.lifetime()),
            // Stops a load from before the deletion from storing the task. Short-lived: any number of ids have no task.
            Err(Error::NotFound) => (DELETED, mark().into(), LEASE.as_millis().to_string()),
            Err(_) => return,
        };
        if let Found::Instead(found) = found {
            let mut fill = FILL.key(self.key(id));
            fill.arg(found).arg(version).arg(SHAPE).arg(&*json).arg(lifetime);
            if self.redis.run("store", fill).await == Some(true) {
                return;
            }
        }
        self.missed.lock().add(id, version, false, self.ttl);
    }

    /// Stores a mark that only `version` and later ones overwrite, as [`SUPERSEDE`] does, and tells the
    /// other replicas. If that fails now, it is done later.
    pub(super) async fn supersede(&self, id: Uuid, version: i64) {
        if !self.superseded(id, version, true).await {
            self.missed.lock().add(id, version, true, self.ttl);
        }
    }

    /// Runs forever: retries to supersede what could not be superseded when it was written.
    pub(super) async fn catch_up(&self) {
        loop {
            tokio::time::sleep(CATCH_UP).await;
            let missed = self.missed.lock().pending();
            for (id, version, written) in missed {
                if !self.superseded(id, version, written).await {
                    break;
                }
                self.missed.lock().stored(id, version, written);
            }
        }
    }

    /// Invalidates in `cache` each task that another replica has written, until the connection breaks. Logs why it can't,
    /// unless this was `told` before.
    pub(super) async fn follow(&self, cache: &Cache, told: &mut bool) {
        let subscription = match self.redis.subscribe(CHANGES).await {
            Ok(subscription) => subscription,
            Err(reason) => {
                if !replace(told, true) {
                    warn!(%reason, category = "unavailable", "cache.follow_failed");
                }
                return;
            }
        };
        *told = false;
        // Changes may have been missed while there was no connection, up to this moment.
        cache.invalidate_all();
        let (mut peer, mut messages) = subscription.split();
        loop {
            match timeout(QUIET, messages.next()).await {
                Ok(Some(message)) => {
                    let id = message.get_payload::<String>().ok().and_then(|text| text.parse().ok());
                    if let Some(id) = id {
                        cache.invalidate(id).await;
                    }
                }
                // A peer that vanishes does not close the connection, so it is pinged.
                Err(_) if matches!(timeout(QUIET, peer.ping::<()>()).await, Ok(Ok(()))) => {}
                // From now on changes are missed.
                Ok(None) | Err(_) => return cache.invalidate_all(),
            }
        }
    }

    /// Whether Redis has now seen this version or a later one.
    async fn superseded(&self, id: Uuid, version: i64, written: bool) -> bool {
        let mut supersede = SUPERSEDE.key(self.key(id));
        supersede.arg(version).arg(mark()).arg(self.lifetime());
        supersede.arg(self.redis.key(CHANGES)).arg(id.to_string()).arg(written);
        self.redis.run::<()>("store", supersede).await.is_some()
    }

    /// How long an entry is kept, in milliseconds, with jitter: entries stored together don't expire together.
    fn lifetime(&self) -> String {
        // At least 1: Redis refuses to store for no time at all.
        self.ttl.mul_f64(0.9 + 0.2 * fastrand::f64()).as_millis().max(1).to_string()
    }

    fn key(&self, id: Uuid) -> String {
        self.redis.key(&[TASK, &id.to_string()].join(":"))
    }
}

/// The task, unless it is older than `min_version`. A mark is no task, nor is an entry in another release's shape.
fn believed(found: &str, min_version: i64) -> Option<Rendered> {
    let (version, json) = found.split_once(':')?;
    let version = version.parse().ok().filter(|version| *version >= min_version)?;
    let json = json.strip_prefix(SHAPE)?;
    serde_json::from_str::<Task>(json).ok()?;
    Some(Rendered { version, json: Bytes::copy_from_slice(json.as_bytes()) })
}

/// Unique, so that a replaced mark is not mistaken for the one that replaced it.
fn mark() -> String {
    Uuid::now_v7().simple().to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Redis refuses a lifetime of 0, and with it the message to other replicas.
    #[tokio::test]
    async fn shortest_lifetime_is_a_millisecond() {
        let ttl = Duration::from_millis(1);
        let shared = Shared { redis: Redis::nowhere(), missed: Arc::default(), ttl };
        assert!((0..100).all(|_| shared.lifetime() == "1"));
    }

    #[tokio::test]
    async fn entries_stored_together_do_not_expire_together() {
        let ttl = Duration::from_secs(1);
        let shared = Shared { redis: Redis::nowhere(), missed: Arc::default(), ttl };
        let lifetimes = (0..200).map(|_| shared.lifetime().parse().expect("milliseconds"));
        let lifetimes: BTreeSet<u64> = lifetimes.collect();
        let (first, last) = (lifetimes.first().expect("some"), lifetimes.last().expect("some"));
        assert!((900..950).contains(first) && (1050..=1100).contains(last), "{lifetimes:?}");
    }
}
