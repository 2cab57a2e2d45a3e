//! The use cases for tasks, built on the store, the cache and the job queue. They know nothing of HTTP.

use std::sync::Arc;

use metrics::counter;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::cache::Cache;
use crate::queue::Queue;
use crate::store::{self, Store};
use crate::task::{NewTask, Rendered, Status, Task, TaskPage, TaskPatch};
use crate::telemetry::context::Context;
use crate::webhook;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] Arc<store::Error>),
    #[error("the job queue is full")]
    QueueFull,
}

/// In bytes of text. A page ends with the task that reaches this: what a slow client has not read stays in memory.
const MAX_PAGE_BYTES: usize = 1024 * 1024;

/// Clones share everything.
#[derive(Clone, Debug)]
pub struct Tasks {
    pub store: Store,
    pub cache: Cache,
    pub queue: Arc<Queue>,
    /// Whether completions are sent to a webhook.
    pub notify: bool,
    /// Writes in flight.
    pub writes: TaskTracker,
}

impl Tasks {
    pub async fn create(&self, new: NewTask) -> Result<Task, Error> {
        self.run_to_completion(|this| async move {
            let task = this.store.create(new).await.map_err(Arc::new)?;
            counter!("tasks_total", "event" => "created").increment(1);
            Ok(task)
        })
        .await
    }

    pub async fn get(&self, id: Uuid) -> Result<Rendered, Error> {
        Ok(self.cache.get(id, &self.store).await?)
    }

    pub async fn list(&self, status: Option<Status>, after: Uuid, limit: u16) -> Result<TaskPage, Error> {
        // One more than asked for, to see whether there is a next page.
        let mut items = self.store.list(status, after, limit + 1).await.map_err(Arc::new)?;
        let mut length = 0;
        let fits = |task: &&Task| {
            let before = length;
            length += task.title.len() + task.description.as_ref().map_or(0, String::len);
            before < MAX_PAGE_BYTES
        };
        let fitting = items.iter().take(limit.into()).take_while(fits).count();
        let more = items.len() > fitting;
        items.truncate(fitting);
        let next_cursor = items.last().filter(|_| more).map(|last| last.id);
        Ok(TaskPage { items, next_cursor })
    }

    pub async fn update(&self, id: Uuid, version: Option<i64>, patch: TaskPatch) -> Result<Task, Error> {
        self.run_to_completion(|this| async move {
            let task = this.or_invalidate(id, this.store.update(id, version, patch).await).await?;
            this.cache.after_write(&task).await;
            Ok(task)
        })
        .await
    }

    pub async fn complete(&self, id: Uuid, version: Option<i64>) -> Result<Task, Error> {
        self.run_to_completion(|this| async move { this.complete_and_queue(id, version).await }).await
    }

    async fn complete_and_queue(&self, id: Uuid, version: Option<i64>) -> Result<Task, Error> {
        // Room in the queue comes first: a completion must not be stored if its notification can't be queued.
        let permit = match self.notify.then(|| self.queue.reserve()) {
            Some(None) => {
                let before = self.completed_before(id, version).await;
                return self.or_invalidate(id, before).await?.ok_or(Error::QueueFull);
            }
            permit => permit.flatten(),
        };
        let mut first = false;
        let notify = |task: &Task| {
            first = true;
            self.notify.then(|| webhook::task_completed(task))
        };
        let (task, job) = self.or_invalidate(id, self.store.complete(id, version, notify).await).await?;
        self.cache.after_write(&task).await;
        if let (Some(permit), Some(job)) = (permit, job) {
            self.queue.push(permit, job);
        }
        if first {
            counter!("tasks_total", "event" => "completed").increment(1);
        }
        Ok(task)
    }

    /// The task, if it is completed already: that takes no room in the queue. `None` if it is still open.
    async fn completed_before(&self, id: Uuid, version: Option<i64>) -> Result<Option<Task>, store::Error> {
        let task = self.store.get(id).await?;
        if version.is_some_and(|version| version != task.version) {
            return Err(store::Error::VersionMismatch);
        }
        // This read bypassed the cache, which may still have an older version.
        self.cache.after_write(&task).await;
        Ok(Some(task).filter(|task| task.status == Status::Completed))
    }

    pub async fn delete(&self, id: Uuid, version: Option<i64>) -> Result<(), Error> {
        self.run_to_completion(|this| async move {
            this.or_invalidate(id, this.store.delete(id, version).await).await?;
            this.cache.after_delete(id).await;
            counter!("tasks_total", "event" => "deleted").increment(1);
            Ok(())
        })
        .await
    }

    /// Finishes a write even if its client has left or timed out: once it is stored, the rest must follow.
    async fn run_to_completion<T: Send + 'static, W>(&self, write: impl FnOnce(Self) -> W) -> Result<T, Error>
    where
        W: Future<Output = Result<T, Error>> + Send + 'static,
    {
        Context::run_detached(self.writes.track_future(write(self.clone()))).await
    }

    /// The outcome of a write. An error may mean that the cached task is out of date, so it is invalidated.
    async fn or_invalidate<T>(&self, id: Uuid, outcome: Result<T, store::Error>) -> Result<T, Error> {
        if outcome.is_err() {
            self.cache.after_failed_write(id).await;
        }
        Ok(outcome.map_err(Arc::new)?)
    }
}
