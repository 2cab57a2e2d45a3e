//! What clients rely on: creating, reading, changing, completing and deleting tasks, also with conditional requests.

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{Answer, TestApp, eventually, json_body, path_of};

#[tokio::test]
async fn created_task_is_found_where_location_says() {
    let app = TestApp::spawn(&[]).await;
    let answer =
        app.post("/v1/tasks", &json!({ "title": "  paint the hull ", "description": "twice" })).await;
    assert_eq!((answer.status, answer.header("etag")), (201, "\"1\""));
    let task = answer.json();
    assert_eq!(answer.header("location"), path_of(&task));
    assert_eq!(task["title"], "paint the hull", "the title is trimmed");
    assert_eq!(task["description"], "twice");
    assert_eq!((&task["status"], &task["version"]), (&json!("open"), &json!(1)));
    assert_eq!(task["completed_at"], Value::Null);
    let mut fields: Vec<_> = task.as_object().expect("an object").keys().map(String::as_str).collect();
    fields.sort_unstable();
    let contract =
        ["completed_at", "created_at", "description", "id", "status", "title", "updated_at", "version"];
    assert_eq!(fields, contract);
    let id: uuid::Uuid = task["id"].as_str().and_then(|id| id.parse().ok()).expect("a UUID");
    assert_eq!(id.get_version_num(), 7);

    let answer = app.get(&path_of(&task)).await;
    assert_eq!((answer.status, answer.header("etag")), (200, "\"1\""));
    assert_eq!(answer.json(), task);
}

#[tokio::test]
async fn patch_changes_what_it_names_and_nothing_else() {
    let app = TestApp::spawn(&[]).await;
    let task = app.post("/v1/tasks", &json!({ "title": "a", "description": "b" })).await.json();
    let patch = async |body: Value| {
        let answer = app.patch(&path_of(&task), &body).await;
        let changed = answer.json();
        assert_eq!(
            (answer.status, answer.header("etag")),
            (200, format!("\"{}\"", changed["version"]).as_str())
        );
        assert_eq!(app.get(&path_of(&task)).await.json(), changed, "what was answered is what is read");
        changed
    };
    let changed = patch(json!({ "title": " c " })).await;
    assert_eq!((&changed["title"], &changed["description"]), (&json!("c"), &json!("b")), "absent stays");
    assert_eq!(changed["created_at"], task["created_at"]);
    assert_ne!(changed["updated_at"], task["updated_at"]);
    let changed = patch(json!({ "description": null })).await;
    assert_eq!((&changed["title"], &changed["description"]), (&json!("c"), &Value::Null), "null removes");
    let changed = patch(json!({})).await;
    assert_eq!((&changed["title"], &changed["version"]), (&json!("c"), &json!(4)));
}

#[tokio::test]
async fn change_of_another_version_is_refused() {
    let app = TestApp::spawn(&[]).await;
    let task = app.create("a").await;
    let path = path_of(&task);
    let change = async |method: &Method, path: &str, tag: &str| {
        let request = app.request(method.clone(), path).header("if-match", tag);
        let request =
            if method == Method::PATCH { json_body(request, &json!({ "title": "b" })) } else { request };
        Answer::to(request).await.status
    };
    let complete = format!("{path}/complete");
    for (method, path) in [(Method::PATCH, &path), (Method::POST, &complete), (Method::DELETE, &path)] {
        for tag in ["\"2\"", "\"01\"", "\"+1\"", "W/\"1\"", "\"no version\"", "\"1\", \"2\""] {
            assert_eq!(change(&method, path, tag).await, 412, "{method} {tag}");
        }
        for tag in ["1", "\"", "\"1", "W/1", ""] {
            assert_eq!(change(&method, path, tag).await, 400, "{method} {tag}: a tag has quotes");
        }
    }
    assert_eq!(app.get(&path).await.json(), task, "nothing was changed");
    assert_eq!(change(&Method::PATCH, &path, "\"1\"").await, 200);
    assert_eq!(change(&Method::PATCH, &path, "*").await, 200);
    assert_eq!(change(&Method::POST, &complete, "\"3\"").await, 200);
    assert_eq!(change(&Method::DELETE, &path, "\"4\"").await, 204);
}

#[tokio::test]
async fn second_completion_changes_nothing() {
    let app = TestApp::spawn(&[]).await;
    let task = app.create("a").await;
    assert_eq!(app.get(&path_of(&task)).await.json(), task, "it is in memory from here on");
    let first = app.complete(&task).await.json();
    assert_eq!(app.get(&path_of(&task)).await.json(), first);
    assert_eq!((&first["status"], &first["version"]), (&json!("completed"), &json!(2)));
    assert!(first["completed_at"].is_string());
    assert_eq!(first["updated_at"], first["completed_at"]);
    let second = app.complete(&task).await;
    assert_eq!((second.status, second.header("etag")), (200, "\"2\""));
    assert_eq!(second.json(), first);
    let stale =
        app.request(Method::POST, &format!("{}/complete", path_of(&task))).header("if-match", "\"1\"");
    assert_eq!(Answer::to(stale).await.status, 412, "completed, but not as the version that was read");
    assert_eq!(app.get(&path_of(&task)).await.json(), first);
}

#[tokio::test]
async fn deleted_task_is_gone() {
    let app = TestApp::spawn(&[]).await;
    let task = app.create("a").await;
    let path = path_of(&task);
    assert_eq!(app.get(&path).await.status, 200);
    let answer = app.delete(&path).await;
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    assert_eq!(app.get(&path).await.status, 404, "no cache remembers it");
    assert_eq!(app.delete(&path).await.status, 404);
    assert_eq!(app.patch(&path, &json!({ "title": "b" })).await.status, 404);
    assert_eq!(app.complete(&task).await.status, 404);
}

#[tokio::test]
async fn memory_holds_no_more_than_it_may() {
    let app = TestApp::spawn(&[("APP__CACHE__CAPACITY", "8")]).await;
    let large = json!({ "title": "a", "description": "x".repeat(9_000) });
    let large = path_of(&app.post("/v1/tasks", &large).await.json());
    let misses = async || {
        assert_eq!(app.get(&large).await.status, 200);
        app.sample("cache_requests_total{tier=\"memory\",outcome=\"miss\"}").await
    };
    eventually(misses, |misses| *misses > Some(2.0)).await;

    // There is room for eight small tasks.
    let mut paths = Vec::new();
    for _ in 0..32 {
        paths.push(path_of(&app.create("a").await));
    }
    let read = async || {
        for path in &paths {
            assert_eq!(app.get(path).await.status, 200);
        }
        app.sample("cache_requests_total{tier=\"memory\",outcome=\"miss\"}").await
    };
    let before = read().await.unwrap_or_default();
    eventually(read, |misses| *misses >= Some(before + 100.0)).await;
}

#[tokio::test]
async fn concurrent_changes_of_one_version_have_one_winner() {
    let app = TestApp::spawn(&[]).await;
    let path = path_of(&app.create("a").await);
    let change = |title: String| {
        let request = app.request(Method::PATCH, &path).header("if-match", "\"1\"");
        async move { Answer::to(json_body(request, &json!({ "title": title }))).await.status }
    };
    let mut statuses = futures_util::future::join_all((0..6).map(|n| change(n.to_string()))).await;
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412, 412, 412, 412, 412]);
    assert_eq!(app.get(&path).await.json()["version"], 2);
}
