//! The tier that replicas share, in Redis.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use metrics::counter;
use redis::Script;
use tokio::time::timeout;
use uuid::Uuid;

use super::connection::{Config, Redis};
use super::missed::Missed;
use crate::health::Check;
use crate::task::Task;

/// The version that no later one follows.
pub(super) const DELETED: i64 = i64::MAX;

/// Between two attempts to follow other replicas.
pub(super) const RECONNECT: Duration = Duration::from_millis(500);

/// After so long without news from other replicas, whether they could still be heard is asked.
const QUIET: Duration = Duration::from_secs(1);

/// Between two attempts to store what could not be stored.
const CATCH_UP: Duration = Duration::from_millis(200);

/// Rises when a task is stored in another shape, so that two releases never read each other's entries.
const TASK: &str = "task:v1";
const CHANGES: &str = "task:changes";

/// Stores `version:json` unless a newer version was seen: a fill that raced a write must not win. What is stored
/// without JSON is a mark that only its version and later ones overwrite, and replicas are told of it.
static STORE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local seen = redis.call('GET', KEYS[1])
         if seen and tonumber(string.match(seen, '^%d+')) > tonumber(ARGV[1]) then return 0 end
         redis.call('SET', KEYS[1], ARGV[1] .. ':' .. ARGV[2], 'PX', ARGV[3])
         if ARGV[2] == '' then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
         return 1",
    )
});

/// What Redis has is not known.
#[derive(Debug)]
pub(super) struct NotAsked;

/// Clones share what they know.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    redis: Redis,
    missed: Arc<Mutex<Missed>>,
    ttl: Duration,
}

impl Shared {
    pub(super) fn open(config: &Config) -> anyhow::Result<Self> {
        Ok(Self { redis: Redis::open(config)?, missed: Arc::default(), ttl: config.ttl })
    }

    pub(super) fn check(&self) -> Check {
        self.redis.check()
    }

    pub(super) async fn get(&self, id: Uuid) -> Result<Option<Task>, NotAsked> {
        // Looked up before Redis is asked: once it is forgotten, Redis has that version or a later one.
        let least = self.missed().least(id).ok_or(NotAsked)?;
        let found = self.redis.get(self.key(id)).await;
        let outcome = match &found {
            Some(Some(_)) => "hit",
            Some(None) => "miss",
            None => "error",
        };
        counter!("cache_requests_total", "tier" => "redis", "outcome" => outcome).increment(1);
        // A mark without a task, or one of another shape, is as good as none.
        let believed = |found: String| {
            let (version, json) = found.split_once(':')?;
            let overtaken = version.parse::<i64>().ok()? < least;
            if overtaken { None } else { serde_json::from_str(json).ok() }
        };
        Ok(found.ok_or(NotAsked)?.and_then(believed))
    }

    /// Remembers that the store no longer has the task, whatever Redis may have of it.
    pub(super) fn gone(&self, id: Uuid) {
        self.missed().add(id, DELETED, self.ttl);
    }

    /// Stores what was loaded, unless a write has overtaken it.
    pub(super) async fn fill(&self, task: &Task) {
        let json = serde_json::to_string(task).expect("a task is always JSON");
        if !self.store(task.id, task.version, &json).await {
            self.missed().add(task.id, task.version, self.ttl);
        }
    }

    /// Replaces whatever is stored by a mark that only `version` and later ones overwrite, and tells the
    /// other replicas; later, if it can't be done now.
    pub(super) async fn supersede(&self, id: Uuid, version: i64) {
        if !self.store(id, version, "").await {
            self.missed().add(id, version, self.ttl);
        }
    }

    /// Supersedes what could not be superseded when it was written, for ever.
    pub(super) async fn catch_up(&self) {
        loop {
            tokio::time::sleep(CATCH_UP).await;
            let missed = self.missed().all();
            for (id, version) in missed {
                if !self.store(id, version, "").await {
                    break;
                }
                self.missed().done(id, version);
            }
        }
    }

    /// Calls `listening` once and then `changed` for each task that another replica has written, until the
    /// connection breaks.
    pub(super) async fn follow<F: Future<Output = ()>>(
        &self,
        listening: impl Fn(),
        changed: impl Fn(Uuid) -> F,
    ) {
        let Some(subscription) = self.redis.subscribe(CHANGES).await else { return };
        listening();
        let (mut peer, mut messages) = subscription.split();
        loop {
            match timeout(QUIET, messages.next()).await {
                Ok(Some(message)) => {
                    if let Some(id) = message.get_payload::<String>().ok().and_then(|text| text.parse().ok())
                    {
                        changed(id).await;
                    }
                }
                Ok(None) => return,
                // A peer that has vanished tells nobody.
                Err(_) => match timeout(QUIET, peer.ping::<()>()).await {
                    Ok(Ok(())) => {}
                    _ => return,
                },
            }
        }
    }

    /// Whether Redis has now seen this version or a later one.
    async fn store(&self, id: Uuid, version: i64, json: &str) -> bool {
        // Entries that were filled together don't expire together.
        let ttl = self.ttl.mul_f64(0.9 + 0.2 * fastrand::f64()).as_millis().to_string();
        let mut store = STORE.key(self.key(id));
        store.arg(version).arg(json).arg(ttl).arg(self.redis.key(CHANGES)).arg(id.to_string());
        self.redis.run::<()>("store", store).await.is_some()
    }

    fn key(&self, id: Uuid) -> String {
        self.redis.key(&format!("{TASK}:{id}"))
    }

    fn missed(&self) -> MutexGuard<'_, Missed> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
