//! The fake Chat: an upstream that remembers everything and does what the test tells it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::app;
use super::eventually;
use super::graph::{Graph, fail};
use super::reply::{Reply, What, render};
use super::wire::{Call, Reader, Stream, reset_on_drop};
use super::{secrets, unix_now, usersig};

/// An upstream on a loopback port. Dropping it closes it and fails the test if a request broke the contract.
pub(crate) struct FakeChat {
    address: SocketAddr,
    /// `https` and the name to ask for, or `http` and the address.
    endpoint: String,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

type Script = Arc<dyn Fn(&Call) -> Option<Reply> + Send + Sync>;

struct Shared {
    graph: Graph,
    authority: String,
    /// Asked for each call before the graph is.
    script: Mutex<Option<Script>>,
    calls: Mutex<Vec<Call>>,
    /// What no request of the gateway may look like, but one did.
    violations: Mutex<Vec<String>>,
    /// How many connections were accepted, failed handshakes included.
    accepted: AtomicUsize,
    /// Cancelled and replaced by [`FakeChat::drop_connections`].
    connections: Mutex<CancellationToken>,
    tls: Mutex<Option<TlsAcceptor>>,
    /// Keys of the main app that hold beside its first, as in the days of a rotation.
    further_keys: Mutex<Vec<&'static str>>,
}

impl FakeChat {
    /// Plain HTTP on a free port.
    pub(crate) async fn start() -> FakeChat {
        FakeChat::start_on("127.0.0.1:0".parse().expect("an address")).await
    }

    /// Plain HTTP on this address.
    pub(crate) async fn start_on(address: SocketAddr) -> FakeChat {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        FakeChat::serve(listener, format!("http://{address}"), address.to_string(), None)
    }

    /// HTTPS with this certificate, asked for as `localhost`.
    pub(crate) async fn start_tls(acceptor: TlsAcceptor) -> FakeChat {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let authority = format!("localhost:{}", listener.local_addr().expect("bound").port());
        FakeChat::serve(listener, format!("https://{authority}"), authority, Some(acceptor))
    }

    /// Asked for as `authority`, which something leads here; HTTPS if there is a certificate.
    pub(crate) async fn start_behind(address: SocketAddr, authority: String, tls: Option<TlsAcceptor>) -> FakeChat {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let scheme = if tls.is_some() { "https" } else { "http" };
        FakeChat::serve(listener, format!("{scheme}://{authority}"), authority, tls)
    }

    /// Shows another certificate to whoever connects from now on.
    pub(crate) fn show(&self, tls: TlsAcceptor) {
        *self.shared.tls.lock().expect("no panic under it") = Some(tls);
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

    /// The configuration lines of an app that lives here.
    pub(crate) fn app_lines(&self) -> String {
        format!("endpoint = \"{}\"", self.endpoint)
    }

    /// Who follows whom.
    pub(crate) fn graph(&self) -> &Graph {
        &self.shared.graph
    }

    /// `from` follows `to` in the main app.
    pub(crate) fn follow(&self, from: &str, to: &str) {
        self.shared.graph.follow(app::MAIN.sdkappid, from, to);
    }

    /// Sets what is asked for every later call; where it answers `None`, the graph answers.
    pub(crate) fn script(&self, script: impl Fn(&Call) -> Option<Reply> + Send + Sync + 'static) {
        *self.shared.script.lock().expect("no panic under it") = Some(Arc::new(script));
    }

    /// From now on this key of the main app holds too.
    pub(crate) fn also_takes(&self, key: &'static str) {
        secrets::remember(key);
        self.shared.further_keys.lock().expect("no panic under it").push(key);
    }

    /// Every later call gets this.
    pub(crate) fn always(&self, reply: Reply) {
        self.script(move |_| Some(reply.clone()));
    }

    /// The first call from now on gets this, and the graph answers the rest.
    pub(crate) fn once(&self, reply: Reply) {
        let left = Mutex::new(Some(reply));
        self.script(move |_| left.lock().expect("no panic under it").take());
    }

    /// The graph answers every later call.
    pub(crate) fn no_script(&self) {
        *self.shared.script.lock().expect("no panic under it") = None;
    }

    /// Every call so far, in the order of their coming.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().expect("no panic under it").clone()
    }

    /// How many calls came so far.
    pub(crate) fn count(&self) -> usize {
        self.shared.calls.lock().expect("no panic under it").len()
    }

    /// The calls of one command.
    pub(crate) fn calls_of(&self, command: &str) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.command() == command).collect()
    }

    /// The newest call.
    pub(crate) fn last(&self) -> Call {
        self.calls().pop().expect("a call")
    }

    /// Waits until that many calls came.
    pub(crate) async fn seen(&self, count: usize) {
        eventually(&format!("{count} upstream calls"), async || (self.count() >= count).then_some(())).await;
    }

    /// How many connections were accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// What was wrong with what it saw.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.shared.violations.lock().expect("no panic under it").clone()
    }

    /// Forgets the violations so far, in a test that caused them on purpose.
    pub(crate) fn forgive(&self) {
        self.shared.violations.lock().expect("no panic under it").clear();
    }

    /// Closes every connection there is, as a peer does that has no more time for it.
    pub(crate) fn drop_connections(&self) {
        let mut connections = self.shared.connections.lock().expect("no panic under it");
        std::mem::replace(&mut *connections, self.stop.child_token()).cancel();
    }
}

impl Drop for FakeChat {
    fn drop(&mut self) {
        self.stop.cancel();
        if !std::thread::panicking() {
            let violations = self.violations();
            assert!(violations.is_empty(), "upstream saw what it must never see:\n{}", violations.join("\n"));
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
        let shared = shared.clone();
        let alive = shared.connections.lock().expect("no panic under it").clone();
        tokio::spawn(alive.run_until_cancelled_owned(async move {
            let _ = stream.set_nodelay(true);
            let tls = shared.tls.lock().expect("no panic under it").clone();
            match tls {
                None => {
                    let mut stream = stream;
                    if converse(&mut stream, &shared, number).await == End::Reset {
                        reset_on_drop(&stream);
                    }
                }
                Some(tls) => converse_tls(stream, &tls, &shared, number).await,
            }
        }));
    }
}

async fn converse_tls(stream: TcpStream, tls: &TlsAcceptor, shared: &Shared, number: usize) {
    // A caller that does not trust the certificate ends here.
    let Ok(mut stream) = tls.accept(stream).await else { return };
    match converse(&mut stream, shared, number).await {
        End::Reset => reset_on_drop(stream.get_ref().0),
        End::Closed => drop(stream.shutdown().await),
    }
}

#[derive(PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

/// Answers the requests of one connection until one of both sides has enough.
async fn converse(stream: &mut impl Stream, shared: &Shared, number: usize) -> End {
    let mut reader = Reader::new(number);
    loop {
        let call = match reader.next(stream).await {
            Ok(Some(call)) => call,
            Ok(None) => return End::Closed,
            Err(fault) => {
                shared.violations.lock().expect("no panic under it").push(fault);
                return End::Reset;
            }
        };
        if let Some(end) = answer(stream, shared, call).await {
            return end;
        }
    }
}

/// Answers one call. `None`: the connection goes on.
async fn answer(stream: &mut impl Stream, shared: &Shared, call: Call) -> Option<End> {
    let faults = shared.record(&call);
    let script = shared.script.lock().expect("no panic under it").clone();
    let reply = script.and_then(|script| script(&call)).unwrap_or_else(Reply::model);
    let command = call.command().to_owned();
    let is_read = command.ends_with("_check");
    let early = is_read.then(|| shared.graph.answer(call.app(), &command, &call.body));
    if let Some(gate) = &reply.gate {
        gate.passed().await;
    }
    let bytes = match reply.what {
        _ if !faults.is_empty() => render(200, None, fail(60025, &faults.join(", ")).as_bytes()),
        What::Model => {
            let body = early.unwrap_or_else(|| shared.graph.answer(call.app(), &command, &call.body));
            render(200, Some("application/json"), body.as_bytes())
        }
        What::Answer { status, content_type, body } => render(status, content_type.as_deref(), &body),
        What::Bytes(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.flush().await;
            return Some(End::Closed);
        }
        What::Reset(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.flush().await;
            return Some(End::Reset);
        }
        What::Stall(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.flush().await;
            while let Ok(1..) = stream.read(&mut [0; 1024]).await {}
            return Some(End::Closed);
        }
        What::Endless { first, more } => {
            let _ = stream.write_all(&first).await;
            while stream.write_all(&more).await.is_ok() {}
            return Some(End::Closed);
        }
    };
    let sent = stream.write_all(&bytes).await.is_ok() && stream.flush().await.is_ok();
    if sent { None } else { Some(End::Closed) }
}

impl Shared {
    /// Keeps the call and says what is wrong with it.
    fn record(&self, call: &Call) -> Vec<String> {
        secrets::remember(&call.usersig());
        let keys = self.further_keys.lock().expect("no panic under it").clone();
        let faults = faults(call, &self.authority, &keys);
        if !faults.is_empty() {
            let text = format!("{} {}: {}", call.method, call.path(), faults.join(", "));
            self.violations.lock().expect("no panic under it").push(text);
        }
        self.calls.lock().expect("no panic under it").push(call.clone());
        faults
    }
}

/// Headers that may reach upstream, besides those that frame the message.
const HEADERS: [&str; 5] = ["host", "content-type", "content-length", "accept", "traceparent"];

/// Everything about a request that the contract forbids. `further_keys` are of the main app.
pub(super) fn faults(call: &Call, authority: &str, further_keys: &[&'static str]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut expect = |holds: bool, what: &str| {
        if !holds {
            faults.push(what.to_owned());
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
    expect(headers.values().all(|count| *count == 1), "a header stands twice");
    for name in headers.keys() {
        expect(HEADERS.contains(&name.as_str()), &format!("header {name}"));
    }
    expect(call.header("host") == Some(authority), "Host is not upstream's own");
    expect(call.header("content-type") == Some("application/json"), "Content-Type is not application/json");
    expect(call.body.trim_ascii().starts_with(b"{"), "body is not a JSON object");

    let query = call.query();
    let mut names: Vec<&str> = query.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let five = ["contenttype", "identifier", "random", "sdkappid", "usersig"];
    expect(names == five, &format!("query parameters {names:?}"));
    let value = |name: &str| call.parameter(name).unwrap_or_default();
    expect(value("contenttype") == "json", "contenttype is not json");
    let random = value("random");
    expect(random.parse::<u32>().is_ok_and(|number| number.to_string() == random), "random is no 32-bit number");
    match app::by_number(&value("sdkappid")) {
        None => expect(false, "unknown sdkappid"),
        Some(app) => {
            expect(value("identifier") == app.identifier, "identifier is not the app's");
            let verify = |key| usersig::verify(&value("usersig"), app::TestApp { key, ..app }, unix_now());
            let other = || app == app::MAIN && further_keys.iter().any(|key| verify(key).is_ok());
            if let Err(why) = verify(app.key)
                && !other()
            {
                expect(false, &format!("usersig {why}"));
            }
        }
    }
    faults
}
