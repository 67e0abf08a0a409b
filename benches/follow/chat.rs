//! A stand-in for Chat that answers `follow_check` after a while and counts.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chatgate::clock;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Running on a thread of its own until it is dropped.
pub(crate) struct Chat {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    calls: AtomicUsize,
    pairs: AtomicUsize,
    times: Mutex<Vec<Instant>>,
}

impl Chat {
    pub(crate) fn start(latency: Duration) -> Self {
        let (counts, stop) = (Arc::<Counts>::default(), CancellationToken::new());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (shared, stopped) = (Arc::clone(&counts), stop.clone());
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a socket");
                let accept = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        let counts = Arc::clone(&shared);
                        let service = service_fn(move |request| answer(request, Arc::clone(&counts), latency));
                        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
                    }
                };
                tokio::select! {
                    () = accept => {}
                    () = stopped.cancelled() => {}
                }
            });
        });
        Self { address, counts, stop, thread: Some(thread) }
    }

    /// Calls so far, and the pairs that they carried.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.counts.calls.load(Ordering::Relaxed), self.counts.pairs.load(Ordering::Relaxed))
    }

    /// When each call was read.
    #[allow(dead_code, reason = "not every bench asks it")]
    pub(crate) fn times(&self) -> Vec<Instant> {
        self.counts.times.lock().expect("nobody panics with it").clone()
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(serde::Deserialize)]
struct Question {
    #[serde(rename = "To_Account")]
    to: Vec<String>,
}

async fn answer(
    request: Request<Incoming>,
    counts: Arc<Counts>,
    latency: Duration,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let to = serde_json::from_slice::<Question>(&body).map(|question| question.to).unwrap_or_default();
    counts.calls.fetch_add(1, Ordering::Relaxed);
    counts.times.lock().expect("nobody panics with it").push(clock::now());
    counts.pairs.fetch_add(to.len(), Ordering::Relaxed);
    let items: Vec<String> = to
        .iter()
        .map(|to| format!(r#"{{"To_Account":"{to}","ResultCode":0,"ResultInfo":"","FollowType":0}}"#))
        .collect();
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let items = items.join(",");
    let body =
        format!(r#"{{"ResultItem":[{items}],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}}"#);
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}
