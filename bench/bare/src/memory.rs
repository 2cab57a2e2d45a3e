//! Tasks in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use uuid::Uuid;

use crate::{Anything, NewTask, PAGE, Store, Task};

#[derive(Clone, Default)]
pub struct Memory(Arc<RwLock<BTreeMap<Uuid, Task>>>);

impl Store for Memory {
    async fn create(&self, new: NewTask) -> Result<Task, Anything> {
        let task = Task::new(new);
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(task.id, task.clone());
        Ok(task)
    }

    async fn get(&self, id: Uuid) -> Result<Option<Task>, Anything> {
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned())
    }

    async fn list(&self) -> Result<Vec<Task>, Anything> {
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).values().take(PAGE + 1).cloned().collect())
    }
}
