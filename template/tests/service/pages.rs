//! Lists: keyset pages that miss nothing and repeat nothing, whatever is written between them.

use serde_json::{Value, json};

use crate::app::{TestApp, path_of};

#[tokio::test]
async fn pages_hold_every_task_once_in_order_of_creation() {
    let app = TestApp::spawn(&[]).await;
    let mut ids = Vec::new();
    for number in 0..7 {
        ids.push(app.create(&format!("task {number}")).await["id"].clone());
    }
    let (read, sizes) = walk(&app, "limit=3", async |_| ()).await;
    assert_eq!(read, ids);
    assert_eq!(sizes, [3, 3, 1]);
    let (_, sizes) = walk(&app, "limit=7", async |_| ()).await;
    assert_eq!(sizes, [7], "a full last page has no cursor");
    for number in 7..21 {
        app.create(&format!("task {number}")).await;
    }
    let (_, sizes) = walk(&app, "", async |_| ()).await;
    assert_eq!(sizes, [20, 1], "as long as the document says");
}

#[tokio::test]
async fn pages_of_one_status_hold_no_other() {
    let app = TestApp::spawn(&[]).await;
    let (mut open, mut completed) = (Vec::new(), Vec::new());
    for number in 0..9 {
        let task = app.create(&format!("task {number}")).await;
        let done = number % 2 == 0;
        if done {
            assert_eq!(app.complete(&task).await.status, 200);
        }
        (if done { &mut completed } else { &mut open }).push(task["id"].clone());
    }
    assert_eq!(walk(&app, "limit=2&status=completed", async |_| ()).await, (completed, vec![2, 2, 1]));
    assert_eq!(walk(&app, "limit=2&status=open", async |_| ()).await, (open, vec![2, 2]));
}

#[tokio::test]
async fn deleting_what_was_read_shifts_no_page() {
    let app = TestApp::spawn(&[]).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(app.create(&format!("task {number}")).await["id"].clone());
    }
    let delete = async |task: &Value| {
        assert_eq!(app.delete(&path_of(task)).await.status, 204);
    };
    assert_eq!(walk(&app, "limit=2", delete).await, (ids, vec![2, 2, 1]));
}

#[tokio::test]
async fn page_of_long_tasks_ends_early_and_says_so() {
    let app = TestApp::spawn(&[]).await;
    let long = json!({ "title": "long", "description": "ü".repeat(10_000) });
    for _ in 0..60 {
        assert_eq!(app.post("/v1/tasks", &long).await.status, 201);
    }
    let (all, sizes) = walk(&app, "limit=100", async |_| {}).await;
    assert_eq!((all.len(), sizes.len()), (60, 2), "{sizes:?}");
}

#[tokio::test]
async fn empty_list_is_a_page() {
    let app = TestApp::spawn(&[]).await;
    assert_eq!(app.get("/v1/tasks").await.json(), json!({ "items": [], "next_cursor": null }));
}

/// Reads page after page and returns all ids and the size of each page. Calls `then` on each task after reading it.
async fn walk(app: &TestApp, query: &str, then: impl AsyncFn(&Value)) -> (Vec<Value>, Vec<usize>) {
    let (mut ids, mut sizes) = (Vec::new(), Vec::new());
    let mut path = format!("/v1/tasks?{query}");
    loop {
        let page = app.get(&path).await.json();
        let items = page["items"].as_array().expect("items");
        sizes.push(items.len());
        for task in items {
            ids.push(task["id"].clone());
            then(task).await;
        }
        let Some(cursor) = page["next_cursor"].as_str() else { return (ids, sizes) };
        path = format!("/v1/tasks?{query}&cursor={cursor}");
    }
}
