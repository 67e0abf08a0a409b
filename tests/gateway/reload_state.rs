//! What a reload keeps and what it changes: shares, tokens, authorities, apps, and work under way.

use std::time::Duration;

use crate::support::app::{MAIN, OTHER, TestApp};
use crate::support::chat::FakeChat;
use crate::support::client::{Ask, Conn};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::hook::{self, ADDED, event, signed};
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;
use crate::support::tls::Ca;
use crate::support::{eventually, now, turn};

const CALL: &str = "openim/querystate";
const TOKEN: &str = "a.token~of~marked~letters+that/nobody/may/see/over/any/reload/of/all==";

async fn reload(gateway: &Gateway, text: &str) {
    std::fs::write(gateway.dir().join("chatgate.toml"), text).expect("own directory");
    let answer = Conn::open(gateway.admin()).await.expect("accepted").ask(&Ask::post("/reload")).await;
    assert_eq!(answer.text(), "reloaded\n", "{answer:?}");
}

/// Puts another text in the place of a file at once, as rename(2) does.
fn replace(gateway: &Gateway, name: &str, text: &str) {
    std::fs::write(gateway.dir().join("fresh"), text).expect("own directory");
    std::fs::rename(gateway.dir().join("fresh"), gateway.dir().join(name)).expect("own directory");
}

#[tokio::test]
async fn a_callers_share_gets_no_fresh_burst() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).caller("feed", TOKEN, "allow = ['*']\nquota = '2/s'");
    let text = setup.text();
    let gateway = setup.start().await;
    let begun = now();
    for count in 0..6 {
        // The rate as it is, and another one.
        let rate = if count % 2 == 0 { "2/s" } else { "3/s" };
        reload(&gateway, &text.replace("quota = '2/s'", &format!("quota = '{rate}'"))).await;
        gateway.ask(Ask::command(CALL).token(TOKEN)).await.assert_relayed(200, OK);
    }
    // The first may go at once, each further one after a third of a second at the earliest.
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(1500), "{took:?}");
}

#[tokio::test]
async fn a_changed_webhook_token_is_the_one_that_signs() {
    let chat = FakeChat::start().await;
    let gateway = hook::listen(Setup::new(&chat), &[MAIN]).start().await;
    let hooks = hook::address(&gateway).await;
    let changed = TestApp { webhook_token: "webhook0token0of0the0main0app0marked0and0changed", ..MAIN };
    let body = event(ADDED, "ann", &["bob"]);
    hook::taken(&hooks, &signed(MAIN, ADDED, &body)).await;
    assert_eq!(hook::post(&hooks, &signed(changed, ADDED, &body)).await.status, 401);
    replace(&gateway, "main.webhook", changed.webhook_token);
    let taken = async || (hook::post(&hooks, &signed(changed, ADDED, &body)).await.status == 200).then_some(());
    eventually("the new token signs", taken).await;
    assert_eq!(hook::post(&hooks, &signed(MAIN, ADDED, &body)).await.status, 401, "and the old one does not");
    // What it forgets is forgotten all the same.
    gateway.check("ann", &["bob"]).await.checked();
    hook::taken(&hooks, &signed(changed, ADDED, &body)).await;
    let known = gateway.ask(Ask::check("ann", &["bob"]).header("Cache-Control", "only-if-cached")).await;
    assert_eq!(known.slug(), Some("not_cached"));
}

#[tokio::test]
async fn a_changed_ca_file_is_trusted_and_the_one_before_is_not() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let chat = FakeChat::start_tls(theirs.acceptor("localhost")).await;
    let setup = Setup::without_apps();
    let file = setup.file("ca.pem", &ours.pem());
    let setup = setup.app(MAIN, &format!("{}\nca_file = '{}'", chat.app_lines(), file.display()));
    let gateway = setup.start().await;
    gateway.call(CALL, "{}").await.assert_error(502, "upstream_unreachable", 129_502);
    assert_eq!(chat.count(), 0);
    replace(&gateway, "ca.pem", &theirs.pem());
    let served = async || (gateway.call(CALL, "{}").await.status == 200).then_some(());
    eventually("the new authority is trusted", served).await;
    // Back again: no call goes out over what was trusted meanwhile.
    replace(&gateway, "ca.pem", &ours.pem());
    let refused = async || (gateway.call(CALL, "{}").await.status == 502).then_some(());
    eventually("it is trusted no longer", refused).await;
    let calls = chat.count();
    gateway.call(CALL, "{}").await.assert_error(502, "upstream_unreachable", 129_502);
    assert_eq!(chat.count(), calls);
}

/// Asks by an app's name.
async fn by_name(gateway: &Gateway, name: &str) -> u16 {
    gateway.ask(Ask::command(CALL).header("Chatgate-App", name)).await.status
}

#[tokio::test]
async fn apps_come_go_and_change_their_names() {
    let chat = FakeChat::start().await;
    let lines = chat.app_lines();
    let one = Setup::without_apps().set("cache", r#"ttl = "1h""#).app(MAIN, &format!("{lines}\ndefault = true"));
    let alone = one.text();
    let both = one.app(OTHER, &lines);
    let text = both.text();
    let gateway = both.start().await;
    assert_eq!((by_name(&gateway, MAIN.name).await, by_name(&gateway, OTHER.name).await), (200, 200));
    gateway.check("ann", &["bob"]).await.checked();
    let calls = chat.count();
    // Gone: its name and its number are those of nobody.
    reload(&gateway, &alone).await;
    assert_eq!(by_name(&gateway, OTHER.name).await, 404);
    let numbered = Ask::post(&format!("/v4/{CALL}?sdkappid={}", OTHER.sdkappid));
    gateway.ask(numbered.clone()).await.assert_error(404, "unknown_app", 129_404);
    assert_eq!(gateway.check("ann", &["bob"]).await.cache().outcome, "hit", "the other keeps what it knows");
    assert_eq!(chat.count(), calls);
    // There again, and the first under another name, its number the same.
    reload(&gateway, &text.replace("name = \"main\"", "name = \"renamed\"")).await;
    assert_eq!((by_name(&gateway, OTHER.name).await, by_name(&gateway, "renamed").await), (200, 200));
    assert_eq!(by_name(&gateway, MAIN.name).await, 404);
    assert_eq!(gateway.ask(numbered).await.status, 200);
    assert_eq!(chat.last().parameter("sdkappid"), Some(OTHER.sdkappid.to_string()));
    gateway.check("ann", &["bob"]).await.checked();
    let metrics = gateway.admin_get("/metrics").await.text();
    assert!(metrics.contains("chatgate_cache_pairs{app=\"renamed\"}"), "{metrics}");
    assert!(!metrics.contains("chatgate_cache_pairs{app=\"main\"}"), "{metrics}");
}

#[tokio::test]
async fn a_write_under_way_is_answered_and_no_answer_comes_from_before_it() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("cache", r#"ttl = "1h""#);
    let text = setup.text();
    let gateway = setup.start().await;
    assert_eq!(gateway.check("ann", &["bob"]).await.types(), [0]);
    let gate = Gate::closed();
    let held = gate.clone();
    chat.script(move |call| (call.command() == "follow/follow_add").then(|| Reply::model().held(&held)));
    let mut writing = gateway.connect().await;
    let body = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#;
    let before = chat.count();
    writing.send(Ask::command("follow/follow_add").body(body).bytes()).await;
    chat.seen(before + 1).await;
    for max_to in [500, 700] {
        reload(&gateway, &format!("{text}[follow_check]\nmax_to = {max_to}\n")).await;
    }
    gate.open();
    assert_eq!(writing.answer().await.json()["ErrorCode"], 0);
    assert_eq!(gateway.check("ann", &["bob"]).await.types(), [2]);
    assert_eq!(gateway.check("bob", &["ann"]).await.types(), [1]);
    assert_eq!(chat.calls_of("follow/follow_add").len(), 1, "the write went out once");
    // And on the connection that was there before.
    writing.send(Ask::check("ann", &["bob"]).bytes()).await;
    assert_eq!(writing.answer().await.types(), [2]);
}
