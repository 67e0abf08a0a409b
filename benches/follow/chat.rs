//! A fake Chat that answers `follow_check` after a fixed latency and counts calls.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
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
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::NamedTempFile;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// A fake Chat on a separate thread. Dropping it stops the thread.
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
    /// Starts a fake that answers after `latency`, over TLS if it has a certificate.
    pub(crate) fn start(latency: Duration, certified: Option<&Certified>) -> Self {
        let (counts, stop) = (Arc::<Counts>::default(), CancellationToken::new());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (shared, stopped) = (Arc::clone(&counts), stop.clone());
        let tls = certified.map(|certified| TlsAcceptor::from(Arc::clone(&certified.serving)));
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a socket");
                let accept = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        let (counts, tls) = (Arc::clone(&shared), tls.clone());
                        let service = service_fn(move |request| answer(request, Arc::clone(&counts), latency));
                        tokio::spawn(async move {
                            let _ = stream.set_nodelay(true);
                            let http = http1::Builder::new();
                            // An error ends only this connection.
                            let _ = match tls {
                                None => http.serve_connection(TokioIo::new(stream), service).await,
                                Some(tls) => {
                                    let Ok(stream) = tls.accept(stream).await else { return };
                                    http.serve_connection(TokioIo::new(stream), service).await
                                }
                            };
                        });
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

    /// Returns the number of calls and of pairs in them so far.
    #[allow(dead_code, reason = "not every bench uses it")]
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.counts.calls.load(Ordering::Relaxed), self.counts.pairs.load(Ordering::Relaxed))
    }

    /// Returns the arrival time of each call.
    #[allow(dead_code, reason = "not every bench uses it")]
    pub(crate) fn times(&self) -> Vec<Instant> {
        self.counts.times.lock().expect("no panic under it").clone()
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

/// A certificate for `localhost`, and the file of the CA that issued it.
pub(crate) struct Certified {
    serving: Arc<ServerConfig>,
    ca: NamedTempFile,
}

impl Certified {
    #[allow(dead_code, reason = "not every bench speaks TLS")]
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        // Differs from the leaf's name, because OpenSSL considers a certificate self-signed if the names are equal.
        params.distinguished_name.push(rcgen::DnType::CommonName, "CA of the bench");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        let ca = NamedTempFile::new().expect("a file");
        std::fs::write(ca.path(), certificate.pem()).expect("a file");
        let issuer = rcgen::Issuer::new(params, key);
        let own = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let leaf = params.signed_by(&own, &issuer).expect("a certificate");
        let key = PrivatePkcs8KeyDer::from(own.serialize_der());
        let serving = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key.into())
            .expect("a matching key");
        Self { serving: Arc::new(serving), ca }
    }

    #[allow(dead_code, reason = "not every bench speaks TLS")]
    pub(crate) fn ca_file(&self) -> &Path {
        self.ca.path()
    }
}

#[derive(serde::Deserialize)]
struct Question {
    #[serde(rename = "To_Account", default)]
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
    counts.times.lock().expect("no panic under it").push(clock::now());
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
