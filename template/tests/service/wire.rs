//! HTTP by hand over one connection, for what a well-behaved client can't send.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::app::Answer;
use crate::process::PATIENCE;

/// How the head of a request for a new task begins.
pub const NEW_TASK_HEAD: &str = "POST /v1/tasks HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n";

/// One connection.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.expect("a connection"), read: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &(impl AsRef<[u8]> + ?Sized)) {
        self.stream.write_all(bytes.as_ref()).await.expect("the service takes the bytes");
    }

    /// Sends to a service that may have closed the connection or stopped reading.
    pub async fn try_send(&mut self, bytes: &(impl AsRef<[u8]> + ?Sized)) {
        let _ = timeout(Duration::from_millis(100), self.stream.write_all(bytes.as_ref())).await;
    }

    /// Sends the head of a request for a new task whose body has `length` bytes, but not the body.
    pub async fn send_head(&mut self, length: usize) {
        self.send(&format!("{NEW_TASK_HEAD}content-length: {length}\r\n\r\n")).await;
    }

    /// Sends such a head and waits until the service handles the request and asks for the body.
    pub async fn begin(&mut self, length: usize) {
        let head = format!("{NEW_TASK_HEAD}expect: 100-continue\r\ncontent-length: {length}\r\n\r\n");
        self.send(&head).await;
        assert_eq!(self.answer().await.status, 100);
    }

    /// Sends a whole request without a body, and reads the answer.
    pub async fn get(&mut self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
        self.answer().await
    }

    /// Reads the next answer.
    pub async fn answer(&mut self) -> Answer {
        self.answer_or_end().await.expect("closed before an answer")
    }

    /// Reads the next answer. Returns none if the service closes the connection without one.
    pub async fn answer_or_end(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end;
            }
            if !self.more().await {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&self.read[..end]).into_owned();
        self.read.drain(..end + 4);
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
        let fields = lines.filter_map(|line| line.split_once(':'));
        let headers: HeaderMap = fields
            .filter_map(|(name, value)| Some((name.parse::<HeaderName>().ok()?, value.trim().parse().ok()?)))
            .collect();
        let length = headers.get("content-length").and_then(|text| text.to_str().ok()?.parse().ok());
        let length: usize = length.unwrap_or(0);
        while self.read.len() < length {
            assert!(self.more().await, "closed within an answer");
        }
        let body = self.read.drain(..length).collect();
        Some(Answer { status, headers, body: String::from_utf8(body).expect("text") })
    }

    /// Waits until the service has closed the connection, and returns what it sent before that.
    pub async fn closed(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&self.read).into_owned()
    }

    /// Reads some bytes. Returns false once there are no more.
    async fn more(&mut self) -> bool {
        let mut chunk = [0; 4096];
        let read = timeout(PATIENCE, self.stream.read(&mut chunk)).await;
        // A reset is an end too: the service may close a connection that the client has not read to its end.
        let count = read.expect("neither bytes nor an end in time").unwrap_or(0);
        self.read.extend_from_slice(&chunk[..count]);
        count > 0
    }
}
