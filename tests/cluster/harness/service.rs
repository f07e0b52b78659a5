//! A stand-in for a Service: new connections go to ready replicas, and existing connections stay with their replica until one side
//! closes them.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::Webhook;

/// How long a readiness probe may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The addresses of a replica for requests and for probes.
#[derive(Clone, Copy)]
struct Replica {
    address: SocketAddr,
    admin: SocketAddr,
}

/// A TCP proxy to the replicas whose `/readyz` succeeds.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    tasks: Vec<AbortHandle>,
}

#[derive(Default)]
struct State {
    replicas: Vec<Replica>,
    ready: Vec<Replica>,
    turn: usize,
}

impl Service {
    /// Serves on the runtime of the test until it is dropped.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<Mutex<State>>::default();
        let probes = tokio::spawn(probe(state.clone())).abort_handle();
        let proxy = tokio::spawn(accept(listener, state.clone())).abort_handle();
        Self { address, state, tasks: vec![probes, proxy] }
    }

    /// Adds a replica, which gets connections once it is ready.
    pub(crate) fn add(&self, replica: &Webhook) {
        lock(&self.state).replicas.push(Replica { address: replica.address, admin: replica.admin });
    }

    /// Returns whether a replica gets new connections.
    pub(crate) fn sends_to(&self, address: SocketAddr) -> bool {
        lock(&self.state).ready.iter().any(|replica| replica.address == address)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Probes every replica ten times a second. In a cluster, a failed probe takes seconds to reach the last node, which is why the
/// webhook has a grace time.
async fn probe(state: Arc<Mutex<State>>) {
    loop {
        let replicas = lock(&state).replicas.clone();
        let mut ready = Vec::new();
        for replica in replicas {
            if is_ready(replica).await {
                ready.push(replica);
            }
        }
        lock(&state).ready = ready;
        sleep(Duration::from_millis(100)).await;
    }
}

async fn is_ready(replica: Replica) -> bool {
    let answer = async {
        let mut tcp = TcpStream::connect(replica.admin).await.ok()?;
        tcp.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await.ok()?;
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await.ok()?;
        Some(answer.starts_with(b"HTTP/1.0 200"))
    };
    timeout(TIMEOUT, answer).await == Ok(Some(true))
}

/// Connects to the first replica that is ready now: on a busy machine the last probe may be older than the grace time.
async fn connect(replicas: &[Replica]) -> Option<TcpStream> {
    for &replica in replicas {
        if is_ready(replica).await
            && let Ok(connected) = TcpStream::connect(replica.address).await
        {
            return Some(connected);
        }
    }
    None
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let in_order = {
            let mut state = lock(&state);
            state.turn = state.turn.wrapping_add(1);
            let (turn, mut ready) = (state.turn % state.ready.len().max(1), state.ready.clone());
            ready.rotate_left(turn);
            ready
        };
        tokio::spawn(async move {
            // No replica is ready. The proxy closes the connection, whereas a cluster would refuse the connection.
            let Some(mut replica) = connect(&in_order).await else { return };
            let _ = (client.set_nodelay(true), replica.set_nodelay(true));
            let _ = copy_bidirectional(&mut client, &mut replica).await;
        });
    }
}
