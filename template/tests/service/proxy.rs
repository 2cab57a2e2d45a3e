//! A TCP proxy in front of a server, that can be cut and mended: how a test takes a dependency away.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// Hands bytes on, until it is cut. It ends with the test.
#[derive(Debug)]
pub struct Proxy {
    pub address: SocketAddr,
    state: watch::Sender<State>,
    accepting: AbortHandle,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Connections are closed, new ones too.
    cut: bool,
    /// How often that happened: a connection ends with the next one, however short it is.
    cuts: usize,
    //@ if postgres or redis
    /// Nothing comes through, and neither end is told.
    frozen: bool,
    //@ end
}

impl Proxy {
    /// A proxy in front of `server`, which is `host:port`.
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = watch::Sender::new(State::default());
        let (server, states) = (server.to_owned(), state.subscribe());
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, server.clone(), states.clone()));
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

    /// From now on nothing comes through, but connections stay: those that are open for good, and new ones until
    /// it is mended.
    pub fn freeze(&self) {
        self.state.send_modify(|state| state.frozen = true);
    }
    //@ end

    /// Takes new connections again.
    pub fn mend(&self) {
        self.state.send_modify(|state| {
            state.cut = false;
            //@ if postgres or redis
            state.frozen = false;
            //@ end
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries one connection until an end closes it or the proxy is cut.
async fn carry(mut client: TcpStream, server: String, mut states: watch::Receiver<State>) {
    let at_first = *states.borrow_and_update();
    if at_first.cut {
        return;
    }
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let over = |state: &State| state.cuts > at_first.cuts;
    //@ if postgres or redis
    let over = |state: &State| over(state) || state.frozen;
    //@ end
    tokio::select! {
        // In this order, so that nothing comes through any more once it is cut.
        biased;
        _ = states.wait_for(over) => {}
        _ = copy_bidirectional(&mut client, &mut server) => {}
    }
    //@ if postgres or redis
    if states.borrow().cuts == at_first.cuts {
        // Held until the client gives it up.
        let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
    }
    //@ end
}
