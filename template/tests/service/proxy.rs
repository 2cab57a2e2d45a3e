//! A TCP proxy in front of a server, with which a test takes a dependency away and brings it back.

use std::net::SocketAddr;

//@ if postgres or redis
use reqwest::Url;
//@ end
use tokio::io::copy_bidirectional;
//@ if postgres
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
//@ end
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// Forwards bytes until it is cut. It ends with the test.
#[derive(Debug)]
pub struct Proxy {
    pub address: SocketAddr,
    state: watch::Sender<State>,
    accepting: AbortHandle,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// All connections are closed, new ones too.
    cut: bool,
    /// How many cuts there were: a connection ends at the next cut, however short that is.
    cuts: usize,
    //@ if postgres or redis
    /// Nothing is forwarded, and neither end is told.
    frozen: bool,
    //@ end
    //@ if postgres
    /// A message that is held on its way to the server, with everything that follows it.
    held: Option<&'static str>,
    //@ end
}

impl Proxy {
    /// A proxy in front of `server`, which is `host:port`.
    pub async fn to(server: &str) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.expect("a free port"), server)
    }

    /// The same, on an existing listener.
    pub fn on(listener: TcpListener, server: &str) -> Self {
        let address = listener.local_addr().expect("an address");
        let state = watch::Sender::new(State::default());
        let (server, states) = (server.to_owned(), state.subscribe());
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(forward(client, server.clone(), states.clone()));
            }
        });
        Self { address, state, accepting: accepting.abort_handle() }
    }

    /// Closes all connections; new ones are closed as soon as they are made.
    pub fn cut(&self) {
        self.state.send_modify(|state| {
            state.cut = true;
            state.cuts += 1;
        });
    }
    //@ if postgres or redis

    /// Forwards nothing from now on, but closes nothing either: connections that are open, or are made before the proxy
    /// is mended, stay silent for good.
    pub fn freeze(&self) {
        self.state.send_modify(|state| state.frozen = true);
    }
    //@ end
    //@ if postgres

    /// Holds back what contains `message`, and what follows on that connection, until the proxy is mended.
    pub fn hold(&self, message: &'static str) {
        self.state.send_modify(|state| state.held = Some(message));
    }
    //@ end

    /// Ends what the methods above began: new connections are forwarded again.
    pub fn mend(&self) {
        self.state.send_modify(|state| {
            state.cut = false;
            //@ if postgres or redis
            state.frozen = false;
            //@ end
            //@ if postgres
            state.held = None;
            //@ end
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

//@ if postgres or redis
/// The server of `url`, as `host:port`.
pub fn server_of(url: &Url, port: u16) -> String {
    format!("{}:{}", url.host_str().expect("a host"), url.port().unwrap_or(port))
}

/// The URL with `address` in place of its host and port.
pub fn via(mut url: Url, address: SocketAddr) -> String {
    url.set_ip_host(address.ip()).expect("a host");
    url.set_port(Some(address.port())).expect("a port");
    url.into()
}

//@ end
/// Forwards one connection until either end closes it or the proxy is cut.
async fn forward(mut client: TcpStream, server: String, mut states: watch::Receiver<State>) {
    let at_first = *states.borrow_and_update();
    if at_first.cut {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    //@ if postgres
    let server = held(server, states.clone());
    //@ end
    let mut server = server;
    let over = |state: &State| state.cuts > at_first.cuts;
    //@ if postgres or redis
    let over = |state: &State| over(state) || state.frozen;
    //@ end
    tokio::select! {
        // In this order, so that nothing is forwarded any more once the proxy is cut.
        biased;
        _ = states.wait_for(over) => {}
        _ = copy_bidirectional(&mut client, &mut server) => {}
    }
    //@ if postgres or redis
    if states.borrow().cuts == at_first.cuts {
        // Kept open until the client gives up.
        let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
    }
    //@ end
}
//@ if postgres

/// The connection to a server, on which messages may be held.
fn held(mut server: TcpStream, mut states: watch::Receiver<State>) -> DuplexStream {
    let (near, far) = duplex(64 * 1024);
    tokio::spawn(async move {
        let (mut sent, mut received) = split(far);
        let (mut from_server, mut to_server) = server.split();
        let sending = async {
            let mut bytes = [0; 4096];
            loop {
                let count = sent.read(&mut bytes).await?;
                let holds =
                    |held: &str| bytes[..count].windows(held.len()).any(|part| part == held.as_bytes());
                // An error means that the proxy is gone.
                let _ = states.wait_for(|state| !state.held.is_some_and(holds)).await;
                if count == 0 {
                    return to_server.shutdown().await;
                }
                to_server.write_all(&bytes[..count]).await?;
            }
        };
        // Whichever direction ends first, the other one follows.
        tokio::select! {
            _ = sending => {}
            _ = tokio::io::copy(&mut from_server, &mut received) => {}
        }
    });
    near
}
//@ end
