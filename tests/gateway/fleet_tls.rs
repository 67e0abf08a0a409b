//! Redis over TLS: replicas connect only if the certificate of Redis is trusted.

use std::time::Duration;

use crate::fleet::{await_connected, await_shared_pair, cause, has_cached, mode, replica};
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::redis::Redis;
use crate::support::setup::Setup;
use crate::support::tls::{Ca, Pem};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Returns the setup of a replica with this trusted CA and this client certificate.
fn setup(chat: &FakeChat, redis: &Redis, trusted_ca: &Ca, client_cert: Option<&Pem>) -> Setup {
    let setup = Setup::new(chat).set("cache", r#"ttl = "1h""#).set("cache", r#"write_settle = "0s""#);
    let port = redis.tls_address().port();
    let ca = setup.file("redis-ca.pem", &trusted_ca.pem());
    let setup = setup.set("fleet", &format!("redis = 'rediss://localhost:{port}'"));
    let setup = setup.set("fleet", &format!("ca_file = '{}'", ca.display()));
    let Some(client_cert) = client_cert else { return setup };
    let (cert, key) = (setup.file("own.pem", &client_cert.certificate), setup.file("own-key.pem", &client_cert.key));
    let setup = setup.set("fleet", &format!("cert_file = '{}'", cert.display()));
    setup.set("fleet", &format!("key_file = '{}'", key.display()))
}

/// Asserts that the replica is disconnected for this reason, logs it, and still serves requests.
async fn assert_serves_disconnected(gateway: &Gateway, chat: &FakeChat, reason: &str) {
    eventually("the reason", async || cause(gateway).await.contains(reason).then_some(())).await;
    assert_eq!(mode(gateway).await, "disconnected");
    assert!(gateway.log().lines().any(|line| line.contains("WARN") && line.contains(reason)), "{reason}");
    let before = chat.call_count();
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [2]);
    assert_eq!(gateway.send(TestRequest::command("openim/querystate")).await.status, 200);
    assert!(chat.call_count() > before, "no call reached Chat");
}

#[tokio::test]
async fn replicas_share_cached_pairs_over_tls() {
    let (chat, ca) = (FakeChat::start().await, Ca::new());
    chat.follow("ann", "bob");
    let redis = Redis::start_tls(&ca.issue("localhost", DAY), None).await;
    let one = replica(setup(&chat, &redis, &ca, None)).await;
    let two = replica(setup(&chat, &redis, &ca, None)).await;
    await_shared_pair(&one, &two, "ann", "bob").await;
    assert_eq!(two.check("ann", &["bob"]).await.follow_types(), [2]);
    one.call("follow/follow_delete", r#"{"From_Account":"ann","To_Account":["bob"]}"#).await;
    eventually("an invalidation is received", async || (!has_cached(&two, "ann", "bob").await).then_some(())).await;
    assert_eq!(two.check("ann", &["bob"]).await.follow_types(), [0]);
    let clients = redis.command("CLIENT LIST").await;
    let connections: Vec<&str> =
        clients.lines().filter(|line| line.contains("chatgate:evictions") || line.contains("resp=3")).collect();
    let port = format!("laddr=127.0.0.1:{}", redis.tls_address().port());
    assert!(connections.len() == 2 && connections.iter().all(|line| line.contains(&port)), "{clients}");
    assert_eq!(one.admin_get("/status").await.json()["config"]["fleet"]["tls"], true);
}

#[tokio::test]
async fn client_certificate_is_sent_and_reloaded_without_restart() {
    let (chat, ca, ours) = (FakeChat::start().await, Ca::new(), Ca::new());
    chat.follow("ann", "bob");
    let redis = Redis::start_tls(&ca.issue("localhost", DAY), Some(&ours.pem())).await;
    let client_cert = ours.issue("chatgate", DAY);
    let one = replica(setup(&chat, &redis, &ca, Some(&client_cert))).await;
    let two = replica(setup(&chat, &redis, &ca, Some(&client_cert))).await;
    await_shared_pair(&one, &two, "ann", "bob").await;
    // Redis rejects clients without a certificate or with one from another CA.
    for client_cert in [None, Some(Ca::new().issue("chatgate", DAY))] {
        let rejected = setup(&chat, &redis, &ca, client_cert.as_ref()).start().await;
        assert_serves_disconnected(&rejected, &chat, "fleet.cert_file").await;
        // A valid certificate is loaded without a restart.
        if client_cert.is_some() {
            let good = ours.issue("chatgate", DAY);
            for (name, text) in [("own.pem", &good.certificate), ("own-key.pem", &good.key)] {
                std::fs::write(rejected.dir().join(name), text).expect("a writable directory");
            }
            await_connected(&rejected).await;
        }
    }
}

#[tokio::test]
async fn untrusted_redis_certificate_keeps_replica_disconnected() {
    let (chat, ca) = (FakeChat::start().await, Ca::new());
    chat.follow("ann", "bob");
    let good = ca.issue("localhost", DAY);
    for (bad, reason) in [
        (ca.issue("elsewhere.example", DAY), "for another name"),
        (ca.issue_expired("localhost"), "has expired"),
        (Ca::new().issue("localhost", DAY), "in fleet.ca_file"),
    ] {
        let mut redis = Redis::start_tls(&bad, None).await;
        let gateway = setup(&chat, &redis, &ca, None).start().await;
        assert_serves_disconnected(&gateway, &chat, reason).await;
        redis.set_certificate(&good).await;
        await_connected(&gateway).await;
        assert_eq!(cause(&gateway).await, "");
        // The certificate turns bad while the gateway is connected.
        redis.set_certificate(&bad).await;
        assert_serves_disconnected(&gateway, &chat, reason).await;
    }
}

#[tokio::test]
async fn replaced_ca_file_is_trusted_without_a_restart() {
    let (chat, ca, wrong) = (FakeChat::start().await, Ca::new(), Ca::new());
    chat.follow("ann", "bob");
    let redis = Redis::start_tls(&ca.issue("localhost", DAY), None).await;
    let gateway = setup(&chat, &redis, &wrong, None).start().await;
    assert_serves_disconnected(&gateway, &chat, "in fleet.ca_file").await;
    std::fs::write(gateway.dir().join("redis-ca.pem"), ca.pem()).expect("a writable directory");
    await_connected(&gateway).await;
    assert!(!gateway.log().contains("requires a restart"), "{}", gateway.log());
}

#[tokio::test]
async fn redis_port_without_tls_keeps_replica_disconnected() {
    let (chat, ca) = (FakeChat::start().await, Ca::new());
    chat.follow("ann", "bob");
    let redis = Redis::start_tls(&ca.issue("localhost", DAY), None).await;
    let plain = format!("redis = 'rediss://localhost:{}'", redis.address().port());
    let gateway = setup(&chat, &redis, &ca, None).set("fleet", &plain).start().await;
    eventually("a reason", async || (!cause(&gateway).await.is_empty()).then_some(())).await;
    let reason = cause(&gateway).await;
    // Whether Redis answers a ClientHello that it cannot parse depends on the random bytes in it.
    let texts = ["does not speak TLS", "no response in time", "cannot connect"];
    assert!(texts.iter().any(|part| reason.contains(part)), "{reason}");
    assert_serves_disconnected(&gateway, &chat, &reason).await;
    assert_eq!(redis.command("GET chatgate:since").await, "$-1\r\n", "a command was sent in plain text");
}
