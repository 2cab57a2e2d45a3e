//! loco as its documentation has it, with what it switches on by itself, and the same answers as the service. It keeps
//! tasks in memory and logs no request at `info`.
//!
//! Its first line says where it listens.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use loco_rs::Result;
use loco_rs::app::{AppContext, Hooks};
use loco_rs::bgworker::Queue;
use loco_rs::boot::{self, BootResult, ServeParams, StartMode, create_app};
use loco_rs::config::Config;
use loco_rs::controller::{AppRoutes, Routes};
use loco_rs::environment::Environment;
use loco_rs::logger;
use loco_rs::task::Tasks;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use uuid::Uuid;

#[derive(Clone, Serialize)]
struct Task {
    id: Uuid,
    title: String,
    description: Option<String>,
    status: &'static str,
    version: i64,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
    completed_at: Option<()>,
}

#[derive(Deserialize)]
struct NewTask {
    title: String,
    description: Option<String>,
}

type Memory = Extension<Arc<RwLock<HashMap<Uuid, Task>>>>;

async fn create_task(Extension(tasks): Memory, Json(new): Json<NewTask>) -> Response {
    let (id, now) = (Uuid::now_v7(), OffsetDateTime::now_utc());
    let NewTask { title, description } = new;
    let (status, completed_at) = ("open", None);
    let task =
        Task { id, title, description, status, version: 1, created_at: now, updated_at: now, completed_at };
    tasks.write().unwrap_or_else(PoisonError::into_inner).insert(id, task.clone());
    (StatusCode::CREATED, [(header::LOCATION, format!("/v1/tasks/{id}"))], Json(task)).into_response()
}

async fn get_task(Extension(tasks): Memory, Path(id): Path<Uuid>) -> Response {
    let task = tasks.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
    let Some(task) = task else { return StatusCode::NOT_FOUND.into_response() };
    ([(header::ETAG, format!("\"{}\"", task.version))], Json(task)).into_response()
}

struct App;

#[async_trait]
impl Hooks for App {
    fn app_name() -> &'static str {
        "rival"
    }

    async fn boot(mode: StartMode, environment: &Environment, config: Config) -> Result<BootResult> {
        create_app::<Self>(mode, environment, config).await
    }

    /// As it is, but that it says where it listens.
    async fn serve(app: Router, _: &AppContext, params: &ServeParams) -> Result<()> {
        let listener = TcpListener::bind(format!("{}:{}", params.binding, params.port)).await?;
        println!("{}", listener.local_addr()?);
        Ok(axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?)
    }

    fn routes(_: &AppContext) -> AppRoutes {
        let tasks = Routes::new().prefix("v1/tasks").add("/", post(create_task)).add("/{id}", get(get_task));
        AppRoutes::with_default_routes().add_route(tasks)
    }

    async fn after_routes(router: Router, _: &AppContext) -> Result<Router> {
        Ok(router.layer(Memory::default()))
    }

    async fn connect_workers(_: &AppContext, _: &Queue) -> Result<()> {
        Ok(())
    }

    fn register_tasks(_: &mut Tasks) {}
}

#[tokio::main]
async fn main() -> Result<()> {
    let environment = Environment::Production;
    let config = environment.load()?;
    logger::init::<App>(&config.logger)?;
    let params = ServeParams { port: config.server.port, binding: config.server.binding.clone() };
    let app = App::boot(StartMode::ServerOnly, &environment, config).await?;
    boot::start::<App>(app, params, true).await
}
