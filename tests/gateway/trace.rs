//! Spans of requests and their calls, as an OpenTelemetry collector receives them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::collector::{Collector, Span};
use crate::support::gateway::log_events;
use crate::support::graph::error_response;
use crate::support::h2::Http2;
use crate::support::process::Process;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;
use crate::support::tls::Ca;
use crate::support::{PATIENCE, eventually, unix_now, within};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn traced_setup(chat: &FakeChat, collector: &Collector) -> Setup {
    Setup::new(chat).set("trace", &collector.config_line())
}

/// Returns the `traceparent` header of a caller's span with these flags.
fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

/// Splits the spans into requests and calls.
fn split(spans: &[Span]) -> (Vec<&Span>, Vec<&Span>) {
    spans.iter().partition(|span| span.is_request())
}

#[tokio::test]
async fn lookup_call_is_a_child_of_its_request_span() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let gateway = traced_setup(&chat, &collector).start().await;
    let start = unix_now();
    gateway.check("ann", &["bob", "cyd"]).await.items();
    gateway.check("ann", &["bob"]).await.items();
    let spans = collector.wait_for_spans(3).await;
    let (requests, calls) = split(&spans);
    let [lookup, hit] = requests.as_slice() else { panic!("{spans:#?}") };
    let [call] = calls.as_slice() else { panic!("{spans:#?}") };
    let port = gateway.address().rsplit_once(':').expect("a port").1;
    for request in [lookup, hit] {
        assert_eq!(request.name(), "POST /v4/{service}/{command}");
        assert!(request.parent_id().is_empty() && request.links().is_empty() && !request.is_error(), "{request:#?}");
        request.assert_attributes(&[
            ("http.request.method", "POST"),
            ("http.route", "/v4/{service}/{command}"),
            ("http.response.status_code", "200"),
            ("url.scheme", "http"),
            ("url.path", "/v4/follow/follow_check"),
            ("server.address", "127.0.0.1"),
            ("server.port", port),
            ("network.protocol.version", "1.1"),
            ("error.type", ""),
            ("chatgate.app", "main"),
            ("chatgate.caller", ""),
            ("chatgate.command", "follow/follow_check"),
            ("chatgate.outcome", "ok"),
            ("chatgate.pairs.joined", "0"),
        ]);
    }
    lookup.assert_attributes(&[("chatgate.pairs.fetched", "2"), ("chatgate.pairs.hit", "0")]);
    assert_ne!(lookup.attribute("chatgate.waited_us").as_deref(), Some("0"));
    hit.assert_attributes(&[("chatgate.pairs.fetched", "0"), ("chatgate.pairs.hit", "1"), ("chatgate.waited_us", "0")]);
    assert_ne!(lookup.trace_id(), hit.trace_id());

    assert_eq!((call.trace_id(), call.parent_id()), (lookup.trace_id(), lookup.id()));
    assert!(!call.is_error() && call.links().is_empty());
    assert_eq!(call.name(), "POST /v4/{service}/{command}");
    call.assert_attributes(&[
        ("http.request.method", "POST"),
        ("url.template", "/v4/{service}/{command}"),
        ("url.scheme", "http"),
        ("server.address", "127.0.0.1"),
        ("server.port", &chat.address().port().to_string()),
        ("http.response.status_code", "200"),
        ("network.protocol.version", "1.1"),
        ("http.request.resend_count", ""),
        ("chatgate.app", "main"),
        ("chatgate.command", "follow/follow_check"),
        ("chatgate.error_code", "0"),
        ("error.type", ""),
    ]);
    // Chat receives the call's span in `traceparent`.
    let header = format!("00-{}-{}-01", call.trace_id(), call.id());
    assert_eq!(chat.last_call().header("traceparent"), Some(&*header));
    // The call lies within its request, and the request within this test.
    let (outer, inner) = (lookup.times(), call.times());
    // The two ends are read one after the other, and each start is computed from its end, so allow 5 ms.
    let slack = 5_000_000;
    assert!(outer.0 <= inner.0 + slack && inner.0 < inner.1 && inner.1 <= outer.1 + slack, "{outer:?} {inner:?}");
    let seconds = outer.0 / 1_000_000_000;
    assert!((start - 1..=unix_now()).contains(&seconds), "{start} {seconds}");
    // The resource identifies chatgate.
    assert_eq!(collector.resource("service.name").as_deref(), Some("chatgate"));
    assert_eq!(collector.resource("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(collector.path(), "/v1/traces");
}

#[tokio::test]
async fn relayed_call_and_log_continue_the_callers_trace() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let gateway = traced_setup(&chat, &collector).set("log", r#"requests = "all""#).start().await;
    let sent = TestRequest::command("openim/sendmsg").header("traceparent", &traceparent("01"));
    let response = gateway.send(sent.header("tracestate", "vendor=of-the-caller")).await;
    assert_eq!(response.status, 200);
    let spans = collector.wait_for_spans(2).await;
    let (requests, calls) = split(&spans);
    let ([request], [call]) = (requests.as_slice(), calls.as_slice()) else { panic!("{spans:#?}") };
    assert_eq!((request.trace_id(), request.parent_id()), (TRACE.to_owned(), CALLER.to_owned()));
    assert_eq!((call.trace_id(), call.parent_id()), (TRACE.to_owned(), request.id()));
    request.assert_attributes(&[("chatgate.command", "openim/sendmsg"), ("chatgate.attempts", "1")]);
    assert_eq!(chat.last_call().header("traceparent"), Some(&*format!("00-{TRACE}-{}-01", call.id())));
    let is_of_request = |line: &Value| line["message"] == "request" && line["command"] == "openim/sendmsg";
    let logged = async || log_events(&gateway.log()).into_iter().find(is_of_request);
    let line = eventually("the request is logged", logged).await;
    assert_eq!(line["trace_id"], TRACE);
    // A request without a trace is logged with the trace that chatgate starts.
    gateway.check("ann", &["bob"]).await.items();
    let spans = collector.wait_for_spans(4).await;
    let own =
        spans.iter().find(|span| span.is_request() && span.trace_id() != TRACE).expect("the other request").trace_id();
    let logged = async || gateway.log().contains(&format!("\"trace_id\":\"{own}\"")).then_some(());
    eventually("the trace id is logged", logged).await;
}

#[tokio::test]
async fn unsampled_traces_are_propagated_but_not_recorded() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let gateway = traced_setup(&chat, &collector).start().await;
    let unsampled = |request: TestRequest| request.header("traceparent", &traceparent("00"));
    gateway.send(unsampled(TestRequest::command("openim/sendmsg"))).await;
    gateway.send(unsampled(TestRequest::check("ann", &["bob"]))).await.items();
    // The trace continues upstream, with the same flag.
    for call in chat.calls() {
        let header = call.header("traceparent").expect("one").to_owned();
        assert!(header.starts_with(&format!("00-{TRACE}-")) && header.ends_with("-00"), "{header}");
        assert!(!header.contains(CALLER), "{header}");
    }
    gateway.check("ann", &["bob"]).await.items();
    collector.wait_for_spans(1).await;

    // With `sample = 0`, only traces that callers sampled are recorded.
    let gateway = traced_setup(&chat, &collector).set("trace", "sample = 0").start().await;
    gateway.check("ann", &["bob"]).await.items();
    // An invalid traceparent also starts a new trace.
    gateway.send(TestRequest::check("ann", &["bob"]).header("traceparent", &traceparent("0x"))).await.items();
    gateway.send(TestRequest::check("ann", &["bob"]).header("traceparent", &traceparent("01"))).await.items();
    let spans = collector.wait_for_spans(2).await;
    assert_eq!(spans[1].parent_id(), CALLER);
}

#[tokio::test]
async fn tracing_disabled_forwards_traceparent_and_adds_nothing() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).start().await;
    gateway.check("ann", &["bob"]).await.items();
    gateway.call("openim/sendmsg", "{}").await;
    assert!(chat.calls().iter().all(|call| call.header("traceparent").is_none()));
    gateway.send(TestRequest::command("openim/sendmsg").header("traceparent", &traceparent("00"))).await;
    assert_eq!(chat.last_call().header("traceparent"), Some(&*traceparent("00")));
    assert!(!gateway.admin_get("/metrics").await.text().contains("chatgate_trace_"));
}

#[tokio::test]
async fn each_attempt_has_its_own_call_span() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let gateway = traced_setup(&chat, &collector).set("upstream", "retry_budget = 1.0").start().await;
    chat.reply_once(Reply::reset());
    gateway.check("ann", &["bob"]).await.items();
    let spans = collector.wait_for_spans(3).await;
    let (requests, calls) = split(&spans);
    let ([request], [broken, good]) = (requests.as_slice(), calls.as_slice()) else { panic!("{spans:#?}") };
    assert!(broken.is_error() && !good.is_error() && !request.is_error());
    assert!(broken.parent_id() == request.id() && good.parent_id() == request.id());
    broken.assert_attributes(&[
        ("error.type", "upstream_unreachable"),
        ("chatgate.error_code", "upstream_unreachable"),
        ("http.response.status_code", ""),
        ("http.request.resend_count", ""),
    ]);
    good.assert_attributes(&[("error.type", ""), ("http.request.resend_count", "1")]);
    let header_of = |call: &Span| format!("00-{}-{}-01", call.trace_id(), call.id());
    let headers: Vec<_> = chat.calls().iter().map(|call| call.header("traceparent").expect("one").to_owned()).collect();
    assert_eq!(headers, [header_of(broken), header_of(good)]);

    // A rejected signature, then an error code that is relayed.
    chat.reply_once(Reply::json(error_response(70003, "expired")));
    gateway.call("openim/sendmsg", "{}").await;
    chat.reply_always(Reply::json(error_response(90001, "no such user")));
    gateway.call("openim/sendmsg", "{}").await;
    let spans = collector.wait_for_spans(8).await;
    let failed = collector.wait_for_request_span("failed").await;
    failed.assert_attributes(&[
        ("chatgate.error_code", "90001"),
        ("error.type", ""),
        ("http.response.status_code", "200"),
    ]);
    assert!(!failed.is_error(), "a relayed error code does not mark the span as an error");
    let codes: Vec<_> =
        spans[3..].iter().filter(|span| !span.is_request()).map(|span| span.attribute("error.type")).collect();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(codes, [text("70003"), None, text("90001")]);
    let renewed = spans[3..].iter().find(|span| span.attribute("chatgate.attempts").as_deref() == Some("2"));
    assert!(renewed.is_some(), "{spans:#?}");
}

#[tokio::test]
async fn failed_connection_is_recorded_as_a_call_span() {
    let collector = Collector::start().await;
    let closed_port = crate::support::wire::free_address();
    let setup = Setup::without_apps().app(crate::support::app::MAIN, &format!("endpoint = \"http://{closed_port}\""));
    let gateway = setup.set("trace", &collector.config_line()).set("upstream", "attempts = 1").start().await;
    gateway.call("openim/sendmsg", "{}").await.assert_error(502, "upstream_unreachable", 129_502);
    let spans = collector.wait_for_spans(2).await;
    let (requests, calls) = split(&spans);
    let ([request], [call]) = (requests.as_slice(), calls.as_slice()) else { panic!("{spans:#?}") };
    assert!(request.is_error() && call.is_error() && call.parent_id() == request.id());
    request.assert_attributes(&[("error.type", "upstream_unreachable"), ("http.response.status_code", "502")]);
    let port = closed_port.port().to_string();
    call.assert_attributes(&[
        ("error.type", "upstream_unreachable"),
        ("server.port", &port),
        ("server.address", "127.0.0.1"),
    ]);
}

#[tokio::test]
async fn rejection_spans_name_the_slug_without_caller_data() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let token = "a-token-of-the-feed-0123";
    let setup =
        traced_setup(&chat, &collector).caller("feed", token, "allow = ['follow/*', 'private_svc/private_command']");
    let gateway = setup.start().await;
    gateway.send(TestRequest::check("ann", &["bob"]).token(token).body("[")).await.assert_error(400, "bad_json", 60003);
    gateway.send(TestRequest::post("/v4/private-place").token(token)).await.assert_error(404, "not_found", 60009);
    let request = TestRequest::new("PRIVATE", "/v4/follow/follow_check?private=1").token(token);
    gateway.send(request).await.assert_error(405, "method_not_allowed", 60002);
    gateway.send(TestRequest::check("ann", &["bob"]).token("private")).await.assert_error(
        401,
        "unauthenticated",
        129_401,
    );
    gateway.send(TestRequest::command("private_svc/private_command").token(token)).await;
    let request = TestRequest::check("ann", &["bob"]).target("/apps/private/v4/follow/follow_check").token(token);
    gateway.send(request).await.assert_error(404, "unknown_app", 129_404);
    gateway.send(TestRequest::check("ann", &["bob"]).host("private.example").token(token)).await.assert_error(
        403,
        "forbidden",
        129_403,
    );
    let spans = collector.wait_for_spans(8).await;
    let find = |outcome: &str| spans.iter().find(|span| span.attribute("chatgate.outcome").as_deref() == Some(outcome));
    for (outcome, status, name, caller) in [
        ("bad_json", "400", "POST /v4/{service}/{command}", "feed"),
        ("not_found", "404", "POST", "feed"),
        ("method_not_allowed", "405", "HTTP /v4/{service}/{command}", "feed"),
        ("unauthenticated", "401", "POST /v4/{service}/{command}", ""),
        ("unknown_app", "404", "POST /apps/{app}/v4/{service}/{command}", "feed"),
        ("forbidden", "403", "POST /v4/{service}/{command}", ""),
    ] {
        let span = find(outcome).unwrap_or_else(|| panic!("{outcome}: {spans:#?}"));
        assert_eq!(span.name(), name);
        assert!(!span.is_error(), "a 4xx is not a server error");
        span.assert_attributes(&[
            ("error.type", outcome),
            ("http.response.status_code", status),
            ("chatgate.caller", caller),
        ]);
    }
    find("method_not_allowed").expect("seen").assert_attributes(&[("http.request.method", "_OTHER"), ("url.path", "")]);
    find("bad_json").expect("seen").assert_attributes(&[("url.path", "/v4/follow/follow_check")]);
    let relayed = spans.iter().find(|span| {
        span.is_request()
            && span.attribute("chatgate.command").as_deref() == Some("other")
            && span.attribute("chatgate.outcome").as_deref() == Some("ok")
    });
    relayed.expect("the span of an unlisted command").assert_attributes(&[("url.path", "")]);
    let bytes = collector.bytes();
    for word in ["private", "PRIVATE", "ann", "bob", token] {
        assert!(memchr::memmem::find(&bytes, word.as_bytes()).is_none(), "{word}");
    }
    // There are no other attributes.
    let known = "chatgate.app chatgate.attempts chatgate.caller chatgate.command chatgate.error_code chatgate.outcome \
                 chatgate.waited_us error.type http.request.method http.response.status_code http.route \
                 network.protocol.version server.address server.port url.path url.scheme url.template";
    let known: BTreeSet<&str> = known.split_whitespace().collect();
    let seen: BTreeSet<&str> = spans.iter().flat_map(Span::attribute_names).collect();
    assert_eq!(seen.difference(&known).collect::<Vec<_>>(), Vec::<&&str>::new());
}

#[tokio::test]
async fn abandoned_requests_leave_a_span() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let gateway = traced_setup(&chat, &collector).start().await;
    chat.reply_always(Reply::hang());
    // A read is canceled when its caller disconnects.
    let mut disconnecting = gateway.connect().await;
    disconnecting.send(TestRequest::command("openim/querystate").bytes()).await;
    chat.wait_for_calls(1).await;
    drop(disconnecting);
    let spans = collector.wait_for_spans(2).await;
    let (requests, calls) = split(&spans);
    let ([request], [call]) = (requests.as_slice(), calls.as_slice()) else { panic!("{spans:#?}") };
    request.assert_attributes(&[
        ("chatgate.outcome", "abandoned"),
        ("error.type", "abandoned"),
        ("http.response.status_code", ""),
        ("chatgate.app", "main"),
        ("chatgate.command", "openim/querystate"),
    ]);
    assert_eq!(call.parent_id(), request.id());
    call.assert_attributes(&[("error.type", "abandoned")]);
    // A write continues without its caller.
    let gate = Gate::closed();
    chat.reply_always(Reply::json(error_response(0, "")).after(&gate));
    let mut disconnecting = gateway.connect().await;
    disconnecting.send(TestRequest::command("openim/sendmsg").bytes()).await;
    chat.wait_for_calls(2).await;
    drop(disconnecting);
    let request = &collector.wait_for_spans(3).await[2];
    request.assert_attributes(&[("chatgate.outcome", "abandoned"), ("chatgate.command", "openim/sendmsg")]);
    gate.open();
    let call = &collector.wait_for_spans(4).await[3];
    assert_eq!(call.parent_id(), request.id());
    call.assert_attributes(&[("chatgate.error_code", "0"), ("error.type", "")]);
}

#[tokio::test]
async fn shared_lookup_is_first_requests_child_and_links_others() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let gateway = traced_setup(&chat, &collector).start().await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let mut conns = Vec::new();
    for _ in 0..3 {
        let mut conn = gateway.connect().await;
        conn.send(TestRequest::check("ann", &["bob"]).bytes()).await;
        chat.wait_for_calls(1).await;
        conns.push(conn);
    }
    let mut unrecorded = gateway.connect().await;
    unrecorded.send(TestRequest::check("ann", &["bob"]).header("traceparent", &traceparent("00")).bytes()).await;
    conns.push(unrecorded);
    gateway.wait_for_in_flight(4).await;
    gateway.round_trips().await;
    gate.open();
    for conn in &mut conns {
        conn.read_response().await.items();
    }
    // 20 round trips are requests too.
    let spans = collector.wait_for_spans(24).await;
    let ours: Vec<_> =
        spans.iter().filter(|span| span.attribute("chatgate.command").is_some_and(|name| name != "other")).collect();
    let (requests, calls): (Vec<&Span>, Vec<&Span>) = ours.into_iter().partition(|span| span.is_request());
    let [call] = calls.as_slice() else { panic!("{calls:#?}") };
    let first = requests.iter().find(|request| request.attribute("chatgate.pairs.fetched").as_deref() == Some("1"));
    assert_eq!(Some(call.parent_id()), first.map(|first| first.id()));
    let others: BTreeSet<String> = requests
        .iter()
        .filter(|request| request.attribute("chatgate.pairs.joined").as_deref() == Some("1"))
        .map(|request| request.id())
        .collect();
    assert_eq!(others.len(), 2);
    assert_eq!(call.links().into_iter().collect::<BTreeSet<_>>(), others);
}

#[tokio::test]
async fn spans_record_the_listener_scheme_and_http_version() {
    let (ca, chat, collector) = (Ca::new(), FakeChat::start().await, Collector::start().await);
    let pem = ca.issue("localhost", YEAR);
    let setup = traced_setup(&chat, &collector);
    let (certificate, key) = (setup.file("cert.pem", &pem.certificate), setup.file("key.pem", &pem.key));
    let socket = format!("unix:{}", setup.dir().join("gate.sock").display());
    let tls = format!("tls = {{ cert_file = '{}', key_file = '{}' }}", certificate.display(), key.display());
    let gateway = setup.set("server", &tls).listen(&["127.0.0.1:0", &socket]).start().await;
    let stream = ca.caller().alpn(&["h2"]).connect(gateway.address()).await.expect("a handshake");
    Http2::from_stream(stream).await.request(&TestRequest::check("ann", &["bob"])).await.items();
    Conn::open(&socket).await.expect("accepted").request(&TestRequest::check("ann", &["bob"])).await.items();
    let spans = collector.wait_for_spans(3).await;
    let (requests, _) = split(&spans);
    let [tls, unix] = requests.as_slice() else { panic!("{spans:#?}") };
    tls.assert_attributes(&[
        ("url.scheme", "https"),
        ("network.protocol.version", "2"),
        ("server.address", "127.0.0.1"),
    ]);
    let nowhere = [("server.address", ""), ("server.port", ""), ("network.transport", "unix")];
    unix.assert_attributes(&[("url.scheme", "http"), ("network.protocol.version", "1.1")]);
    unix.assert_attributes(&nowhere);
}

#[tokio::test]
async fn exporter_uses_tls_and_otel_environment_variables() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let collector = Collector::start_tls(ca.acceptor("localhost")).await;
    let setup = Setup::new(&chat);
    let trusted = setup.file("collector-ca.pem", &ca.pem());
    let gateway = setup
        .set("trace", &format!("otlp = 'https://localhost:{}/of-us/'", collector.port()))
        .set("trace", &format!("ca_file = '{}'", trusted.display()))
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=a%20b,service.name=not-this,broken")
        .env("OTEL_SERVICE_NAME", "gate-of-feed")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20of-the-collector,host=not-this")
        // An unsupported setting is ignored.
        .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        .start()
        .await;
    gateway.check("ann", &["bob"]).await.items();
    collector.wait_for_spans(2).await;
    assert_eq!(collector.resource("service.name").as_deref(), Some("gate-of-feed"));
    assert_eq!(collector.resource("deployment.environment.name").as_deref(), Some("a b"));
    assert!(gateway.log().contains("OTEL_RESOURCE_ATTRIBUTES"), "the malformed attribute is logged");
    assert!(gateway.log().contains("OTEL_EXPORTER_OTLP_HEADERS"), "the reserved header is logged");
    assert_eq!(collector.path(), "/of-us/v1/traces");
    assert_eq!(collector.header("host"), Some(format!("localhost:{}", collector.port())));
    assert_eq!(collector.header("authorization").as_deref(), Some("Bearer of-the-collector"));
    assert!(!gateway.log().contains("of-the-collector"), "{}", gateway.log());
}

#[tokio::test]
async fn changed_trace_settings_require_a_restart() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let setup = traced_setup(&chat, &collector);
    let changed = setup.text().replace("[trace]", "[trace]\nsample = 0.5");
    let gateway = setup.start().await;
    std::fs::write(gateway.dir().join("chatgate.toml"), changed).expect("own directory");
    let mut admin = Conn::open(gateway.admin()).await.expect("accepted");
    let response = admin.request(&TestRequest::post("/reload")).await.text();
    assert!(response.contains("trace: change requires a restart"), "{response}");
    let status = gateway.admin_get("/status").await.json();
    let trace = &status["config"]["trace"];
    assert_eq!((&trace["sample"], &trace["service"]), (&1.0.into(), &"chatgate".into()), "{status}");
    // Spans are still exported with the old settings.
    gateway.check("ann", &["bob"]).await.items();
    collector.wait_for_spans(2).await;
}

#[tokio::test]
async fn check_prints_the_trace_destination() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("trace", "otlp = 'http://collector.test:4318'").set("trace", "sample = 0.25");
    let file = setup.write();
    let check = ["check", "--config", &file.to_string_lossy()];
    let outcome = within(PATIENCE, "check", Process::run(&check, setup.dir(), &[])).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let line =
        "traces          to http://collector.test:4318/v1/traces as chatgate, 25% of the requests without a trace";
    assert!(outcome.stdout.lines().any(|found| found == line), "{}", outcome.stdout);
}
