//! Tasks in memory: they are lost with the process, and its memory grows with them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::config::Config;
use crate::health::Check;
use crate::jobs::Job;
use crate::task::{NewTask, Status, Task, TaskPatch};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no such task")]
    NotFound,
    #[error("the task has another version")]
    VersionMismatch,
}

/// Tasks in the order of their ids. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Store {
    tasks: Arc<RwLock<BTreeMap<Uuid, Task>>>,
}

#[expect(clippy::unused_async, reason = "the shape of a store that waits for a server")]
impl Store {
    /// An empty store. It needs no configuration; one behind a server would.
    pub fn open(_: &Config) -> anyhow::Result<Self> {
        Ok(Self::default())
    }

    /// Measured at each scrape: nothing, unlike for a connection pool.
    pub fn observe(&self) {}

    /// Closes all connections, of which there are none.
    pub async fn close(&self) {}

    /// What readiness depends on: nothing.
    pub fn checks(&self) -> Vec<Check> {
        Vec::new()
    }

    pub async fn create(&self, new: NewTask) -> Result<Task, Error> {
        let now = OffsetDateTime::now_utc();
        let task = Task {
            id: Uuid::now_v7(),
            title: new.title,
            description: new.description,
            status: Status::Open,
            version: 1,
            created_at: now,
            updated_at: now,
            completed_at: None,
        };
        self.tasks.write().insert(task.id, task.clone());
        Ok(task)
    }

    pub async fn get(&self, id: Uuid) -> Result<Task, Error> {
        let tasks = self.tasks.read();
        tasks.get(&id).cloned().ok_or(Error::NotFound)
    }

    /// At most `limit` tasks after the id `after`, in the order of their ids.
    pub async fn list(&self, status: Option<Status>, after: Uuid, limit: u16) -> Result<Vec<Task>, Error> {
        let tasks = self.tasks.read();
        let rest = tasks.range((Bound::Excluded(after), Bound::Unbounded)).map(|(_, task)| task);
        let fitting = rest.filter(|task| status.is_none_or(|status| status == task.status));
        Ok(fitting.take(limit.into()).cloned().collect())
    }

    /// Changes a task. If `version` is given, the task must still have it.
    pub async fn update(&self, id: Uuid, version: Option<i64>, patch: TaskPatch) -> Result<Task, Error> {
        let mut tasks = self.tasks.write();
        let task = of_version(&mut tasks, id, version)?;
        if let Some(title) = patch.title {
            task.title = title;
        }
        if let Some(description) = patch.description {
            task.description = description;
        }
        task.version += 1;
        task.updated_at = OffsetDateTime::now_utc();
        Ok(task.clone())
    }

    /// Completes a task. If `version` is given, the task must still have it. The first time, the job that
    /// `job` makes is returned as well.
    pub async fn complete(
        &self,
        id: Uuid,
        version: Option<i64>,
        job: impl FnOnce(&Task) -> Option<Job>,
    ) -> Result<(Task, Option<Job>), Error> {
        let mut tasks = self.tasks.write();
        let task = of_version(&mut tasks, id, version)?;
        if task.status == Status::Completed {
            return Ok((task.clone(), None));
        }
        let now = OffsetDateTime::now_utc();
        task.status = Status::Completed;
        task.version += 1;
        task.updated_at = now;
        task.completed_at = Some(now);
        Ok((task.clone(), job(task)))
    }

    /// Deletes a task. If `version` is given, the task must still have it.
    pub async fn delete(&self, id: Uuid, version: Option<i64>) -> Result<(), Error> {
        let mut tasks = self.tasks.write();
        of_version(&mut tasks, id, version)?;
        tasks.remove(&id);
        Ok(())
    }
}

fn of_version(tasks: &mut BTreeMap<Uuid, Task>, id: Uuid, version: Option<i64>) -> Result<&mut Task, Error> {
    let task = tasks.get_mut(&id).ok_or(Error::NotFound)?;
    if version.is_some_and(|version| version != task.version) {
        return Err(Error::VersionMismatch);
    }
    Ok(task)
}
