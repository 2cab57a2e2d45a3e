//! Peers of a service that can be made to fail: a webhook's receiver, a proxy to another server.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::children::lock;

/// Accepts connections on a free port until it is dropped, with a thread for each.
struct Listening {
    address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Listening {
    fn start(serve: impl Fn(TcpStream) -> Result<()> + Clone + Send + 'static) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let serve = serve.clone();
                // An error only ends the connection, which either side may do at any time.
                thread::spawn(move || drop(serve(stream)));
            }
        });
        Ok(Self { address, over })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

/// Whether data may pass, and the threads that wait for it.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn set(&self, open: bool) {
        *lock(&self.0.0) = open;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let open = lock(&self.0.0);
        drop(self.0.1.wait_while(open, |open| !*open).unwrap_or_else(PoisonError::into_inner));
    }
}

/// For each task, the ids of its deliveries, of which there should be one.
pub type Deliveries = BTreeMap<String, BTreeSet<String>>;

/// What a receiver records about the calls that it has answered.
#[derive(Default)]
struct Calls {
    told: Deliveries,
    /// The `traceparent` of each.
    traces: Vec<String>,
}

/// Receives webhooks, and answers them once it is told to.
pub struct Receiver {
    listening: Listening,
    gate: Gate,
    calls: Arc<Mutex<Calls>>,
}

impl Receiver {
    pub fn start() -> Result<Self> {
        let (gate, calls) = <(Gate, Arc<Mutex<Calls>>)>::default();
        let (opens, kept) = (gate.clone(), Arc::clone(&calls));
        let listening = Listening::start(move |stream| receive(stream, &opens, &kept))?;
        Ok(Self { listening, gate, calls })
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.listening.address)
    }

    /// From now on calls are answered, including those that already wait.
    pub fn answer(&self) {
        self.gate.set(true);
    }

    /// For how many tasks it has received and answered a webhook.
    pub fn delivered(&self) -> usize {
        lock(&self.calls).told.len()
    }

    pub fn deliveries(&self) -> Deliveries {
        lock(&self.calls).told.clone()
    }

    /// The `traceparent` of each call.
    pub fn traces(&self) -> Vec<String> {
        lock(&self.calls).traces.clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.gate.set(true);
    }
}

fn receive(stream: TcpStream, gate: &Gate, calls: &Mutex<Calls>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(Call { mut headers, body }) = call(&mut stream)? {
        gate.pass();
        let told: Value = serde_json::from_slice(&body)?;
        let id = told["data"]["id"].as_str().context("a webhook without its task")?;
        let mut header = |name: &str| headers.remove(name).unwrap_or_default();
        let mut calls = lock(calls);
        calls.told.entry(id.to_owned()).or_default().insert(header("webhook-id"));
        calls.traces.push(header("traceparent"));
        drop(calls);
        stream.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
    }
    Ok(())
}

/// A call. Its headers are keyed by their lower-case names.
struct Call {
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

/// The next call on a connection; `None` once the connection has ended.
fn call(stream: &mut BufReader<TcpStream>) -> Result<Option<Call>> {
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let (name, value) = match line.trim_end() {
            "" => break,
            line => line.split_once(':').unwrap_or((line, "")),
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let Some(length) = headers.get("content-length") else { return Ok(None) };
    let mut body = vec![0; length.parse()?];
    stream.read_exact(&mut body)?;
    Ok(Some(Call { headers, body }))
}

/// Receives calls and refuses each, after a delay.
pub struct Refuser(Listening);

impl Refuser {
    pub fn start(after: Duration) -> Result<Self> {
        let refuse = move |stream: TcpStream| -> Result<()> {
            let mut stream = BufReader::new(stream);
            while call(&mut stream)?.is_some() {
                thread::sleep(after);
                let answer = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
                stream.get_mut().write_all(answer.as_bytes())?;
            }
            Ok(())
        };
        Ok(Self(Listening::start(refuse)?))
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.0.address)
    }
}

/// A proxy to a server. It can be frozen: connections stay open, but nothing gets through. It can be cut: connections
/// end, and new ones are closed as soon as they are opened.
pub struct FaultProxy {
    listening: Listening,
    gate: Gate,
    /// `None` while it is cut.
    open: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

impl FaultProxy {
    /// `server` is its `host:port`.
    pub fn to(server: &str) -> Result<Self> {
        let gate = Gate::default();
        gate.set(true);
        let open = Arc::new(Mutex::new(Some(Vec::new())));
        let (server, opens, kept) = (server.to_owned(), gate.clone(), Arc::clone(&open));
        let listening = Listening::start(move |client| {
            let server = TcpStream::connect(&server)?;
            let ends = [client.try_clone()?, server.try_clone()?];
            lock(&kept).as_mut().context("it is cut")?.extend(ends);
            let (from, to, back) = (client.try_clone()?, server.try_clone()?, opens.clone());
            thread::spawn(move || carry(from, to, &back));
            carry(server, client, &opens);
            Ok(())
        })?;
        Ok(Self { listening, gate, open })
    }

    /// A proxy to the server that `variable` of a service's environment names; the variable now points to the proxy.
    pub fn insert(command: &mut Command, variable: &str) -> Result<Self> {
        let set =
            command.get_envs().find(|(name, _)| *name == variable).and_then(|(_, value)| value?.to_str());
        let url = set.context("the server has no URL")?.to_owned();
        let from = url.find("127.0.0.1").context("the server is not on 127.0.0.1")?;
        let server = url[from..].split('/').next().unwrap_or_default();
        let proxy = Self::to(server)?;
        command.env(variable, url.replace(server, &proxy.address().to_string()));
        Ok(proxy)
    }

    pub fn address(&self) -> SocketAddr {
        self.listening.address
    }

    pub fn cut(&self) {
        for end in lock(&self.open).take().into_iter().flatten() {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Lets everything through again, beginning with what was held back while frozen.
    pub fn mend(&self) {
        lock(&self.open).get_or_insert_default();
        self.gate.set(true);
    }

    pub fn freeze(&self) {
        self.gate.set(false);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.gate.set(true);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, gate: &Gate) {
    let mut bytes = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        gate.pass();
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    gate.pass();
    let _ = to.shutdown(Shutdown::Write);
}
