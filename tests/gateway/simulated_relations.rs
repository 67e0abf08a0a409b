//! Checks of friends and blocklists in front of the Chat simulator, which applies Chat's rules to each write.
//!
//! One gateway caches pairs, another one relays every check. Whatever changes, both give the same response, byte for
//! byte. The ttl is 1 h, so a pair that is fetched again was invalidated.

use serde_json::{Value, json};

use crate::doctor::{HEX, Simulator};
use crate::support::client::TestRequest;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::hook;
use crate::support::response::Response;
use crate::support::setup::Setup;
use crate::support::wire::free_address;

const FRIEND: &str = "sns/friend_check";
const BLOCK: &str = "sns/black_list_check";
const NAMES: [&str; 4] = ["ann", "bob", "cyd", "dan"];
const CHECKS: [(&str, &str); 4] = [
    (FRIEND, "CheckResult_Type_Both"),
    (FRIEND, "CheckResult_Type_Single"),
    (BLOCK, "BlackCheckResult_Type_Both"),
    (BLOCK, "BlackCheckResult_Type_Single"),
];

/// A simulator, which reports changes to the caching gateway, and the two gateways in front of it.
struct World {
    simulator: Simulator,
    caching: Gateway,
    relaying: Gateway,
}

async fn check(gateway: &Gateway, (command, check_type): (&str, &str), from: &str, to: &[&str]) -> Response {
    let body = json!({"From_Account": from, "To_Account": to, "CheckType": check_type});
    gateway.call(command, body.to_string()).await
}

impl World {
    async fn start() -> World {
        let hooks = free_address();
        let url = format!("http://{hooks}/");
        let setup = || Setup::without_apps();
        let caching = setup().set("relation", r#"kinds = ["follow", "friend", "blacklist"]"#);
        let webhooks = ["--webhook", &url, "--webhook-token", HEX.webhook_token];
        let simulator = Simulator::start(&caching, &[&["--qps", "100000"][..], &webhooks].concat()).await;
        simulator.control("graph", &json!({"users": NAMES}).to_string()).await;
        let caching = hook::listen(caching.app(HEX, &simulator.app_lines()), &[HEX]);
        let caching = caching.set("webhook", &format!("listen = \"{hooks}\"")).start().await;
        hook::address(&caching).await;
        let relaying = setup().app(HEX, &simulator.app_lines()).start().await;
        World { simulator, caching, relaying }
    }

    /// Returns the first check whose responses differ, with both responses.
    async fn difference(&self) -> Option<String> {
        for check_kind in CHECKS {
            for from in NAMES {
                // With an account that does not exist, and a repeated one.
                let to = [&NAMES[..], &["zoe", NAMES[0]]].concat();
                let cached = check(&self.caching, check_kind, from, &to).await.text();
                let relayed = check(&self.relaying, check_kind, from, &to).await.text();
                if cached != relayed {
                    return Some(format!("{check_kind:?} from {from}:\n{cached}\ninstead of\n{relayed}"));
                }
            }
        }
        None
    }

    /// Asserts that both gateways give the same responses, and that the caching one then has all pairs.
    async fn assert_same(&self, after: &str) {
        assert_eq!(self.difference().await, None, "after {after}");
        for check_kind in CHECKS {
            let response = check(&self.caching, check_kind, "bob", &["ann", "cyd", "dan"]).await;
            assert_eq!(response.cache_status().outcome, "hit", "after {after}");
        }
    }
}

/// Writes of one test, in order: command and body. Some of them fail, or name accounts that do not exist.
fn writes() -> Vec<(&'static str, Value)> {
    let friend = |to: &str| json!({"To_Account": to, "AddSource": "AddSource_Type_Server"});
    let add = |from: &str, to: &[&str], kind: &str| {
        let items: Vec<Value> = to.iter().map(|to| friend(to)).collect();
        json!({"From_Account": from, "AddFriendItem": items, "AddType": kind})
    };
    let names = |from: &str, to: &[&str]| json!({"From_Account": from, "To_Account": to});
    let delete =
        |from: &str, to: &[&str], kind: &str| json!({"From_Account": from, "To_Account": to, "DeleteType": kind});
    vec![
        ("sns/friend_add", add("ann", &["bob", "zoe", "cyd"], "Add_Type_Both")),
        ("sns/friend_add", add("dan", &["ann"], "Add_Type_Single")),
        ("sns/friend_add", add("dan", &["ann"], "Add_Type_Both")),
        ("sns/friend_add", add("ann", &["dan"], "Add_Type_Both")),
        ("sns/friend_delete", delete("ann", &["bob", "zoe"], "Delete_Type_Single")),
        ("sns/friend_delete", delete("ann", &["bob"], "Delete_Type_Both")),
        ("sns/black_list_add", names("cyd", &["ann", "bob", "zoe"])),
        ("sns/friend_add", add("ann", &["cyd"], "Add_Type_Both")),
        ("sns/black_list_add", names("ann", &["cyd"])),
        ("sns/black_list_delete", names("cyd", &["ann"])),
        ("sns/black_list_delete", names("ann", &["cyd"])),
        ("sns/friend_add", add("ann", &["cyd"], "Add_Type_Both")),
    ]
}

#[tokio::test]
async fn writes_through_the_gateway_leave_no_stale_response() {
    let world = World::start().await;
    world.assert_same("the start").await;
    let silent = [
        (
            "sns/friend_import",
            json!({"From_Account": "bob", "AddFriendItem": [
            {"To_Account": "dan", "AddSource": "AddSource_Type_Server"}]}),
        ),
        ("sns/friend_delete_all", json!({"From_Account": "ann", "DeleteType": "Delete_Type_Both"})),
        ("im_open_login_svc/account_delete", json!({"DeleteItem": [{"UserID": "cyd"}]})),
        ("im_open_login_svc/account_import", json!({"UserID": "cyd"})),
    ];
    for (command, body) in writes().into_iter().chain(silent) {
        let response = world.caching.call(command, body.to_string()).await;
        assert_eq!(response.json()["ErrorCode"], 0, "{command} {body}");
        if command == "im_open_login_svc/account_delete" {
            // Until the account is imported again, its pairs are not cached.
            assert_eq!(world.difference().await, None, "after {command}");
        } else {
            world.assert_same(&format!("{command} {body}")).await;
        }
    }
}

#[tokio::test]
async fn webhooks_report_the_writes_of_another_gateway() {
    let world = World::start().await;
    for (command, body) in writes() {
        world.assert_same("the previous write").await;
        let response = world.relaying.call(command, body.to_string()).await;
        assert_eq!(response.json()["ErrorCode"], 0, "{command} {body}");
        eventually(&format!("the webhook of {command} {body}"), async || {
            world.difference().await.is_none().then_some(())
        })
        .await;
    }
    // An import has no webhook, so the cached pair answers until it is evicted or its ttl ends.
    let import = r#"{"From_Account":"bob","AddFriendItem":[{"To_Account":"dan","AddSource":"AddSource_Type_Server"}]}"#;
    world.assert_same("the last webhook").await;
    world.relaying.call("sns/friend_import", import).await.json();
    assert!(world.difference().await.is_some(), "the caching gateway cannot know of the import");
    let evict = TestRequest::post("/cache/evict").body(r#"{"From_Account":"bob","To_Account":["dan"]}"#);
    assert_eq!(world.caching.send_to_admin(evict).await.status, 200);
    world.assert_same("the eviction").await;
}

#[tokio::test]
async fn failed_items_are_not_kept() {
    let world = World::start().await;
    let friends = json!({"friends": [["ann", "bob"], ["ann", "dan"]]}).to_string();
    world.simulator.control("graph", &friends).await;
    let [both, single, ..] = CHECKS;
    let fault = |extra: &str| format!(r#"{{"item_error_code":30007,"to":"dan","command":"sns/friend_check",{extra}}}"#);
    let results = async |kind: (&str, &str)| {
        let response = check(&world.caching, kind, "ann", &["bob", "dan"]).await.json();
        let code = |at: usize| response["InfoItem"][at]["ResultCode"].as_i64().expect("a code");
        ([code(0), code(1)], response["Fail_Account"].clone())
    };
    world.simulator.control("faults", &fault(r#""next":1"#)).await;
    assert_eq!(results(single).await, ([0, 0], Value::Null), "asked again for one direction");
    world.simulator.control("faults", &fault(r#""share":1.0"#)).await;
    assert_eq!(results(single).await, ([0, 30007], json!(["dan"])));
    assert_eq!(results(both).await, ([0, 30007], json!(["dan"])));
    world.simulator.control("reset", "{}").await;
    world.simulator.control("graph", &json!({"users": NAMES}).to_string()).await;
    world.simulator.control("graph", &friends).await;
    assert_eq!(results(both).await, ([0, 0], Value::Null));
    world.assert_same("the failures").await;
}
