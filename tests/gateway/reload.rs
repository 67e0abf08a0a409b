//! Configuration reloads in a running gateway: all or nothing, without a failed request.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::support::app::{MAIN, TestApp};
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::Gateway;
use crate::support::graph::error_response;
use crate::support::reply::Reply;
use crate::support::response::Response;
use crate::support::setup::Setup;
use crate::support::{eventually, now, turn, unix_now, usersig};

const READ: &str = "follow/follow_get";
/// The keys that the main app's key is rotated to, in order.
const KEYS: [&str; 5] = [
    "new0key1marked0key0of0the0main0app0never0to0be0seen0anywhere0001",
    "new0key2marked0key0of0the0main0app0never0to0be0seen0anywhere0002",
    "new0key3marked0key0of0the0main0app0never0to0be0seen0anywhere0003",
    "new0key4marked0key0of0the0main0app0never0to0be0seen0anywhere0004",
    "new0key5marked0key0of0the0main0app0never0to0be0seen0anywhere0005",
];

async fn reload(gateway: &Gateway) -> Response {
    gateway.send_to_admin(TestRequest::post("/reload")).await
}

/// Counts the occurrences of this text in the log.
fn count_in_log(gateway: &Gateway, what: &str) -> usize {
    gateway.log().matches(what).count()
}

async fn wait_for_reloads(gateway: &Gateway, times: usize) {
    let done = async || (count_in_log(gateway, r#""message":"reloaded""#) >= times).then_some(());
    eventually("the reload is logged", done).await;
}

fn rewrite(gateway: &Gateway, text: &str) {
    std::fs::write(gateway.dir().join("chatgate.toml"), text).expect("own directory");
}

/// Callers that send requests continuously until [`Load::end`].
struct Load {
    done: Arc<AtomicBool>,
    callers: Vec<JoinHandle<usize>>,
}

impl Load {
    fn begin(gateway: &Gateway) -> Load {
        let done = Arc::new(AtomicBool::new(false));
        let caller = |number: usize| {
            let (address, done) = (gateway.address().to_owned(), Arc::clone(&done));
            async move {
                let mut conn = Conn::open(&address).await.expect("accepted");
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    let from = format!("caller{number}");
                    let response = match count % 3 {
                        0 => {
                            conn.request(&TestRequest::check(&from, &[format!("new{count}"), "known".to_owned()])).await
                        }
                        1 => conn.request(&TestRequest::check(&from, &["known"])).await,
                        _ => conn.request(&TestRequest::command(READ)).await,
                    };
                    assert_eq!((response.status, response.slug()), (200, None), "{response:?}");
                    assert_eq!(response.json()["ErrorCode"], 0, "{response:?}");
                    count += 1;
                }
                count
            }
        };
        let callers = (0..4).map(|number| tokio::spawn(caller(number))).collect();
        Load { done, callers }
    }

    /// Stops the callers and returns the number of requests. Panics if any of them failed.
    async fn end(self) -> usize {
        self.done.store(true, Ordering::Relaxed);
        let mut count = 0;
        for caller in self.callers {
            count += caller.await.expect("every request succeeds");
        }
        count
    }
}

#[tokio::test]
async fn twenty_reloads_under_load_fail_no_request() {
    let chat = FakeChat::start().await;
    chat.script(|call| (call.command() == READ).then(|| Reply::json(crate::support::graph::OK)));
    let setup = Setup::new(&chat).set("cache", r#"ttl = "1h""#);
    let texts = [r#"max_to = 500"#, r#"max_to = 700"#].map(|line| format!("{}[relation]\n{line}\n", setup.text()));
    let gateway = setup.start().await;
    let load = Load::begin(&gateway);
    for times in 1..=20 {
        rewrite(&gateway, &texts[times % 2]);
        if times % 2 == 0 {
            gateway.signal("HUP");
        } else {
            assert_eq!(reload(&gateway).await.text(), "reloaded\n");
        }
        wait_for_reloads(&gateway, times).await;
        let seen = chat.call_count();
        chat.wait_for_calls(seen + 3).await;
    }
    let count = load.end().await;
    assert!(count > 100, "{count}");
}

/// Waits until calls are signed with this key.
async fn signed_with(gateway: &Gateway, chat: &FakeChat, key: &'static str) {
    eventually("calls signed with the new key", async || {
        gateway.call(READ, "{}").await;
        usersig::verify(&chat.last_call().usersig(), TestApp { key, ..MAIN }, unix_now()).ok()
    })
    .await;
}

/// Replaces a file atomically.
pub(crate) fn replace_file(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join("fresh"), text).expect("own directory");
    std::fs::rename(dir.join("fresh"), dir.join(name)).expect("own directory");
}

/// Replaces a key as Kubernetes does: the file links into a directory that is itself a link, and that link changes.
fn swap_link(dir: &Path, name: &str, key: &str) {
    let folder = dir.join(name);
    std::fs::create_dir(&folder).expect("own directory");
    std::fs::write(folder.join("key"), key).expect("own directory");
    std::os::unix::fs::symlink(name, dir.join("..data_tmp")).expect("own directory");
    std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).expect("own directory");
}

#[tokio::test]
async fn key_changed_by_rename_or_symlink_signs_later_calls() {
    let chat = FakeChat::start().await;
    chat.script(|call| (call.command() == READ).then(|| Reply::json(crate::support::graph::OK)));
    let setup = Setup::new(&chat);
    let dir = setup.dir().to_owned();
    let gateway = setup.start().await;
    let load = Load::begin(&gateway);
    for (number, key) in KEYS.into_iter().enumerate() {
        chat.accept_key(key);
        if number < 2 {
            replace_file(&dir, "main.key", key);
        } else {
            swap_link(&dir, &format!("v{number}"), key);
            if number == 2 {
                std::os::unix::fs::symlink("..data/key", dir.join("link")).expect("own directory");
                std::fs::rename(dir.join("link"), dir.join("main.key")).expect("own directory");
            }
        }
        signed_with(&gateway, &chat, key).await;
    }
    let count = load.end().await;
    assert!(count > 100, "{count}");
    assert_eq!(count_in_log(&gateway, r#""message":"reloaded""#), 5);
}

#[tokio::test]
async fn twenty_reloads_with_five_new_keys_fail_no_request() {
    let chat = FakeChat::start().await;
    chat.script(|call| (call.command() == READ).then(|| Reply::json(crate::support::graph::OK)));
    let setup = Setup::new(&chat);
    let dir = setup.dir().to_owned();
    let gateway = setup.start().await;
    let load = Load::begin(&gateway);
    for (round, key) in KEYS.into_iter().enumerate() {
        chat.accept_key(key);
        replace_file(&dir, "main.key", key);
        for time in 0..4 {
            if time % 2 == 0 {
                let before = count_in_log(&gateway, r#""message":"reloaded""#);
                gateway.signal("HUP");
                wait_for_reloads(&gateway, before + 1).await;
            } else {
                assert_eq!(reload(&gateway).await.text(), "reloaded\n", "{round}");
            }
            let seen = chat.call_count();
            chat.wait_for_calls(seen + 3).await;
        }
        signed_with(&gateway, &chat, key).await;
    }
    let count = load.end().await;
    eprintln!(
        "{count} requests over {} reloads, none of which failed",
        count_in_log(&gateway, r#""message":"reloaded""#)
    );
    assert!(count >= 60 && count_in_log(&gateway, r#""message":"reloaded""#) >= 20, "{count}");
}

#[tokio::test]
async fn invalid_config_changes_nothing_and_is_logged() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let (text, dir) = (setup.text(), setup.dir().to_owned());
    let gateway = setup.start().await;
    rewrite(&gateway, &format!("{text}[relation]\nmax_to = 0\n[cache]\nttl = 'soon'\n"));
    let response = reload(&gateway).await;
    assert_eq!(response.status, 400, "{response:?}");
    assert!(response.text().contains("relation.max_to") && response.text().contains("cache.ttl"), "{response:?}");
    gateway.signal("HUP");
    let logged =
        async || (count_in_log(&gateway, "reload failed; keeping the current configuration") >= 4).then_some(());
    eventually("two warnings for each reload", logged).await;
    // The key file is missing: logged once, and the loaded key stays in use.
    rewrite(&gateway, &text);
    std::fs::rename(dir.join("main.key"), dir.join("away")).expect("own directory");
    let logged = async || (count_in_log(&gateway, "no such file") >= 1).then_some(());
    eventually("a warning", logged).await;
    gateway.check("ann", &["bob"]).await.items();
    assert_eq!(count_in_log(&gateway, r#""message":"reloaded""#), 0);
    std::fs::rename(dir.join("away"), dir.join("main.key")).expect("own directory");
    assert_eq!(reload(&gateway).await.text(), "reloaded\n");
}

#[tokio::test]
async fn restart_only_settings_are_named_and_not_applied() {
    let chat = FakeChat::start().await;
    let token = "a0token0that0is0long0enough0and0marked0for0the0search0of0secrets01";
    let setup = Setup::new(&chat).listen(&["0.0.0.0:0"]).caller("feed", token, "allow = ['*']");
    let gateway = setup.start().await;
    let other = Setup::new(&chat).set("cache", "max_pairs = 7");
    // On its own this configuration is valid: it listens on loopback. But the old listener stays until a restart.
    rewrite(&gateway, &other.text());
    let response = reload(&gateway).await;
    assert_eq!(response.status, 400, "{response:?}");
    assert!(response.text().contains("server.listen"), "{response:?}");
    let port = gateway.address().rsplit_once(':').expect("a port").1;
    let request = |request: TestRequest| async move {
        Conn::open(&format!("127.0.0.1:{port}")).await.expect("accepted").request(&request).await
    };
    assert_eq!(request(TestRequest::check("ann", &["bob"])).await.status, 401);
    let other = other.caller("feed", token, "allow = ['*']");
    rewrite(&gateway, &other.text());
    let text = reload(&gateway).await.text();
    assert!(
        text.contains("server.listen: change requires a restart") && text.contains("cache.max_pairs: change requires"),
        "{text}"
    );
    assert_eq!(request(TestRequest::check("ann", &["bob"]).token(token)).await.status, 200);
}

#[tokio::test]
async fn reload_clears_parking_and_keeps_the_cache() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("cache", r#"ttl = "1h""#).start().await;
    gateway.check("ann", &["bob"]).await.items();
    let rejection = error_response(70009, "verify usersig failed");
    chat.reply_always(Reply::json(rejection.clone()));
    for _ in 0..2 {
        gateway.call(READ, "{}").await.assert_relayed(200, &rejection);
    }
    gateway.call(READ, "{}").await.assert_error(503, "parked", 70009);
    chat.clear_script();
    gateway.call(READ, "{}").await.assert_error(503, "parked", 70009);
    assert_eq!(reload(&gateway).await.status, 200);
    gateway.check("ann", &["cyd"]).await.items();
    let calls = chat.call_count();
    assert_eq!(gateway.check("bob", &["ann"]).await.cache_status().outcome, "hit");
    assert_eq!(chat.call_count(), calls);
}

#[tokio::test]
async fn reload_grants_no_new_quota_burst() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("app.quota", r#"per_command = "2/s""#);
    let text = setup.text();
    let gateway = setup.start().await;
    let start = now();
    for count in 0..6 {
        // Alternately the same rate and a different one.
        let rate = if count % 2 == 0 { "2/s" } else { "3/s" };
        rewrite(&gateway, &text.replace("\"2/s\"", &format!("\"{rate}\"")));
        assert_eq!(reload(&gateway).await.status, 200);
        gateway.check("ann", &[&format!("user{count}")]).await.items();
    }
    // The first call may go at once, each further one after at least 333 ms.
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1500), "{took:?}");
    assert_eq!(chat.call_count(), 6);
}
