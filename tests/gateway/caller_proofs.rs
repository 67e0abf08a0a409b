//! Callers with several tokens, with client certificates, and with Unix users; and requests that show several proofs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::callers::own_uid;
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::h2::Http2;
use crate::support::process::Process;
use crate::support::setup::Setup;
use crate::support::tls::{Ca, Pem};
use crate::support::{eventually, secrets};

const CALL: &str = "openim/querystate";
const FEED: &str = "feed0token~of~marked~letters+that/no/log/may/show/in/any/place/at/all==";
const CHAT: &str = "chat0token~of~marked~letters+that/no/log/may/show/in/any/place/at/all==";
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const ROTATIONS: usize = 20;

fn query() -> TestRequest {
    TestRequest::command(CALL)
}

async fn reload(gateway: &Gateway) {
    assert_eq!(gateway.send_to_admin(TestRequest::post("/reload")).await.text(), "reloaded\n");
}

#[tokio::test]
async fn twenty_token_rotations_under_load_reject_no_request() {
    let chat = FakeChat::start().await;
    let token =
        |number: usize| format!("token{number:02}~of~marked~letters+that/no/log/may/show/in/any/place/at/all==");
    let setup = Setup::new(&chat).set("cache", r#"ttl = "1h""#);
    for (number, name) in ["one", "two"].into_iter().enumerate() {
        secrets::add(&token(number));
        setup.file(name, &token(number));
    }
    let dir = setup.dir().to_owned();
    let gateway = setup.raw("[[caller]]\nname = 'feed'\ntoken_file = ['one', 'two']").start().await;
    let (current, done) = (Arc::new(Mutex::new(token(1))), Arc::new(AtomicBool::new(false)));
    let counts: Vec<Arc<AtomicUsize>> = (0..3).map(|_| Arc::default()).collect();
    let load = |count: &Arc<AtomicUsize>| {
        let (address, current, done) = (gateway.address().to_owned(), Arc::clone(&current), Arc::clone(&done));
        let count = Arc::clone(count);
        tokio::spawn(async move {
            let mut conn = Conn::open(&address).await.expect("accepted");
            while !done.load(Ordering::Relaxed) {
                let token = current.lock().clone();
                conn.request(&TestRequest::check("ann", &["bob"]).token(&token)).await.items();
                count.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let tasks: Vec<_> = counts.iter().map(load).collect();
    let all_sent_more = async || {
        let before: Vec<usize> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        eventually("two more requests of each client", async || {
            let now = counts.iter().map(|count| count.load(Ordering::Relaxed));
            now.zip(&before).all(|(now, before)| now >= before + 2).then_some(())
        })
        .await;
    };
    for round in 0..ROTATIONS {
        // The file that no client uses gets the next token; then the clients change over.
        let next = token(round + 2);
        secrets::add(&next);
        crate::reload::replace_file(&dir, ["one", "two"][round % 2], &next);
        reload(&gateway).await;
        *current.lock() = next;
        all_sent_more().await;
        let replaced = gateway.send(TestRequest::check("ann", &["bob"]).token(&token(round))).await;
        replaced.assert_error(401, "unauthenticated", 129_401);
    }
    done.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("no request is rejected");
    }
    assert!(counts.iter().map(|count| count.load(Ordering::Relaxed)).sum::<usize>() >= 6 * ROTATIONS);
    assert_eq!(chat.call_count(), 1);
}

/// A gateway with TLS, whose clients need a certificate of `clients`.
fn with_client_ca(setup: Setup, server: &Pem, clients: &Ca) -> Setup {
    setup.file("cert.pem", &server.certificate);
    setup.file("key.pem", &server.key);
    setup.file("clients.pem", &clients.pem());
    let files = "cert_file = 'cert.pem', key_file = 'key.pem', client_ca_file = 'clients.pem'";
    setup.set("server", &format!("tls = {{ {files} }}"))
}

#[tokio::test]
async fn client_certificate_names_its_caller() {
    let (ca, clients, chat) = (Ca::new(), Ca::new(), FakeChat::start().await);
    let setup = with_client_ca(Setup::new(&chat), &ca.issue("localhost", YEAR), &clients)
        .raw("[[caller]]\nname = 'feed'\ncertificates = ['spiffe://prod/ns/feed', 'feed.prod']\nallow = ['openim/*']")
        .caller("chat", CHAT, "certificates = ['chat.prod']\nallow = ['openim/*', 'follow/*']")
        .set("log", r#"requests = "all""#);
    let (text, dir) = (setup.text(), setup.dir().to_owned());
    let gateway = setup.start().await;
    let request = async |names: &[&str], request: TestRequest| {
        let pem = clients.issue_client(names);
        let stream = ca.caller().client_certificate(&pem).connect(gateway.address()).await.expect("a handshake");
        Conn::from_stream(stream).request(&request).await
    };
    for names in [&["spiffe://prod/ns/feed"][..], &["FEED.prod"], &["other.prod", "feed.prod", "spiffe://x/y"]] {
        request(names, query()).await.assert_relayed(200, OK);
        let add = TestRequest::command("follow/follow_add");
        request(names, add).await.assert_error(403, "forbidden", 129_403);
    }
    for names in [
        &[][..],
        &["other.prod"],
        &["spiffe://prod/ns/fee"],
        &["spiffe://prod/ns/feed/sa"],
        &["spiffe://PROD/ns/feed"],
        &["*.prod"],
        // Names of two callers.
        &["feed.prod", "chat.prod"],
    ] {
        request(names, query()).await.assert_error(401, "unauthenticated", 129_401);
    }
    // A certificate of no caller neither helps nor harms. One of another caller contradicts the token.
    request(&["other.prod"], query().token(CHAT)).await.assert_relayed(200, OK);
    request(&["chat.prod"], query().token(CHAT)).await.assert_relayed(200, OK);
    request(&["feed.prod"], query().token(CHAT)).await.assert_error(401, "unauthenticated", 129_401);
    request(&["feed.prod"], query().token(&CHAT[1..])).await.assert_error(401, "unauthenticated", 129_401);
    let many: Vec<String> = (0..64).map(|number| format!("n{number}.prod")).chain(["feed.prod".into()]).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    request(&many, query()).await.assert_error(401, "unauthenticated", 129_401);
    request(&many[1..], query()).await.assert_relayed(200, OK);

    // Over HTTP/2, TLS 1.2, and a resumed session.
    let pem = clients.issue_client(&["feed.prod"]);
    let stream = ca.caller().client_certificate(&pem).alpn(&["h2"]).connect(gateway.address()).await.expect("TLS");
    Http2::from_stream(stream).await.request(&query()).await.assert_relayed(200, OK);
    let stream = ca.caller().client_certificate(&pem).tls12().connect(gateway.address()).await.expect("TLS 1.2");
    Conn::from_stream(stream).request(&query()).await.assert_relayed(200, OK);
    let resuming = ca.caller().client_certificate(&pem).connector();
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let stream = resuming.connect(gateway.address()).await.expect("a handshake");
        kinds.push(stream.get_ref().1.handshake_kind());
        Conn::from_stream(stream).request(&query()).await.assert_relayed(200, OK);
    }
    assert_ne!(kinds[0], kinds[1], "the second session was not resumed");

    // A reload applies to open connections.
    let mut kept = Conn::from_stream(resuming.connect(gateway.address()).await.expect("a handshake"));
    kept.request(&query()).await.assert_relayed(200, OK);
    std::fs::write(dir.join("chatgate.toml"), text.replace("'feed.prod'", "'feed.test'")).expect("own directory");
    reload(&gateway).await;
    kept.request(&query()).await.assert_error(401, "unauthenticated", 129_401);
    eventually("a log line of the caller", async || gateway.log().contains(r#""caller":"feed""#).then_some(())).await;
}

#[tokio::test]
async fn certificates_without_a_client_ca_exit_78() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let setup = Setup::new(&chat);
    let pem = ca.issue("localhost", YEAR);
    setup.file("cert.pem", &pem.certificate);
    setup.file("key.pem", &pem.key);
    let setup = setup.set("server", "tls = { cert_file = 'cert.pem', key_file = 'key.pem' }");
    let setup = setup.raw("[[caller]]\nname = 'feed'\ncertificates = ['feed.prod']");
    let file = setup.write();
    for command in ["check", "serve"] {
        let outcome = Process::run(&[command, "--config", &file.to_string_lossy()], setup.dir(), &[]).await;
        assert_eq!(outcome.code, 78, "{outcome:?}");
        assert!(outcome.stderr.contains("caller[0].certificates: no client shows a certificate"), "{}", outcome.stderr);
    }
}

#[tokio::test]
async fn unix_user_names_its_caller() {
    let chat = FakeChat::start().await;
    let uid = own_uid();
    for (users, is_known) in [(format!("[{uid}, {}]", uid + 1), true), (format!("[{}]", uid + 1), false)] {
        let setup = Setup::new(&chat);
        let data = format!("unix:{}", setup.dir().join("data.sock").display());
        let gateway = setup
            .listen(&[&data, "127.0.0.1:0"])
            .caller("feed", FEED, &format!("unix_uids = {users}\nallow = ['openim/*']"))
            .caller("chat", CHAT, "allow = ['openim/*']")
            .start()
            .await;
        let before = chat.call_count();
        let response = gateway.send(query()).await;
        match is_known {
            true => response.assert_relayed(200, OK),
            false => response.assert_error(401, "unauthenticated", 129_401),
        }
        gateway.send(query().token(FEED)).await.assert_relayed(200, OK);
        let response = gateway.send(query().token(CHAT)).await;
        match is_known {
            true => response.assert_error(401, "unauthenticated", 129_401),
            false => response.assert_relayed(200, OK),
        }
        gateway.send(query().token(&FEED[1..])).await.assert_error(401, "unauthenticated", 129_401);
        // Over TCP the user is unknown.
        let mut conn = Conn::open(&gateway.addresses()[1]).await.expect("accepted");
        conn.request(&query()).await.assert_error(401, "unauthenticated", 129_401);
        conn.request(&query().token(CHAT)).await.assert_relayed(200, OK);
        assert_eq!(chat.call_count() - before, 3);
    }
}

#[tokio::test]
async fn proofs_of_callers_are_shown_without_secrets() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let data = format!("unix:{}", setup.dir().join("data.sock").display());
    secrets::add(FEED);
    secrets::add(CHAT);
    setup.file("one", FEED);
    setup.file("two", CHAT);
    let setup = setup
        .listen(&[&data])
        .raw("[[caller]]\nname = 'feed'\ntoken_file = ['one', 'two']\nusersig_key_file = 'one'\nunix_uids = [7]");
    let file = setup.write();
    let outcome = Process::run(&["check", "--config", &file.to_string_lossy()], setup.dir(), &[]).await;
    let known_by = "known by    2 tokens, a usersig for identifier \"feed\", Unix user 7\n";
    assert!(outcome.code == 0 && outcome.stdout.contains(known_by), "{outcome:?}");
    let gateway = setup.start().await;
    let status = gateway.admin_get("/status").await.json();
    let caller = &status["config"]["caller"][0];
    assert_eq!((&caller["name"], &caller["tokens"], &caller["signs"]), (&"feed".into(), &2.into(), &true.into()));
    assert_eq!(caller["unix_uids"], serde_json::json!([7]));
}
