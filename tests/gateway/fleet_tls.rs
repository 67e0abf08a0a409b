//! A Redis that speaks TLS: it is shared through if it proves who it is, and as good as none if it does not.

use std::time::Duration;

use crate::fleet::{cause, knows, learns, mode, replica, together};
use crate::support::chat::FakeChat;
use crate::support::client::Ask;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::redis::Redis;
use crate::support::setup::Setup;
use crate::support::tls::{Ca, Pem};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A replica that trusts this authority and shows this certificate.
fn setup(chat: &FakeChat, redis: &Redis, trusts: &Ca, shows: Option<&Pem>) -> Setup {
    let setup = Setup::new(chat).set("cache", r#"ttl = "1h""#).set("cache", r#"write_settle = "0s""#);
    let port = redis.tls_address().port();
    let ca = setup.file("redis-ca.pem", &trusts.pem());
    let setup = setup.set("fleet", &format!("redis = 'rediss://localhost:{port}'"));
    let setup = setup.set("fleet", &format!("ca_file = '{}'", ca.display()));
    let Some(shows) = shows else { return setup };
    let (cert, key) = (setup.file("own.pem", &shows.certificate), setup.file("own-key.pem", &shows.key));
    let setup = setup.set("fleet", &format!("cert_file = '{}'", cert.display()));
    setup.set("fleet", &format!("key_file = '{}'", key.display()))
}

/// It is alone for this reason, which the log has too, and no request is the worse for it.
async fn serves_alone(gateway: &Gateway, chat: &FakeChat, because: &str) {
    eventually("the reason", async || cause(gateway).await.contains(because).then_some(())).await;
    assert_eq!(mode(gateway).await, "alone");
    assert!(gateway.log().lines().any(|line| line.contains("WARN") && line.contains(because)), "{because}");
    let before = chat.count();
    assert_eq!(gateway.check("ann", &["bob"]).await.types(), [2]);
    assert_eq!(gateway.ask(Ask::command("openim/querystate")).await.status, 200);
    assert!(chat.count() > before, "Chat was asked");
}

#[tokio::test]
async fn over_tls_replicas_share_as_they_do_without() {
    let (chat, ca) = (FakeChat::start().await, Ca::new());
    chat.follow("ann", "bob");
    let redis = Redis::start_tls(&ca.issue("localhost", DAY), None).await;
    let one = replica(setup(&chat, &redis, &ca, None)).await;
    let two = replica(setup(&chat, &redis, &ca, None)).await;
    learns(&one, &two, "ann", "bob").await;
    assert_eq!(two.check("ann", &["bob"]).await.types(), [2]);
    one.call("follow/follow_delete", r#"{"From_Account":"ann","To_Account":["bob"]}"#).await;
    eventually("an eviction is heard", async || (!knows(&two, "ann", "bob").await).then_some(())).await;
    assert_eq!(two.check("ann", &["bob"]).await.types(), [0]);
    let clients = redis.say("CLIENT LIST").await;
    let spoken: Vec<&str> =
        clients.lines().filter(|line| line.contains("chatgate:evictions") || line.contains("resp=3")).collect();
    let port = format!("laddr=127.0.0.1:{}", redis.tls_address().port());
    assert!(spoken.len() == 2 && spoken.iter().all(|line| line.contains(&port)), "{clients}");
    assert_eq!(one.admin_get("/status").await.json()["config"]["fleet"]["tls"], true);
}

#[tokio::test]
async fn a_redis_that_asks_for_certificates_is_shown_one() {
    let (chat, ca, ours) = (FakeChat::start().await, Ca::new(), Ca::new());
    chat.follow("ann", "bob");
    let redis = Redis::start_tls(&ca.issue("localhost", DAY), Some(&ours.pem())).await;
    let shown = ours.issue("chatgate", DAY);
    let one = replica(setup(&chat, &redis, &ca, Some(&shown))).await;
    let two = replica(setup(&chat, &redis, &ca, Some(&shown))).await;
    learns(&one, &two, "ann", "bob").await;
    // Who shows none, or one of another authority, is sent away.
    for shown in [None, Some(Ca::new().issue("chatgate", DAY))] {
        let stranger = setup(&chat, &redis, &ca, shown.as_ref()).start().await;
        serves_alone(&stranger, &chat, "fleet.cert_file").await;
        // A good one is taken up without a restart.
        if shown.is_some() {
            let good = ours.issue("chatgate", DAY);
            for (name, text) in [("own.pem", &good.certificate), ("own-key.pem", &good.key)] {
                std::fs::write(stranger.dir().join(name), text).expect("own directory");
            }
            together(&stranger).await;
        }
    }
}

#[tokio::test]
async fn a_redis_that_cannot_prove_who_it_is_is_as_good_as_none_until_it_can() {
    let (chat, ca) = (FakeChat::start().await, Ca::new());
    chat.follow("ann", "bob");
    let good = ca.issue("localhost", DAY);
    for (bad, because) in [
        (ca.issue("elsewhere.example", DAY), "for another name"),
        (ca.issue_expired("localhost"), "has expired"),
        (Ca::new().issue("localhost", DAY), "fleet.ca_file can name one"),
    ] {
        let mut redis = Redis::start_tls(&bad, None).await;
        let gateway = setup(&chat, &redis, &ca, None).start().await;
        serves_alone(&gateway, &chat, because).await;
        redis.show(&good).await;
        together(&gateway).await;
        assert_eq!(cause(&gateway).await, "");
        // It goes bad under a gateway that is there.
        redis.show(&bad).await;
        serves_alone(&gateway, &chat, because).await;
    }
}

#[tokio::test]
async fn an_authority_that_is_named_later_is_trusted_without_a_restart() {
    let (chat, ca, wrong) = (FakeChat::start().await, Ca::new(), Ca::new());
    chat.follow("ann", "bob");
    let redis = Redis::start_tls(&ca.issue("localhost", DAY), None).await;
    let gateway = setup(&chat, &redis, &wrong, None).start().await;
    serves_alone(&gateway, &chat, "fleet.ca_file can name one").await;
    std::fs::write(gateway.dir().join("redis-ca.pem"), ca.pem()).expect("own directory");
    together(&gateway).await;
    assert!(!gateway.log().contains("takes a restart"), "{}", gateway.log());
}

#[tokio::test]
async fn a_port_without_tls_and_one_with_it_are_told_apart() {
    let (chat, ca) = (FakeChat::start().await, Ca::new());
    chat.follow("ann", "bob");
    let redis = Redis::start_tls(&ca.issue("localhost", DAY), None).await;
    let plain = format!("redis = 'rediss://localhost:{}'", redis.address().port());
    let gateway = setup(&chat, &redis, &ca, None).set("fleet", &plain).start().await;
    eventually("a reason", async || (!cause(&gateway).await.is_empty()).then_some(())).await;
    let reason = cause(&gateway).await;
    // Whether Redis answers a greeting that it cannot read depends on the random bytes in it.
    let words = ["does not speak TLS", "does not answer in time", "cannot be reached"];
    assert!(words.iter().any(|part| reason.contains(part)), "{reason}");
    serves_alone(&gateway, &chat, &reason).await;
    assert_eq!(redis.say("GET chatgate:since").await, "$-1\r\n", "nothing was said in the clear");
}
