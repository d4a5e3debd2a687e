//! Connections: so many at a time, each with deadlines, and always room for a new one.
//!
//! A head has to come within [`HEAD`]. A connection without a request is closed after [`KEPT`]. Who takes an answer or sends an upload
//! more slowly than [`TRICKLE`] for longer than the idle time-out is cut off. When there are too many, the one that has been idle
//! for the longest goes: those that wait for a head or a request first, so that whoever opens many and says nothing hinders only
//! himself.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use super::{State, answer, tls};

/// The longest wait for the head of a request, and for a handshake.
pub(super) const HEAD: Duration = Duration::from_secs(10);
/// How long a connection is kept for a further request.
const KEPT: Duration = Duration::from_secs(60);
/// Bytes per second below which a transfer counts as stalled.
pub(super) const TRICKLE: u64 = 1024;
/// Connections at a time: each takes up to two descriptors, of the 1024 that a process mostly has.
const MOST: usize = 256;
/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(500);

/// What is known of a connection.
struct Connection {
    /// For times as numbers.
    start: Instant,
    /// When something last came or went, in milliseconds since the start of the server.
    progress: AtomicU64,
    /// Requests whose answer has not been taken yet.
    busy: AtomicUsize,
    /// Since when nothing more could be written, plus one; 0 if it could.
    blocked: AtomicU64,
    /// In this window: how long writing was blocked, and bytes written.
    waited: AtomicU64,
    written: AtomicU64,
    stalled: AtomicBool,
    cut: Notify,
}

impl Connection {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn touch(&self) {
        self.progress.store(self.now(), Ordering::Relaxed);
    }

    /// Nothing more can be written.
    fn block(&self) {
        let now = self.now() + 1;
        // If it was blocked before, that counts.
        let _ = self.blocked.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn wrote(&self, bytes: usize, idle: Duration) {
        self.touch();
        let blocked = self.blocked.swap(0, Ordering::Relaxed);
        let written = self.written.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if blocked == 0 {
            return;
        }
        let here = (self.now() + 1).saturating_sub(blocked);
        let waited = self.waited.fetch_add(here, Ordering::Relaxed) + here;
        if Duration::from_millis(waited) > idle {
            if written < TRICKLE * waited / 1000 {
                self.stalled.store(true, Ordering::Relaxed);
            }
            self.waited.store(0, Ordering::Relaxed);
            self.written.store(0, Ordering::Relaxed);
        }
    }

    fn is_overdue(&self, idle: Duration) -> bool {
        let since = |then: u64| Duration::from_millis(self.now().saturating_sub(then));
        let blocked = self.blocked.load(Ordering::Relaxed);
        let is_idle = self.busy.load(Ordering::Relaxed) == 0
            && since(self.progress.load(Ordering::Relaxed)) > KEPT;
        is_idle
            || self.stalled.load(Ordering::Relaxed)
            || (blocked > 0 && since(blocked - 1) > idle)
    }

    /// Who goes first: the smallest.
    fn rank(&self) -> (bool, u64) {
        (self.busy.load(Ordering::Relaxed) > 0, self.progress.load(Ordering::Relaxed))
    }
}

/// A request in progress, until its answer is taken or given up.
struct Busy(Arc<Connection>);

impl Busy {
    fn new(connection: &Arc<Connection>) -> Self {
        connection.busy.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(connection))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer, whose request is in progress as long as it is there.
struct Held {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Notes what comes and goes.
struct Watched<I> {
    io: I,
    connection: Arc<Connection>,
    idle: Duration,
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.connection.touch();
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        match &written {
            Poll::Ready(Ok(n)) => self.connection.wrote(*n, self.idle),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.connection.block(),
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// The connections there are.
struct Table {
    start: Instant,
    all: Mutex<Vec<Arc<Connection>>>,
}

impl Table {
    fn all(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        // A list is whole at every moment.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in one more, in the place of the idlest if there are too many.
    fn admit(&self) -> Arc<Connection> {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let new = Arc::new(Connection {
            start: self.start,
            progress: AtomicU64::new(now),
            busy: AtomicUsize::new(0),
            blocked: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            written: AtomicU64::new(0),
            stalled: AtomicBool::new(false),
            cut: Notify::new(),
        });
        let mut all = self.all();
        if all.len() >= MOST {
            self.cut_idlest(&mut all);
        }
        all.push(Arc::clone(&new));
        new
    }

    fn cut_idlest(&self, all: &mut Vec<Arc<Connection>>) {
        let idlest = (0..all.len()).min_by_key(|i| all[*i].rank());
        if let Some(idlest) = idlest {
            all.swap_remove(idlest).cut.notify_one();
        }
    }

    fn leave(&self, connection: &Arc<Connection>) {
        self.all().retain(|other| !Arc::ptr_eq(other, connection));
    }
}

/// Accepts and answers until `shutdown`, then lets requests in progress end, as long as the grace lasts.
pub(super) async fn run(
    listener: TcpListener,
    state: Arc<State>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let table = Arc::new(Table { start: Instant::now(), all: Mutex::default() });
    let (stop, stopped) = watch::channel(false);
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (state, table, stop) =
                    (Arc::clone(&state), Arc::clone(&table), stopped.clone());
                let connection = table.admit();
                tokio::spawn(async move {
                    serve(stream, peer, state, &connection, stop).await;
                    table.leave(&connection);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept");
                // No descriptors, perhaps: the idlest has some.
                table.cut_idlest(&mut table.all());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    drop(listener);
    drop(stopped);
    // Nobody hears it if there is no connection.
    stop.send(true).ok();
    if tokio::time::timeout(state.options.grace, stop.closed()).await.is_err() {
        tracing::warn!("cutting off requests that did not end in time");
    }
}

/// One connection to its end.
async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    state: Arc<State>,
    connection: &Arc<Connection>,
    stop: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        // Otherwise the start of an answer waits until the client has taken what came before: that is 40 ms.
        tracing::debug!(%error, "answers may be late");
    }
    match state.options.tls.clone() {
        None => answer_on(stream, peer, state, connection, stop).await,
        Some(identity) => {
            let handshake = tokio::time::timeout(HEAD, tls::accept(&identity, stream));
            let shaken = tokio::select! {
                shaken = handshake => shaken,
                () = connection.cut.notified() => return,
            };
            match shaken {
                Ok(Ok(stream)) => answer_on(stream, peer, state, connection, stop).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                Err(_) => tracing::debug!(%peer, "the handshake took too long"),
            }
        }
    }
}

async fn answer_on(
    io: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    state: Arc<State>,
    connection: &Arc<Connection>,
    mut stop: watch::Receiver<bool>,
) {
    let idle = state.options.idle_timeout;
    let io = TokioIo::new(Watched { io, connection: Arc::clone(connection), idle });
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (state, busy) = (Arc::clone(&state), Busy::new(connection));
        async move {
            let response = answer::answer(&state, peer, request.map(Body::new)).await;
            Ok::<_, Infallible>(response.map(|body| Held { body, _busy: busy }))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_header_size(16 << 10)
        .serve_connection(io, service);
    let mut served = pin!(served);
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            ended = served.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "a connection ended badly");
                }
                return;
            }
            Ok(()) = stop.changed() => served.as_mut().graceful_shutdown(),
            () = connection.cut.notified() => {
                tracing::debug!(%peer, "making room for another connection");
                return;
            }
            _ = tick.tick() => {
                if connection.is_overdue(idle) {
                    tracing::debug!(%peer, "a connection stalled");
                    return;
                }
            }
        }
    }
}
