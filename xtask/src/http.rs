//! A small HTTP/1.1 client on a plain socket. The drills need to leave a request half sent, to notice the end of a
//! connection and to keep one open across a shutdown, which is exactly what client crates hide.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(10);
/// How many bytes of a body are read at a time.
const CHUNK_SIZE: usize = 4096;

/// One connection.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("no JSON: {}", self.body))
    }

    /// Whether the server will close this connection after the response.
    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

impl Connection {
    pub fn open(address: SocketAddr) -> Result<Self> {
        Self::over(TcpStream::connect_timeout(&address, BOUND)?)
    }

    /// Uses a connection that was made elsewhere.
    pub fn over(stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(BOUND))?;
        stream.set_write_timeout(Some(BOUND))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Writes bytes as they are: a whole request, or a part of one.
    pub fn send(&mut self, bytes: &str) -> Result<()> {
        Ok(self.stream.get_mut().write_all(bytes.as_bytes())?)
    }

    pub fn request(&mut self, method: &str, path: &str, extra: &str, body: &str) -> Result<Response> {
        // In one write: a pause between head and body would count as the client's.
        self.send(&(head(method, path, extra, body.len()) + body))?;
        self.response()
    }

    /// Whether an answer begins within `bound`; the end of the connection counts as one.
    pub fn answers_within(&mut self, bound: Duration) -> Result<bool> {
        self.stream.get_ref().set_read_timeout(Some(bound))?;
        let answered = match self.stream.fill_buf() {
            Ok(_) => true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(error) => return Err(error.into()),
        };
        self.stream.get_ref().set_read_timeout(Some(BOUND))?;
        Ok(answered)
    }

    pub fn response(&mut self) -> Result<Response> {
        self.response_slowly(|| ())
    }

    /// Reads a response, and its body a little at a time, with `pause` before each part.
    pub fn response_slowly(&mut self, pause: impl Fn()) -> Result<Response> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.context("the connection ended without an answer")?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').context("a header without a colon")?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let mut response = Response { status, headers, body: String::new() };
        let chunked = response.header("transfer-encoding").is_some();
        let length = response.header("content-length").and_then(|text| text.parse().ok());
        response.body = match length {
            _ if chunked => self.chunks()?,
            Some(length) => self.exactly(length, pause)?,
            None if status == 204 || status == 304 => String::new(),
            None => bail!("an answer of unknown length"),
        };
        Ok(response)
    }

    fn chunks(&mut self) -> Result<String> {
        let mut body = String::new();
        loop {
            let line = self.line()?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16)?;
            body += &self.exactly(size, || ())?;
            ensure!(self.line()?.is_empty(), "a chunk without its end");
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn exactly(&mut self, length: usize, pause: impl Fn()) -> Result<String> {
        let mut bytes = vec![0; length];
        for part in bytes.chunks_mut(CHUNK_SIZE) {
            pause();
            self.stream.read_exact(part)?;
        }
        Ok(String::from_utf8(bytes)?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

/// The head of a request; `extra` holds whole header lines, each ending in `\r\n`.
pub fn head(method: &str, path: &str, extra: &str, length: usize) -> String {
    let kind = if length > 0 { "content-type: application/json\r\n" } else { "" };
    format!("{method} {path} HTTP/1.1\r\nhost: drill\r\n{kind}{extra}content-length: {length}\r\n\r\n")
}

/// Makes a request on a connection of its own.
pub fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<Response> {
    Connection::open(address)?.request(method, path, "", body)
}

pub fn get(address: SocketAddr, path: &str) -> Result<Response> {
    request(address, "GET", path, "")
}

/// The value of a series among a service's metrics.
pub fn metric(admin: SocketAddr, series: &str) -> Result<Option<f64>> {
    let page = get(admin, "/metrics")?.body;
    let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    Ok(value.map(str::parse).transpose()?)
}
