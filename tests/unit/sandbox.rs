//! Tests of the simulator over real sockets.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::*;
use crate::clock;
use crate::domain::chat::usersig;

const KEY: &str = "5bd2850fff3ecb11d7c805251c51ee463a25727bddc2385f3fa8bfee1bb93b5e";
const CHECK: &str = "follow/follow_check";

fn config() -> SandboxConfig {
    SandboxConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        sdkappid: SdkAppId::new(1400000001).unwrap(),
        identifier: "administrator".parse().unwrap(),
        secret_key: SecretKey::new(KEY).unwrap(),
        tls: SandboxTls::Off,
        qps: NonZeroU32::new(200).unwrap(),
        latency: Duration::ZERO,
        webhook: None,
        seed_graph: Some(SeedGraph { users: vec!["ann".into(), "bob".into(), "cyd".into()], ..SeedGraph::default() }),
    }
}

/// A running simulator; it ends with the test's runtime.
struct RunningSandbox {
    address: SocketAddr,
    ca: Option<String>,
    graph: GraphHandle,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

async fn start(config: SandboxConfig) -> RunningSandbox {
    let sandbox = Sandbox::bind(config).await.unwrap();
    let (address, ca, graph) = (sandbox.address(), sandbox.ca_pem().map(str::to_owned), sandbox.graph());
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(sandbox.run(shutdown.clone()));
    RunningSandbox { address, ca, graph, shutdown, task }
}

fn sig() -> String {
    let config = config();
    let now = clock::unix_now().as_secs();
    usersig::mint(&config.secret_key, config.sdkappid, &config.identifier, now, 600).expose().to_owned()
}

fn target(command: &str) -> String {
    let sig = sig();
    format!("/v4/{command}?sdkappid=1400000001&identifier=administrator&usersig={sig}&random=7&contenttype=json")
}

impl RunningSandbox {
    async fn send(&self, method: Method, target: &str, body: &str) -> Response<Bytes> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(target).header("host", "sandbox");
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }

    async fn call(&self, command: &str, body: Value) -> Value {
        let response = self.send(Method::POST, &target(command), &body.to_string()).await;
        assert_eq!(response.status(), StatusCode::OK);
        serde_json::from_slice(response.body()).unwrap()
    }

    async fn control(&self, name: &str, body: Value) -> Value {
        let response = self.send(Method::POST, &format!("/__sandbox/{name}"), &body.to_string()).await;
        assert_eq!(response.status(), StatusCode::OK, "{:?}", response.body());
        serde_json::from_slice(response.body()).unwrap()
    }

    async fn journal(&self) -> Value {
        serde_json::from_slice(self.send(Method::GET, "/__sandbox/journal", "").await.body()).unwrap()
    }

    /// Sends a call without an HTTP client, and reads until the connection ends or fails.
    async fn raw(&self, command: &str, body: &str) -> (Vec<u8>, std::io::Result<()>) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let target = target(command);
        let call = format!("POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(call.as_bytes()).await.unwrap();
        let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => return (read, Ok(())),
                Ok(count) => read.extend_from_slice(&buffer[..count]),
                Err(error) => return (read, Err(error)),
            }
        }
    }
}

fn add(from: &str, to: &str) -> Value {
    json!({"From_Account": from, "FollowItem": [{"To_Account": to}]})
}

fn check(from: &str, to: &str) -> Value {
    json!({"From_Account": from, "To_Account": [to]})
}

#[tokio::test]
async fn calls_are_answered_and_recorded_without_their_signature() {
    let sandbox = start(config()).await;
    assert_eq!(sandbox.call("im_open_login_svc/account_import", json!({"UserID":"dan"})).await["ErrorCode"], 0);
    assert_eq!(sandbox.call("follow/follow_add", add("ann", "dan")).await["ResultItem"][0]["ResultCode"], 0);
    assert_eq!(sandbox.call(CHECK, check("dan", "ann")).await["ResultItem"][0]["FollowType"], 1);
    assert!(sandbox.graph.follows("ann", "dan"));
    let used = sig();
    let response = sandbox
        .send(Method::POST, &format!("/v4/{CHECK}?usersig={used}&sdkappid=1"), &format!("{{\"leak\":\"{used}\"}}"))
        .await;
    assert_eq!(serde_json::from_slice::<Value>(response.body()).unwrap()["ErrorCode"], 60025);
    let journal = sandbox.journal().await;
    assert_eq!(journal["total"], 4);
    assert_eq!(journal["max_in_one_second"][CHECK], 2);
    let second = &journal["calls"][1];
    assert_eq!((&second["service"], &second["command"]), (&json!("follow"), &json!("follow_add")));
    assert_eq!((&second["error_code"], &second["sdkappid"]), (&json!(0), &json!(1400000001)));
    assert_eq!((&second["identifier"], &second["random"]), (&json!("administrator"), &json!(7)));
    assert_eq!(second["body"], add("ann", "dan"));
    assert_eq!(second["headers"]["host"], "sandbox");
    assert!(second["at_ms"].as_u64().unwrap() > 1_700_000_000_000);
    assert_eq!(journal["calls"][3]["body"]["leak"], "(usersig)");
    assert!(!journal.to_string().contains("eJ"), "the journal contains a signature");
}

#[tokio::test]
async fn invalid_calls_get_an_error_envelope() {
    let sandbox = start(config()).await;
    for (method, target, body, code) in [
        (Method::GET, target(CHECK), "{}", 60002),
        (Method::POST, target("follow/follow_chek"), "{}", 60009),
        (Method::POST, target("group_open_http_svc/x"), "{}", 10003),
        (Method::POST, target("follow/follow_check/x"), "{}", 60009),
        (Method::POST, "/".to_owned(), "{}", 60009),
        (Method::POST, format!("/v4/{CHECK}"), "{}", 60012),
        (Method::POST, target(CHECK), "", 60003),
        (Method::POST, target(CHECK), "[]", 60003),
        (Method::POST, target(CHECK), "{} x", 60003),
        (Method::POST, target(CHECK), "{}", 30001),
        (Method::POST, target("openim/sendmsg"), "{}", 0),
    ] {
        let response = sandbox.send(method, &target, body).await;
        assert_eq!(response.status(), StatusCode::OK);
        let json: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(json["ErrorCode"], code, "{json}");
        assert_eq!(json["ActionStatus"], if code == 0 { "OK" } else { "FAIL" });
    }
    assert_eq!(sandbox.send(Method::HEAD, "/", "").await.status(), StatusCode::OK);
    let long = " ".repeat(2 * 1024 * 1024 + 1);
    assert_eq!(sandbox.send(Method::POST, &target(CHECK), &long).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn calls_over_the_limit_get_60007() {
    let sandbox = start(SandboxConfig { qps: NonZeroU32::MIN, ..config() }).await;
    let start = clock::now();
    let (mut admitted, mut rejected) = (0, 0);
    while rejected == 0 && admitted < 100 {
        match sandbox.call(CHECK, check("ann", "bob")).await["ErrorCode"].as_i64() {
            Some(0) => admitted += 1,
            Some(60007) => rejected += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rejected, 1);
    assert!(admitted as u64 <= 1 + start.elapsed().as_secs());
    assert_eq!(
        sandbox.call("follow/follow_get_info", check("ann", "bob")).await["ErrorCode"],
        0,
        "another command has its own limit"
    );
}

#[tokio::test]
async fn faults_that_replace_the_response_skip_the_command() {
    let sandbox = start(config()).await;
    sandbox.control("faults", json!({"error_code":60008,"next":1})).await;
    assert_eq!(sandbox.call("follow/follow_add", add("ann", "bob")).await["ErrorCode"], 60008);
    sandbox.control("faults", json!({"status":502,"next":1,"command":"follow/follow_add"})).await;
    assert_eq!(sandbox.call(CHECK, check("ann", "bob")).await["ResultItem"][0]["FollowType"], 0);
    let response = sandbox.send(Method::POST, &target("follow/follow_add"), &add("ann", "bob").to_string()).await;
    assert_eq!(
        (response.status(), &response.headers()["content-type"]),
        (StatusCode::BAD_GATEWAY, &"text/html".parse().unwrap())
    );
    assert!(!sandbox.graph.follows("ann", "bob"));
    let journal = sandbox.journal().await;
    let seen: Vec<_> = (0..3).map(|at| (&journal["calls"][at]["error_code"], &journal["calls"][at]["fault"])).collect();
    assert_eq!(
        seen,
        [(&json!(60008), &json!("error_code")), (&json!(0), &json!(null)), (&json!(null), &json!("status"))]
    );
}

#[tokio::test]
async fn item_faults_fail_one_item_under_an_ok_envelope() {
    let sandbox = start(config()).await;
    sandbox.control("graph", json!({"friends":[["ann","bob"],["ann","cyd"]]})).await;
    sandbox.control("faults", json!({"item_error_code":30006,"to":"cyd","next":1,"command":"sns/friend_check"})).await;
    let body = json!({"From_Account":"ann","To_Account":["bob","cyd"],"CheckType":"CheckResult_Type_Both"});
    let response = sandbox.call("sns/friend_check", body.clone()).await;
    let code = |response: &Value, at: usize| response["InfoItem"][at]["ResultCode"].clone();
    assert_eq!((code(&response, 0), code(&response, 1)), (json!(0), json!(30006)));
    assert_eq!((&response["ErrorCode"], &response["Fail_Account"]), (&json!(0), &json!(["cyd"])));
    let response = sandbox.call("sns/friend_check", body).await;
    assert_eq!((code(&response, 1), &response["Fail_Account"]), (json!(0), &json!(null)));
    assert_eq!(sandbox.journal().await["calls"][0]["fault"], "item_error_code");
}

#[tokio::test]
async fn connection_faults_hit_after_the_command_is_executed() {
    let sandbox = start(config()).await;
    sandbox.control("faults", json!({"reset":true,"next":1})).await;
    let (read, end) = sandbox.raw("follow/follow_add", &add("ann", "bob").to_string()).await;
    assert!(read.is_empty());
    assert_eq!(end.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
    assert!(sandbox.graph.follows("ann", "bob"));

    sandbox.control("faults", json!({"drop":true,"next":1})).await;
    let (read, end) = sandbox.raw("follow/follow_add", &add("bob", "ann").to_string()).await;
    assert!(read.is_empty() && end.is_ok(), "{end:?}");
    assert!(sandbox.graph.follows("bob", "ann"));

    sandbox.control("faults", json!({"truncate":true,"next":1})).await;
    let (read, end) = sandbox.raw(CHECK, &check("ann", "bob").to_string()).await;
    assert!(end.is_ok(), "{end:?}");
    let text = String::from_utf8(read).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let declared: usize =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok()).unwrap();
    assert_eq!(body.len(), declared / 2);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");

    let journal = sandbox.journal().await;
    let faults: Vec<_> = (0..3).map(|at| journal["calls"][at]["fault"].as_str().unwrap()).collect();
    assert_eq!(faults, ["reset", "drop", "truncate"]);
}

#[tokio::test]
async fn delayed_response_is_from_before_the_delay() {
    let sandbox = start(SandboxConfig { latency: Duration::from_millis(20), ..config() }).await;
    sandbox.control("faults", json!({"latency_ms":1000,"next":1,"command":CHECK})).await;
    let begin = clock::now();
    let (before, change) = (check("ann", "bob"), add("ann", "bob"));
    let late = sandbox.call(CHECK, before);
    let change = async {
        // The lookup was executed once it is in the journal.
        while sandbox.journal().await["total"] == 0 {}
        sandbox.call("follow/follow_add", change).await;
        assert!(begin.elapsed() < Duration::from_millis(1000), "the machine is too slow for this test");
    };
    let (late, ()) = tokio::join!(late, change);
    assert!(begin.elapsed() >= Duration::from_millis(1020));
    assert_eq!(late["ResultItem"][0]["FollowType"], 0);
    assert!(sandbox.graph.follows("ann", "bob"));
}

#[tokio::test]
async fn skewed_clock_affects_signatures_and_the_date_header() {
    let sandbox = start(config()).await;
    let response = sandbox.control("clock", json!({"skew":601})).await;
    assert!(response["now"].as_u64().unwrap() >= clock::unix_now().as_secs() + 600);
    assert_eq!(sandbox.call(CHECK, check("ann", "bob")).await["ErrorCode"], 70001);
    sandbox.control("clock", json!({"skew":-86_400 * 365})).await;
    assert_eq!(sandbox.call(CHECK, check("ann", "bob")).await["ErrorCode"], 0);
    sandbox.control("clock", json!({"skew":-315_360_000})).await;
    let response = sandbox.send(Method::POST, &target(CHECK), "{}").await;
    let year: u64 = response.headers()["date"].to_str().unwrap()[12..16].parse().unwrap();
    let today: u64 = httpdate::fmt_http_date(std::time::UNIX_EPOCH + clock::unix_now())[12..16].parse().unwrap();
    assert!(today - year == 10 || today - year == 9, "{year}");
}

#[tokio::test]
async fn control_requests_succeed_or_return_an_error_text() {
    let sandbox = start(config()).await;
    let sizes = sandbox
        .control(
            "graph",
            json!({"users":["eve"],"edges":[["eve","ann"],["ann","eve"]],
        "friends":[["ann","eve"]],"blocks":[["bob","ann"]]}),
        )
        .await;
    assert_eq!(sizes, json!({"users":5,"edges":2,"friends":1,"blocks":1}));
    sandbox.control("faults", json!({"drop":true,"share":1.0})).await;
    sandbox.control("clock", json!({"skew":5000})).await;
    assert_eq!(sandbox.control("reset", json!({})).await, json!({}));
    assert_eq!(sandbox.graph.size(), GraphSize { users: 4, edges: 0, friends: 0, blocks: 0 });
    assert_eq!(sandbox.call(CHECK, check("ann", "bob")).await["ErrorCode"], 0);
    assert_eq!(sandbox.journal().await["total"], 1);
    for (method, name, body) in [
        (Method::GET, "nothing", ""),
        (Method::GET, "faults", ""),
        (Method::POST, "journal", ""),
        (Method::POST, "clock", "{}"),
        (Method::POST, "clock", "{\"skew\":\"1\"}"),
        (Method::POST, "clock", "{\"skew\":9223372036854775807}"),
        (Method::POST, "faults", "{\"drop\":true}"),
        (Method::POST, "graph", "{\"edges\":[[\"ann\"]]}"),
        (Method::POST, "graph", "{\"users\":[\"\"]}"),
        (Method::POST, "graph", "{\"friends\":[[\"ann\",\"ann\"]]}"),
    ] {
        let response = sandbox.send(method, &format!("/__sandbox/{name}"), body).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{name} {body}");
        assert!(response.body().ends_with(b"\n") && response.body().len() > 10, "{name} {body}");
    }
    sandbox.control("faults", json!({"drop":true,"share":1})).await;
    assert_eq!(sandbox.send(Method::DELETE, "/__sandbox/faults", "").await.status(), StatusCode::OK);
    assert_eq!(sandbox.call(CHECK, check("ann", "bob")).await["ErrorCode"], 0);
}

#[tokio::test]
async fn https_serves_both_http_versions_under_its_ca() {
    let dir = tempfile::tempdir().unwrap();
    let sandbox = start(SandboxConfig { tls: SandboxTls::Dir(dir.path().into()), ..config() }).await;
    let pem = std::fs::read_to_string(dir.path().join(CA_FILE)).unwrap();
    assert_eq!(sandbox.ca.as_deref(), Some(pem.as_str()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let connect = |trusted: bool, alpn: &'static [u8], name: &'static str| {
        let mut roots = rustls::RootCertStore::empty();
        if trusted {
            roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        }
        let mut client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![alpn.to_vec()];
        let address = sandbox.address;
        async move {
            let stream = TcpStream::connect(address).await.unwrap();
            TlsConnector::from(Arc::new(client)).connect(ServerName::try_from(name).unwrap(), stream).await
        }
    };
    assert!(connect(false, b"h2", "localhost").await.is_err());
    assert!(connect(true, b"h2", "console.tim.qq.com").await.is_err());
    let body = || Full::new(Bytes::from(check("ann", "bob").to_string()));

    let stream = connect(true, b"http/1.1", "127.0.0.1").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (mut sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(target(CHECK)).header("host", "x").body(body()).unwrap();
    let response = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&response).unwrap()["ErrorCode"], 0);

    let stream = connect(true, b"h2", "localhost").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("https://localhost{}", target(CHECK))).body(body()).unwrap();
    let response = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&response).unwrap()["ErrorCode"], 0);

    // A reset ends the whole connection, over HTTP/2 too.
    let inject = |json: &'static str| {
        Request::post("https://localhost/__sandbox/faults").body(Full::new(Bytes::from(json))).unwrap()
    };
    sender.send_request(inject(r#"{"reset":true,"next":1}"#)).await.unwrap();
    let request = Request::post(format!("https://localhost{}", target(CHECK))).body(body()).unwrap();
    assert!(sender.send_request(request).await.is_err());
    assert!(sender.ready().await.is_err());
}

#[tokio::test]
async fn webhooks_are_signed_and_sent_in_the_order_of_changes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = WebhookTarget::parse_url(&format!("http://{}/hook", listener.local_addr().unwrap())).unwrap();
    let webhook = Some(WebhookTarget { url, token: SecretKey::new("xxxxyyyy").unwrap() });
    let sandbox = start(SandboxConfig { webhook, ..config() }).await;
    let receiver = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut events = Vec::new();
        let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
        while events.len() < 2 {
            let count = stream.read(&mut buffer).await.unwrap();
            assert_ne!(count, 0);
            read.extend_from_slice(&buffer[..count]);
            let text = String::from_utf8(read.clone()).unwrap();
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && body.ends_with('}')
            {
                events.push((head.lines().next().unwrap().to_owned(), serde_json::from_str::<Value>(body).unwrap()));
                read.clear();
                let response = b"HTTP/1.1 200 OK\r\ncontent-length: 51\r\n\r\n{\"ActionStatus\":\"OK\",\"ErrorCode\":0,\"ErrorInfo\":\"\"} ";
                stream.write_all(response).await.unwrap();
            }
        }
        events
    });
    sandbox.call("follow/follow_add", add("ann", "bob")).await;
    sandbox.call("follow/follow_add", add("ann", "zoe")).await;
    sandbox.call("follow/follow_delete", check("ann", "bob")).await;
    let events = receiver.await.unwrap();
    assert_eq!(events[0].1["FollowList"], json!([{"To_Account":"bob"}]));
    assert_eq!(
        (&events[1].1["CallbackCommand"], &events[1].1["To_Account"]),
        (&json!("Follow.CallbackAfterFollowDelete"), &json!(["bob"]))
    );
    let (line, _) = &events[0];
    let value =
        |name: &str| line.split([' ', '?', '&']).find_map(|part| part.strip_prefix(name)?.strip_prefix('=')).unwrap();
    assert!(line.starts_with("POST /hook?"), "{line}");
    assert_eq!((value("SdkAppid"), value("ClientIP"), value("OptPlatform")), ("1400000001", "127.0.0.1", "RESTAPI"));
    assert_eq!(value("Sign"), journal::sha256(format!("xxxxyyyy{}", value("RequestTime")).as_bytes()));
}

#[tokio::test]
async fn shutdown_ends_silent_and_stuck_connections() {
    let sandbox = start(config()).await;
    let _silent = TcpStream::connect(sandbox.address).await.unwrap();
    sandbox.control("faults", json!({"latency_ms":60000,"next":1})).await;
    let mut stuck = TcpStream::connect(sandbox.address).await.unwrap();
    let call = format!("POST {} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}", target(CHECK));
    stuck.write_all(call.as_bytes()).await.unwrap();
    while sandbox.journal().await["total"] == 0 {}
    sandbox.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), sandbox.task).await.unwrap().unwrap();
    assert!(TcpStream::connect(sandbox.address).await.is_err());
}

#[tokio::test]
async fn bind_fails_for_used_address_or_invalid_seed() {
    let sandbox = start(config()).await;
    let taken = Sandbox::bind(SandboxConfig { listen: sandbox.address, ..config() }).await;
    assert!(matches!(taken, Err(SandboxError::Listen { .. })));
    let seed_graph = Some(SeedGraph { users: vec![String::new()], ..SeedGraph::default() });
    assert!(matches!(Sandbox::bind(SandboxConfig { seed_graph, ..config() }).await, Err(SandboxError::Seed(_))));
}
