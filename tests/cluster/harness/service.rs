//! What a Service and its EndpointSlices do in a cluster: new connections go to replicas that are ready, and connections that exist
//! stay with their replica until one side closes them.

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

/// How long a replica may take to say that it is ready.
const PATIENCE: Duration = Duration::from_secs(5);

/// A replica behind the service: where it serves, and where it says whether it is ready.
#[derive(Clone, Copy)]
struct Replica {
    address: SocketAddr,
    admin: SocketAddr,
}

/// A TCP proxy that follows `/readyz` of its replicas.
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
    /// Serves on the test's runtime until dropped.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<Mutex<State>>::default();
        let probes = tokio::spawn(probe(state.clone())).abort_handle();
        let proxy = tokio::spawn(accept(listener, state.clone())).abort_handle();
        Self { address, state, tasks: vec![probes, proxy] }
    }

    /// A new replica; it gets connections once it is ready.
    pub(crate) fn add(&self, replica: &Webhook) {
        lock(&self.state).replicas.push(Replica { address: replica.address, admin: replica.admin });
    }

    /// Whether a replica gets new connections.
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

/// Asks every replica ten times a second. In a cluster the way from a failed probe to the last node's rules takes seconds, which is
/// what the webhook's grace time is for.
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
    timeout(PATIENCE, answer).await == Ok(Some(true))
}

/// To the first that is ready still: on a busy machine what the last probe found may be older than a replica's grace time.
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
            // Nobody is ready: the client sees a closed connection, where a cluster would refuse it.
            let Some(mut replica) = connect(&in_order).await else { return };
            let _ = (client.set_nodelay(true), replica.set_nodelay(true));
            let _ = copy_bidirectional(&mut client, &mut replica).await;
        });
    }
}
