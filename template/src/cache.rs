//! A read-through cache of tasks: concurrent misses share one load, and no replica serves what its own write replaced.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use garde::Validate;
use metrics::{Counter, counter};
use serde::Deserialize;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::config::value::{between, millis};
//@ if redis
use crate::health::Check;
//@ end
use crate::store::{Error, Store};
use crate::task::{Rendered, Task};
use crate::telemetry::context::Context;

//@ if redis
pub mod connection;
mod missed;
mod shared;

//@ end
/// Loads at once, including callers that wait for the same one.
const MAX_LOADS: usize = 1000;

#[derive(Clone, Copy, Debug, Deserialize, Validate)]
#[garde(allow_unvalidated)]
pub struct Config {
    #[garde(custom(between(1, 100_000_000)))]
    pub capacity: u64,
    #[serde(deserialize_with = "millis::<1, 86_400_000, _>")]
    pub ttl: Duration,
}

/// Clones share the cache.
#[derive(Clone, Debug)]
pub struct Cache {
    memory: moka::future::Cache<Uuid, Entry>,
    hits: Counter,
    misses: Counter,
    /// Counts writes by the end of the task's id, which is random: tasks that share a counter cost an extra load.
    writes: Arc<[AtomicU64]>,
    /// Bounds the loads, which go on without their callers.
    loads: Arc<Semaphore>,
    //@ if redis
    shared: shared::Shared,
    //@ end
}

#[derive(Clone, Debug)]
struct Entry {
    task: Rendered,
    /// [`Cache::count`] from before the load: the entry is stale for a caller that comes after a later write.
    writes: u64,
}

impl Cache {
    pub fn open(config: &crate::config::Config) -> anyhow::Result<Self> {
        let Config { capacity, ttl } = config.cache;
        // Weighed by size: 10,000 of the largest tasks would take 400 MB.
        let weight = |_: &Uuid, it: &Entry| u32::try_from(it.task.json.len() / 1024 + 1).unwrap_or(u32::MAX);
        let memory = moka::future::Cache::builder().max_capacity(capacity).weigher(weight);
        let memory = memory.time_to_live(ttl).build();
        let requests = |outcome| counter!("cache_requests_total", "tier" => "memory", "outcome" => outcome);
        Ok(Self {
            memory,
            hits: requests("hit"),
            misses: requests("miss"),
            writes: (0..1024).map(|_| AtomicU64::new(0)).collect(),
            loads: Arc::new(Semaphore::new(MAX_LOADS)),
            //@ if redis
            shared: shared::Shared::open(&config.redis)?,
            //@ end
        })
    }
    //@ if redis

    pub fn check(&self) -> Check {
        self.shared.redis.check()
    }
    //@ end

    /// The task, loaded unless it is cached. Callers that miss at the same time share one load.
    pub async fn get(&self, id: Uuid, store: &Store) -> Result<Rendered, Arc<Error>> {
        let count = self.count(id);
        // Boxed: moka's future would be most of what a request carries.
        if let Some(entry) = Box::pin(self.memory.get(&id)).await
            && entry.writes >= count
        {
            self.hits.increment(1);
            return Ok(entry.task);
        }
        self.misses.increment(1);
        // Boxed, so that a hit does not carry the size of a load: the future of a request is moved often.
        Box::pin(self.reload(id, count, store)).await
    }

    async fn reload(&self, id: Uuid, count: u64, store: &Store) -> Result<Rendered, Arc<Error>> {
        // Three rounds at most: the cached entry may be stale, and the load in flight, but not the load after that.
        loop {
            let turn = self.loads.clone().acquire_owned().await.expect("the semaphore is never closed");
            let (cache, store) = (self.clone(), store.clone());
            // In a task, so that it ends although its caller leaves: otherwise it is passed on to the next that waits, and
            // moka panics when 200 have left.
            let load = async move {
                let _turn = turn;
                // Boxed by the caller that loads, so that those that wait for it don't carry its size.
                let load = async { Box::pin(cache.load(id, &store)).await };
                cache.memory.try_get_with(id, load).await
            };
            let entry = Context::run_detached(load).await?;
            if entry.writes >= count {
                return Ok(entry.task);
            }
            self.memory.invalidate(&id).await;
        }
    }

    async fn load(&self, id: Uuid, store: &Store) -> Result<Entry, Error> {
        let writes = self.count(id);
        //@ if redis
        let found = self.shared.get(id).await;
        if let shared::Found::Task(task) = found {
            return Ok(Entry { task, writes });
        }
        //@ end
        let loaded = store.get(id).await.map(|task| Rendered::from(&task));
        //@ if redis
        self.shared.fill(id, &loaded, &found).await;
        //@ end
        Ok(Entry { task: loaded?, writes })
    }

    /// Invalidates what a write has changed. Called after the write and before it is acknowledged.
    pub async fn after_write(&self, task: &Task) {
        self.invalidate(task.id).await;
        //@ if redis
        self.supersede(task.id, task.version).await;
        //@ end
    }

    pub async fn after_delete(&self, id: Uuid) {
        self.invalidate(id).await;
        //@ if redis
        self.supersede(id, shared::DELETED).await;
        //@ end
    }
    //@ if redis

    async fn supersede(&self, id: Uuid, version: i64) {
        self.shared.supersede(id, version).await;
        // Again: until it was superseded in Redis, the old value could be loaded from there.
        self.invalidate(id).await;
    }
    //@ end

    /// Invalidates a task that may have changed, whichever version is cached: the outcome of a write is unknown.
    pub async fn after_failed_write(&self, id: Uuid) {
        self.invalidate(id).await;
        //@ if redis
        self.supersede(id, shared::NO_VERSION).await;
        //@ end
    }

    /// Makes the next read load the task again.
    async fn invalidate(&self, id: Uuid) {
        self.counter(id).fetch_add(1, Ordering::SeqCst);
        self.memory.invalidate(&id).await;
    }
    //@ if redis

    /// Runs forever: invalidates what other replicas change.
    pub async fn follow(self) {
        let listen = async {
            let mut told = false;
            loop {
                self.shared.follow(&self, &mut told).await;
                tokio::time::sleep(shared::RECONNECT).await;
            }
        };
        tokio::join!(listen, self.shared.catch_up());
    }

    fn invalidate_all(&self) {
        for counter in &*self.writes {
            counter.fetch_add(1, Ordering::SeqCst);
        }
        self.memory.invalidate_all();
    }
    //@ end

    fn counter(&self, id: Uuid) -> &AtomicU64 {
        let [.., high, low] = id.into_bytes();
        &self.writes[usize::from(u16::from_be_bytes([high, low])) % self.writes.len()]
    }

    fn count(&self, id: Uuid) -> u64 {
        self.counter(id).load(Ordering::SeqCst)
    }
}
