//! A TCP proxy on loopback between a worker and its coordinator, whose connections can be cut and held back.
//!
//! Not here: when that happens (`conductor`).

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const BUFFER: usize = 64 << 10;

/// A proxy. It ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// Where proxies lead to. Clones share the address.
#[derive(Clone, Debug, Default)]
pub struct Target(Arc<Mutex<Option<SocketAddr>>>);

#[derive(Debug)]
struct Shared {
    target: Target,
    ends: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Both sides of every open connection.
    open: Vec<[TcpStream; 2]>,
    /// No byte passes before this.
    held_until: Option<Instant>,
}

impl Proxy {
    /// Starts a proxy to the target. While that has no address, connections are closed at once.
    ///
    /// # Errors
    /// When no port can be bound, or no thread started.
    pub fn start(target: Target) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { target, ends: AtomicBool::new(false), state: Mutex::default() });
        let accepting = shared.clone();
        thread::Builder::new().name("proxy".to_owned()).spawn(move || accept(&listener, &accepting))?;
        Ok(Self { address, shared })
    }

    /// The address to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts all connections. Returns how many there were.
    pub fn cut(&self) -> usize {
        let open = std::mem::take(&mut self.shared.state().open);
        open.iter().flatten().for_each(close);
        open.len()
    }

    /// Holds back all bytes for a while. Returns how many connections there are.
    pub fn hold(&self, time: Duration) -> usize {
        let mut state = self.shared.state();
        state.held_until = Some(Instant::now() + time);
        state.open.len()
    }
}

impl Target {
    /// Sets the address. Open connections stay.
    pub fn set(&self, address: Option<SocketAddr>) {
        *self.address() = address;
    }

    fn address(&self) -> MutexGuard<'_, Option<SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        self.cut();
        // The thread that accepts connections wakes up, and ends.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that is closed already needs nothing.
fn close(stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Both);
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.ends.load(Ordering::Relaxed) {
            return;
        }
        // A client that can't be served finds its connection closed.
        let _ = client.and_then(|client| serve(client, shared));
    }
}

fn serve(client: TcpStream, shared: &Arc<Shared>) -> std::io::Result<()> {
    let Some(address) = *shared.target.address() else { return Ok(()) };
    let server = TcpStream::connect(address)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    shared.state().open.push([client.try_clone()?, server.try_clone()?]);
    let ways = [(client.try_clone()?, server.try_clone()?), (server, client)];
    for (from, to) in ways {
        let shared = shared.clone();
        thread::Builder::new().name("proxy".to_owned()).spawn(move || pump(from, to, &shared))?;
    }
    Ok(())
}

/// Passes bytes on until either side closes. Then both are closed.
fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        while shared.state().held_until.is_some_and(|until| Instant::now() < until) {
            thread::sleep(Duration::from_millis(5));
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    [&from, &to].into_iter().for_each(close);
    shared.state().open.retain(|[client, _]| client.peer_addr().is_ok());
}
