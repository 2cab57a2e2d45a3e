//! Drills of the API over real sockets.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::http::{Connection, Response, get, request};
use crate::prove::service::Service;

use super::Site;

pub fn round_trip(site: &Site<'_>) -> Result<String> {
    let service = site.start(site.unlimited())?;
    let created = create(&service, "Pack the boxes")?;
    let location = created.header("location").context("no Location")?.to_owned();
    let task = created.json()?;
    let id = task["id"].as_str().context("no id")?;
    ensure!(location.ends_with(&format!("/v1/tasks/{id}")), "Location is {location}");
    ensure!(task["status"] == "open" && task["completed_at"].is_null(), "not open: {task}");
    let path = format!("/v1/tasks/{id}");

    let read = ok(&get(service.public, &path)?)?;
    ensure!(read == task, "read {read}, created {task}");
    let change = r#"{"title": "Pack all the boxes"}"#;
    let changed = ok(&request(service.public, "PATCH", &path, change)?)?;
    ensure!(changed["title"] == "Pack all the boxes", "not changed: {changed}");
    let complete = || ok(&request(service.public, "POST", &format!("{path}/complete"), "")?);
    let first = complete()?;
    ensure!(first["status"] == "completed" && first["completed_at"].is_string(), "{first}");
    ensure!(complete()? == first, "completing again changed the task");

    pages(&service)?;
    let deleted = request(service.public, "DELETE", &path, "")?;
    ensure!(deleted.status == 204, "DELETE answered {}", deleted.status);
    let gone = get(service.public, &path)?;
    ensure!(gone.status == 404, "a deleted task answered {}", gone.status);
    site.stop(service)?;
    Ok("11 requests".into())
}

/// Creates two more tasks, then reads all three in pages of two.
fn pages(service: &Service) -> Result<()> {
    create(service, "Load the van")?;
    create(service, "Drive")?;
    let first = ok(&get(service.public, "/v1/tasks?limit=2")?)?;
    let cursor = first["next_cursor"].as_str().context("no next_cursor on a full page")?;
    let second = ok(&get(service.public, &format!("/v1/tasks?limit=2&cursor={cursor}"))?)?;
    ensure!(second["next_cursor"].is_null(), "a cursor on the last page: {second}");
    let ids = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().into_iter().flatten();
        items.map(|item| item["id"].to_string()).collect()
    };
    let mut seen = ids(&first);
    seen.extend(ids(&second));
    seen.sort();
    seen.dedup();
    ensure!(seen.len() == 3, "three tasks in pages of two gave {}", seen.len());
    let open = ok(&get(service.public, "/v1/tasks?status=completed")?)?;
    ensure!(ids(&open).len() == 1, "one task is completed: {open}");
    Ok(())
}

pub fn versions(site: &Site<'_>) -> Result<String> {
    let service = site.start(site.unlimited())?;
    let task = create(&service, "Check the tyres")?.json()?;
    let path = format!("/v1/tasks/{}", task["id"].as_str().context("no id")?);
    let tag = get(service.public, &path)?.header("etag").context("no ETag")?.to_owned();
    let mut connection = Connection::open(service.public)?;
    let mut change = |tag: &str| {
        let condition = format!("if-match: {tag}\r\n");
        connection.request("PATCH", &path, &condition, r#"{"title": "Check all tyres"}"#)
    };
    let fresh = change(&tag)?;
    ensure!(fresh.status == 200, "a fresh If-Match answered {}", fresh.status);
    let stale = change(&tag)?;
    ensure!(stale.status == 412, "a stale If-Match answered {}", stale.status);
    problem(&stale, 412, "conflict")?;
    site.stop(service)?;
    Ok(format!("{tag} was refused once stale"))
}

pub fn problems(site: &Site<'_>) -> Result<String> {
    let service = site.start(site.unlimited())?;
    let long = format!(r#"{{"title": "{}"}}"#, "x".repeat(201));
    let huge = format!(r#"{{"title": "x", "description": "{}"}}"#, "x".repeat(2 << 20));
    let expected = [
        ("GET", "/nowhere", "", 404, "not_found"),
        ("GET", "/v1/tasks/00000000-0000-7000-8000-000000000000", "", 404, "not_found"),
        ("PUT", "/v1/tasks", "", 405, "method_not_allowed"),
        ("POST", "/v1/tasks", "{", 400, "validation"),
        ("POST", "/v1/tasks", "", 415, "validation"),
        ("POST", "/v1/tasks", r#"{"title": " "}"#, 422, "validation"),
        ("POST", "/v1/tasks", r#"{"title": "x", "owner": "y"}"#, 422, "validation"),
        ("POST", "/v1/tasks", &long, 422, "validation"),
        ("POST", "/v1/tasks", &huge, 413, "too_large"),
    ];
    for (method, path, body, status, category) in expected {
        let answer = request(service.public, method, path, body)?;
        let start: String = body.chars().take(30).collect();
        problem(&answer, status, category).with_context(|| format!("{method} {path} {start}"))?;
    }
    site.stop(service)?;
    Ok(format!("{} refusals", expected.len()))
}

/// Checks that an answer is the refusal that RFC 9457 and the contract require.
fn problem(answer: &Response, status: u16, category: &str) -> Result<()> {
    ensure!(answer.status == status, "{} instead of {status}: {}", answer.status, answer.body);
    let kind = answer.header("content-type").unwrap_or_default();
    ensure!(kind.starts_with("application/problem+json"), "its content type is {kind}");
    let problem = answer.json()?;
    for field in ["type", "title", "detail", "category", "request_id"] {
        ensure!(problem[field].is_string(), "no `{field}` in {problem}");
    }
    ensure!(problem["status"] == status && problem["category"] == category, "{problem}");
    Ok(())
}

fn create(service: &Service, title: &str) -> Result<Response> {
    let body = serde_json::json!({ "title": title }).to_string();
    let answer = request(service.public, "POST", "/v1/tasks", &body)?;
    ensure!(answer.status == 201, "creating answered {}: {}", answer.status, answer.body);
    Ok(answer)
}

fn ok(answer: &Response) -> Result<Value> {
    ensure!(answer.status == 200, "answered {}: {}", answer.status, answer.body);
    answer.json()
}
