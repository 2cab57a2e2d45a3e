//! What can be done with tasks: each use-case over store, cache and jobs, and nothing of HTTP.

use std::panic::resume_unwind;
use std::sync::Arc;

use metrics::counter;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
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

/// In bytes, of the texts of a page, which ends with the task beyond it: what a slow client leaves lies in memory.
const LONGEST_PAGE: usize = 1024 * 1024;

/// Clones share everything.
#[derive(Clone, Debug)]
pub struct Tasks {
    pub store: Store,
    pub cache: Cache,
    pub queue: Arc<Queue>,
    /// Whether completions are told to a webhook.
    pub notify: bool,
    /// Writes under way.
    pub writes: TaskTracker,
}

impl Tasks {
    pub async fn create(&self, new: NewTask) -> Result<Task, Error> {
        let task = self.store.create(new).await.map_err(Arc::new)?;
        counter!("tasks_total", "event" => "created").increment(1);
        Ok(task)
    }

    pub async fn get(&self, id: Uuid) -> Result<Rendered, Error> {
        Ok(self.cache.get(id, &self.store).await?)
    }

    pub async fn list(&self, status: Option<Status>, after: Uuid, limit: u16) -> Result<TaskPage, Error> {
        // One more than asked for tells whether there is a next page.
        let mut items = self.store.list(status, after, limit + 1).await.map_err(Arc::new)?;
        let mut length = 0;
        let fits = |task: &&Task| {
            let before = length;
            length += task.title.len() + task.description.as_ref().map_or(0, String::len);
            before < LONGEST_PAGE
        };
        let fitting = items.iter().take(limit.into()).take_while(fits).count();
        let more = items.len() > fitting;
        items.truncate(fitting);
        let next_cursor = items.last().filter(|_| more).map(|last| last.id);
        Ok(TaskPage { items, next_cursor })
    }

    pub async fn update(&self, id: Uuid, version: Option<i64>, patch: TaskPatch) -> Result<Task, Error> {
        self.to_its_end(|this| async move {
            let task = this.or_forget(id, this.store.update(id, version, patch).await).await?;
            this.cache.written(&task).await;
            Ok(task)
        })
        .await
    }

    pub async fn complete(&self, id: Uuid, version: Option<i64>) -> Result<Task, Error> {
        self.to_its_end(|this| async move { this.complete_and_queue(id, version).await }).await
    }

    async fn complete_and_queue(&self, id: Uuid, version: Option<i64>) -> Result<Task, Error> {
        // Room in the queue comes first: a completion must not be kept if no one can be told of it.
        let place = match self.notify.then(|| self.queue.reserve()) {
            Some(None) => {
                let before = self.completed_before(id, version).await;
                return self.or_forget(id, before).await?.ok_or(Error::QueueFull);
            }
            place => place.flatten(),
        };
        let mut first = false;
        let notify = |task: &Task| {
            first = true;
            self.notify.then(|| webhook::task_completed(task))
        };
        let (task, job) = self.or_forget(id, self.store.complete(id, version, notify).await).await?;
        self.cache.written(&task).await;
        if let (Some(place), Some(job)) = (place, job) {
            self.queue.push(place, job);
        }
        if first {
            counter!("tasks_total", "event" => "completed").increment(1);
        }
        Ok(task)
    }

    /// A completed task, which needs no place in the queue to stay so. None while it is open.
    async fn completed_before(&self, id: Uuid, version: Option<i64>) -> Result<Option<Task>, store::Error> {
        let task = self.store.get(id).await?;
        if version.is_some_and(|version| version != task.version) {
            return Err(store::Error::VersionMismatch);
        }
        // Read past the cache, which may know an older one still.
        self.cache.written(&task).await;
        Ok(Some(task).filter(|task| task.status == Status::Completed))
    }

    pub async fn delete(&self, id: Uuid, version: Option<i64>) -> Result<(), Error> {
        self.to_its_end(|this| async move {
            this.or_forget(id, this.store.delete(id, version).await).await?;
            this.cache.deleted(id).await;
            counter!("tasks_total", "event" => "deleted").increment(1);
            Ok(())
        })
        .await
    }

    /// Finishes a write also for a client that has left or waited too long: once it is stored, the rest must follow.
    async fn to_its_end<T: Send + 'static, W>(&self, write: impl FnOnce(Self) -> W) -> Result<T, Error>
    where
        W: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let write = Context::current().unwrap_or_default().scope(write(self.clone())).in_current_span();
        // Nothing aborts it, so it can only have panicked: a fault of this request.
        self.writes.spawn(write).await.unwrap_or_else(|panicked| resume_unwind(panicked.into_panic()))
    }

    /// What a write came to. A refusal may tell more than this replica knows: then the task is read anew.
    async fn or_forget<T>(&self, id: Uuid, written: Result<T, store::Error>) -> Result<T, Error> {
        if written.is_err() {
            self.cache.doubted(id).await;
        }
        Ok(written.map_err(Arc::new)?)
    }
}
