//! The fake Chat: an upstream that records every call and answers as the test scripts it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::app;
use super::eventually;
use super::graph::{Graph, error_response};
use super::reply::{Reply, ReplyKind, render};
use super::wire::{Call, Reader, Stream, reset_on_drop};
use super::{secrets, unix_now, usersig};

/// An upstream on a loopback port. Dropping it closes the port and fails the test if a request broke the contract.
pub(crate) struct FakeChat {
    address: SocketAddr,
    /// `https` and the host name, or `http` and the address.
    endpoint: String,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

type Script = Arc<dyn Fn(&Call) -> Option<Reply> + Send + Sync>;

struct Shared {
    graph: Graph,
    authority: String,
    /// Called for each call before the follow graph is consulted.
    script: Mutex<Option<Script>>,
    calls: Mutex<Vec<Call>>,
    /// Contract violations found in the gateway's requests.
    violations: Mutex<Vec<String>>,
    /// Accepted connections, including those with failed handshakes.
    accepted: AtomicUsize,
    /// Cancelled and replaced by [`FakeChat::drop_connections`].
    connections: Mutex<CancellationToken>,
    tls: Mutex<Option<TlsAcceptor>>,
    /// Additional valid keys of the main app, as during a key rotation.
    further_keys: Mutex<Vec<&'static str>>,
}

impl FakeChat {
    /// Starts plain HTTP on a free port.
    pub(crate) async fn start() -> FakeChat {
        FakeChat::start_on("127.0.0.1:0".parse().expect("an address")).await
    }

    /// Starts plain HTTP on this address.
    pub(crate) async fn start_on(address: SocketAddr) -> FakeChat {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        FakeChat::serve(listener, format!("http://{address}"), address.to_string(), None)
    }

    /// Starts HTTPS as `localhost` with this certificate.
    pub(crate) async fn start_tls(acceptor: TlsAcceptor) -> FakeChat {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let authority = format!("localhost:{}", listener.local_addr().expect("bound").port());
        FakeChat::serve(listener, format!("https://{authority}"), authority, Some(acceptor))
    }

    /// Starts an upstream that expects `authority` as its Host, for use behind a relay. Uses HTTPS if `tls` is given.
    pub(crate) async fn start_behind(address: SocketAddr, authority: String, tls: Option<TlsAcceptor>) -> FakeChat {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let scheme = if tls.is_some() { "https" } else { "http" };
        FakeChat::serve(listener, format!("{scheme}://{authority}"), authority, tls)
    }

    /// Presents this certificate on all later connections.
    pub(crate) fn set_certificate(&self, tls: TlsAcceptor) {
        *self.shared.tls.lock() = Some(tls);
    }

    fn serve(listener: TcpListener, endpoint: String, authority: String, tls: Option<TlsAcceptor>) -> FakeChat {
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            graph: Graph::default(),
            authority,
            script: Mutex::default(),
            calls: Mutex::default(),
            violations: Mutex::default(),
            accepted: AtomicUsize::new(0),
            connections: Mutex::new(stop.child_token()),
            tls: Mutex::new(tls),
            further_keys: Mutex::default(),
        });
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, shared.clone())));
        FakeChat { address, endpoint, shared, stop }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the configuration lines of an app that uses this upstream.
    pub(crate) fn app_lines(&self) -> String {
        format!("endpoint = \"{}\"", self.endpoint)
    }

    /// Returns the follow graph.
    pub(crate) fn graph(&self) -> &Graph {
        &self.shared.graph
    }

    /// Makes `from` follow `to` in the main app.
    pub(crate) fn follow(&self, from: &str, to: &str) {
        self.shared.graph.follow(app::MAIN.sdkappid, from, to);
    }

    /// Sets the script for every later call. If the script returns `None`, the response comes from the follow graph.
    pub(crate) fn script(&self, script: impl Fn(&Call) -> Option<Reply> + Send + Sync + 'static) {
        *self.shared.script.lock() = Some(Arc::new(script));
    }

    /// Also accepts this key of the main app from now on.
    pub(crate) fn accept_key(&self, key: &'static str) {
        secrets::add(key);
        self.shared.further_keys.lock().push(key);
    }

    /// Answers every later call with this reply.
    pub(crate) fn reply_always(&self, reply: Reply) {
        self.script(move |_| Some(reply.clone()));
    }

    /// Answers the next call with this reply, and later calls from the follow graph.
    pub(crate) fn reply_once(&self, reply: Reply) {
        let next = Mutex::new(Some(reply));
        self.script(move |_| next.lock().take());
    }

    /// Answers every later call from the follow graph.
    pub(crate) fn clear_script(&self) {
        *self.shared.script.lock() = None;
    }

    /// Returns every call so far, in order of arrival.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().clone()
    }

    /// Returns the number of calls so far.
    pub(crate) fn call_count(&self) -> usize {
        self.shared.calls.lock().len()
    }

    /// Returns the calls of one command.
    pub(crate) fn calls_of(&self, command: &str) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.command() == command).collect()
    }

    /// Returns the latest call.
    pub(crate) fn last_call(&self) -> Call {
        self.calls().pop().expect("a call")
    }

    /// Waits until at least `count` calls have arrived.
    pub(crate) async fn wait_for_calls(&self, count: usize) {
        eventually(&format!("{count} upstream calls"), async || (self.call_count() >= count).then_some(())).await;
    }

    /// Returns the number of connections accepted so far.
    pub(crate) fn accepted_connections(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Returns the contract violations found so far.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.shared.violations.lock().clone()
    }

    /// Clears the violations so far, for a test that caused them on purpose.
    pub(crate) fn clear_violations(&self) {
        self.shared.violations.lock().clear();
    }

    /// Closes all open connections, as a server does after its keep-alive timeout.
    pub(crate) fn drop_connections(&self) {
        let mut connections = self.shared.connections.lock();
        std::mem::replace(&mut *connections, self.stop.child_token()).cancel();
    }
}

impl Drop for FakeChat {
    fn drop(&mut self) {
        self.stop.cancel();
        if !std::thread::panicking() {
            let violations = self.violations();
            assert!(violations.is_empty(), "the gateway's requests broke the contract:\n{}", violations.join("\n"));
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
        let shared = shared.clone();
        let alive = shared.connections.lock().clone();
        tokio::spawn(alive.run_until_cancelled_owned(async move {
            let _ = stream.set_nodelay(true);
            let tls = shared.tls.lock().clone();
            match tls {
                None => {
                    let mut stream = stream;
                    if serve_connection(&mut stream, &shared, number).await == Closing::Reset {
                        reset_on_drop(&stream);
                    }
                }
                Some(tls) => serve_tls(stream, &tls, &shared, number).await,
            }
        }));
    }
}

async fn serve_tls(stream: TcpStream, tls: &TlsAcceptor, shared: &Shared, number: usize) {
    // A client that does not trust the certificate ends here.
    let Ok(mut stream) = tls.accept(stream).await else { return };
    match serve_connection(&mut stream, shared, number).await {
        Closing::Reset => reset_on_drop(stream.get_ref().0),
        Closing::Normal => drop(stream.shutdown().await),
    }
}

/// How a connection ends.
#[derive(PartialEq, Eq)]
enum Closing {
    Normal,
    Reset,
}

/// Answers the requests of one connection until either side closes it.
async fn serve_connection(stream: &mut impl Stream, shared: &Shared, number: usize) -> Closing {
    let mut reader = Reader::new(number);
    loop {
        let call = match reader.next(stream).await {
            Ok(Some(call)) => call,
            Ok(None) => return Closing::Normal,
            Err(violation) => {
                shared.violations.lock().push(violation);
                return Closing::Reset;
            }
        };
        if let Some(closing) = respond(stream, shared, call).await {
            return closing;
        }
    }
}

/// Answers one call. Returns `None` if the connection stays open.
async fn respond(stream: &mut impl Stream, shared: &Shared, call: Call) -> Option<Closing> {
    let violations = shared.record(&call);
    let script = shared.script.lock().clone();
    let reply = script.and_then(|script| script(&call)).unwrap_or_else(Reply::from_graph);
    let command = call.command().to_owned();
    let is_read = command.ends_with("_check");
    let read_result = is_read.then(|| shared.graph.respond(call.app(), &command, &call.body));
    if let Some(gate) = &reply.gate {
        gate.wait_open().await;
    }
    let bytes = match reply.kind {
        _ if !violations.is_empty() => render(200, None, error_response(60025, &violations.join(", ")).as_bytes()),
        ReplyKind::FromGraph => {
            let body = read_result.unwrap_or_else(|| shared.graph.respond(call.app(), &command, &call.body));
            render(200, Some("application/json"), body.as_bytes())
        }
        ReplyKind::Response { status, content_type, body } => render(status, content_type.as_deref(), &body),
        ReplyKind::Bytes(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.flush().await;
            return Some(Closing::Normal);
        }
        ReplyKind::Reset(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.flush().await;
            return Some(Closing::Reset);
        }
        ReplyKind::Stall(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.flush().await;
            while let Ok(1..) = stream.read(&mut [0; 1024]).await {}
            return Some(Closing::Normal);
        }
        ReplyKind::Endless { first, more } => {
            let _ = stream.write_all(&first).await;
            while stream.write_all(&more).await.is_ok() {}
            return Some(Closing::Normal);
        }
    };
    let sent = stream.write_all(&bytes).await.is_ok() && stream.flush().await.is_ok();
    if sent { None } else { Some(Closing::Normal) }
}

impl Shared {
    /// Records the call and returns its contract violations.
    fn record(&self, call: &Call) -> Vec<String> {
        let usersig = call.usersig();
        // A call without one violates the contract.
        if usersig.len() >= secrets::LEN_MIN {
            secrets::add(&usersig);
        }
        let keys = self.further_keys.lock().clone();
        let found = violations(call, &self.authority, &keys);
        if !found.is_empty() {
            let text = format!("{} {}: {}", call.method, call.path(), found.join(", "));
            self.violations.lock().push(text);
        }
        self.calls.lock().push(call.clone());
        found
    }
}

/// Headers that may reach Chat.
const HEADERS: [&str; 5] = ["host", "content-type", "content-length", "accept", "traceparent"];

/// Returns every contract violation of a request. `further_keys` are additional keys of the main app.
pub(super) fn violations(call: &Call, authority: &str, further_keys: &[&'static str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut expect = |holds: bool, what: &str| {
        if !holds {
            found.push(what.to_owned());
        }
    };
    let segments: Vec<&str> = call.path().split('/').collect();
    let plain =
        |text: &str| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    expect(call.method == "POST", "method is not POST");
    expect(
        matches!(segments.as_slice(), ["", "v4", service, command] if plain(service) && plain(command)),
        "path is not /v4/service/command",
    );
    let mut headers: HashMap<String, usize> = HashMap::new();
    for (name, _) in &call.headers {
        *headers.entry(name.to_ascii_lowercase()).or_default() += 1;
    }
    expect(headers.values().all(|count| *count == 1), "repeated header");
    for name in headers.keys() {
        expect(HEADERS.contains(&name.as_str()), &format!("header {name}"));
    }
    expect(call.header("host") == Some(authority), "Host is not the upstream's");
    expect(call.header("content-type") == Some("application/json"), "Content-Type is not application/json");
    expect(call.body.trim_ascii().starts_with(b"{"), "body is not a JSON object");

    let query = call.query();
    let mut names: Vec<&str> = query.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let required = ["contenttype", "identifier", "random", "sdkappid", "usersig"];
    expect(names == required, &format!("query parameters {names:?}"));
    let value = |name: &str| call.parameter(name).unwrap_or_default();
    expect(value("contenttype") == "json", "contenttype is not json");
    let random = value("random");
    expect(random.parse::<u32>().is_ok_and(|number| number.to_string() == random), "random is not a 32-bit number");
    match app::by_sdkappid(&value("sdkappid")) {
        None => expect(false, "unknown sdkappid"),
        Some(app) => {
            expect(value("identifier") == app.identifier, "identifier is not the app's");
            let verify = |key| usersig::verify(&value("usersig"), app::TestApp { key, ..app }, unix_now());
            let has_further_key = || app == app::MAIN && further_keys.iter().any(|key| verify(key).is_ok());
            if let Err(reason) = verify(app.key)
                && !has_further_key()
            {
                expect(false, &format!("usersig {reason}"));
            }
        }
    }
    found
}
