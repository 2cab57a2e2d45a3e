//! Tasks in Redis, as JSON.

use redis::AsyncCommands;
use redis::aio::ConnectionManager;
use uuid::Uuid;

use crate::{Anything, NewTask, Store, Task};

#[derive(Clone)]
pub struct Redis(ConnectionManager);

impl Redis {
    pub async fn connect(url: &str) -> Result<Self, Anything> {
        Ok(Self(redis::Client::open(url)?.get_connection_manager().await?))
    }
}

impl Store for Redis {
    async fn create(&self, new: NewTask) -> Result<Task, Anything> {
        let task = Task::new(new);
        let () = self.0.clone().set(task.id.to_string(), serde_json::to_string(&task)?).await?;
        Ok(task)
    }

    async fn get(&self, id: Uuid) -> Result<Option<Task>, Anything> {
        let found: Option<String> = self.0.clone().get(id.to_string()).await?;
        Ok(found.map(|json| serde_json::from_str(&json)).transpose()?)
    }

    async fn list(&self) -> Result<Vec<Task>, Anything> {
        Err("a list is not kept here".into())
    }
}
