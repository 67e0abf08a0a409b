use serde_json::json;

use super::*;
use crate::domain::chat::command::KNOWN_COMMANDS;

#[path = "sandbox_friends.rs"]
mod friends;
#[path = "sandbox_profiles.rs"]
mod profiles;

const NOW: u64 = 1_702_262_118;

/// A simulated app.
struct App(Graph);

impl App {
    fn new(users: &[&str]) -> Self {
        let mut graph = Graph::default();
        for user in users {
            graph.import(user).unwrap();
        }
        App(graph)
    }

    fn result(&mut self, name: &str, body: &Value) -> Result<CommandResult, ChatError> {
        self.result_with_fault(name, body, None)
    }

    fn result_with_fault(
        &mut self,
        name: &str,
        body: &Value,
        item_fault: Option<&ItemFault>,
    ) -> Result<CommandResult, ChatError> {
        let mut simulation = Simulation { graph: &mut self.0, now_secs: NOW, item_fault };
        simulation.execute(CommandName::parse(name).unwrap(), body.as_object().unwrap())
    }

    fn call(&mut self, name: &str, body: Value) -> Value {
        let result = self.result(name, &body).unwrap_or_else(|error| panic!("{name} {body}: {error:?}"));
        serde_json::from_slice(&result.body).unwrap()
    }

    fn code(&mut self, name: &str, body: Value) -> i64 {
        self.result(name, &body).err().map_or(0, |error| error.code)
    }
}

/// A simulated command may reject the empty body, with a code of Chat.
#[test]
fn every_command_of_the_table_is_answered() {
    let mut app = App::new(&[]);
    let (mut done, mut rejected) = (0, 0);
    for known in KNOWN_COMMANDS.iter() {
        match app.code(&known.name.to_string(), json!({})) {
            0 => done += 1,
            30001 | 40001 | 70402 => rejected += 1,
            code => panic!("{}: {code}", known.name),
        }
    }
    assert_eq!((done + rejected, rejected), (KNOWN_COMMANDS.len(), 23), "23 commands are simulated");
}

#[test]
fn follow_is_added_visible_from_both_sides_and_deleted() {
    let mut app = App::new(&["ann", "bob"]);
    let response = app.call("follow/follow_add", json!({"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}));
    let expected = json!({"ResultItem":[{"To_Account":"bob","ResultCode":0,"ResultInfo":""}],
        "ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""});
    assert_eq!(response, expected);
    let response =
        app.call("follow/follow_check", json!({"From_Account":"bob","To_Account":["ann","bob","zoe","ann"]}));
    let expected = json!([
        {"To_Account":"ann","ResultCode":0,"ResultInfo":"","FollowType":1},
        {"To_Account":"bob","ResultCode":0,"ResultInfo":"","FollowType":0},
        {"To_Account":"zoe","ResultCode":30003,"ResultInfo":"account does not exist","FollowType":0},
        {"To_Account":"ann","ResultCode":0,"ResultInfo":"","FollowType":1},
    ]);
    assert_eq!(response["ResultItem"], expected);
    app.call("follow/follow_delete", json!({"From_Account":"ann","To_Account":["bob"]}));
    let response = app.call("follow/follow_check", json!({"From_Account":"ann","To_Account":["bob"]}));
    assert_eq!(response["ResultItem"][0]["FollowType"], 0);
}

#[test]
fn events_name_only_the_successful_targets() {
    let mut app = App::new(&["ann", "bob", "cyd"]);
    let add = json!({"From_Account":"ann","FollowItem":[
        {"To_Account":"bob"},{"To_Account":"zoe"},{"To_Account":"ann"},{"To_Account":"cyd"}]});
    let result = app.result("follow/follow_add", &add).unwrap();
    assert_eq!(result.event, Some(Event::Followed { from: "ann".into(), to: vec!["bob".into(), "cyd".into()] }));
    let codes: Value = serde_json::from_slice(&result.body).unwrap();
    let codes: Vec<i64> =
        codes["ResultItem"].as_array().unwrap().iter().map(|item| item["ResultCode"].as_i64().unwrap()).collect();
    assert_eq!(codes, [0, 30003, 30001, 0]);
    let delete = json!({"From_Account":"ann","To_Account":["bob","zoe"]});
    let result = app.result("follow/follow_delete", &delete).unwrap();
    assert_eq!(result.event, Some(Event::Unfollowed { from: "ann".into(), to: vec!["bob".into()] }));
    let nothing = json!({"From_Account":"ann","FollowItem":[{"To_Account":"zoe"}]});
    assert_eq!(app.result("follow/follow_add", &nothing).unwrap().event, None);
}

#[test]
fn follow_commands_enforce_their_limits() {
    let mut app = App::new(&["ann"]);
    let many = |count: usize| (0..count).map(|number| format!("u{number}")).collect::<Vec<_>>();
    let items = |count| many(count).iter().map(|name| json!({"To_Account":name})).collect::<Vec<_>>();
    for (name, max) in [("follow_delete", 20), ("follow_check", 100), ("follow_get_info", 20)] {
        let name = format!("follow/{name}");
        assert_eq!(app.code(&name, json!({"From_Account":"ann","To_Account":many(max)})), 0, "{name}");
        assert_eq!(app.code(&name, json!({"From_Account":"ann","To_Account":many(max + 1)})), 30001, "{name}");
        assert_eq!(app.code(&name, json!({"From_Account":"ann","To_Account":[]})), 30001, "{name}");
    }
    assert_eq!(app.code("follow/follow_add", json!({"From_Account":"ann","FollowItem":items(20)})), 0);
    assert_eq!(app.code("follow/follow_add", json!({"From_Account":"ann","FollowItem":items(21)})), 30001);
    let get = |want: i64| json!({"From_Account":"ann","FollowType":2,"StartCursor":"","WantNum":want});
    for (want, code) in [(1000, 0), (1001, 30001), (0, 30001), (-1, 30001)] {
        assert_eq!(app.code("follow/follow_get", get(want)), code, "{want}");
    }
}

#[test]
fn invalid_fields_get_their_code_and_change_nothing() {
    let mut app = App::new(&["ann", "bob"]);
    for (code, body) in [
        (30001, json!({"To_Account":["bob"]})),
        (30001, json!({"From_Account":"ann"})),
        (30001, json!({"From_Account":"ann","To_Account":"bob"})),
        (30001, json!({"From_Account":"","To_Account":["bob"]})),
        (30001, json!({"From_Account":"ann","To_Account":["x".repeat(33)]})),
        (30001, json!({"From_Account":"ann","To_Account":["b\nc"]})),
        (60015, json!({"From_Account":1,"To_Account":["bob"]})),
        (60015, json!({"From_Account":"ann","To_Account":[1]})),
        (30003, json!({"From_Account":"zoe","To_Account":["bob"]})),
    ] {
        for name in ["follow/follow_check", "follow/follow_delete", "follow/follow_get_info"] {
            assert_eq!(app.code(name, body.clone()), code, "{name} {body}");
        }
    }
    for (code, items) in
        [(30001, json!(["bob"])), (30001, json!([{}])), (60015, json!([{"To_Account":"bob"},{"To_Account":2}]))]
    {
        assert_eq!(app.code("follow/follow_add", json!({"From_Account":"ann","FollowItem":items})), code);
    }
    assert!(app.0.follow_type("ann", "bob") == 0);
    for body in [
        json!({"From_Account":"ann","FollowType":0,"StartCursor":""}),
        json!({"From_Account":"ann","FollowType":4,"StartCursor":""}),
        json!({"From_Account":"ann","FollowType":1}),
        json!({"From_Account":"ann","FollowType":1,"StartCursor":0}),
    ] {
        assert_eq!(app.code("follow/follow_get", body.clone()), 30001, "{body}");
    }
}

#[test]
fn follow_get_pages_through_a_list() {
    let mut app = App::new(&["ann"]);
    let names: Vec<String> = (0..5).map(|number| format!("u{number}")).collect();
    for name in &names {
        app.call("im_open_login_svc/account_import", json!({"UserID":name,"Nick":format!("N {name}")}));
    }
    let items: Vec<Value> = names.iter().map(|name| json!({"To_Account":name})).collect();
    app.call("follow/follow_add", json!({"From_Account":"ann","FollowItem":items}));
    let (mut cursor, mut seen) = (String::new(), Vec::new());
    loop {
        let page = app
            .call("follow/follow_get", json!({"From_Account":"ann","FollowType":2,"StartCursor":cursor,"WantNum":2}));
        for item in page["FollowItem"].as_array().unwrap() {
            assert_eq!(item["FollowTime"], NOW);
            let name = item["To_Account"].as_str().unwrap().to_owned();
            assert_eq!(item["ProfileItem"], json!([{"Tag":"Tag_Profile_IM_Nick","Value":format!("N {name}")}]));
            seen.push(name);
        }
        cursor = page["NextCursor"].as_str().unwrap().to_owned();
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(seen, names);
    let info = app.call("follow/follow_get_info", json!({"From_Account":"u0","To_Account":["ann","u0","zoe"]}));
    let expected = json!([
        {"To_Account":"ann","ResultCode":0,"ResultInfo":"","FollowerCount":0,"FollowingCount":5,"MutualFollowingCount":0},
        {"To_Account":"u0","ResultCode":0,"ResultInfo":"","FollowerCount":1,"FollowingCount":0,"MutualFollowingCount":0},
        {"To_Account":"zoe","ResultCode":30003,"ResultInfo":"account does not exist","FollowerCount":0,"FollowingCount":0,"MutualFollowingCount":0},
    ]);
    assert_eq!(info["FollowInfo"], expected);
}

#[test]
fn accounts_are_imported_checked_and_deleted() {
    let mut app = App::new(&["ann"]);
    assert_eq!(app.code("im_open_login_svc/account_import", json!({"Identifier":"bob"})), 0);
    let response = app.call("im_open_login_svc/multiaccount_import", json!({"Accounts":["cyd","dan"]}));
    assert_eq!(response["FailAccounts"], json!([]));
    app.call("im_open_login_svc/multiaccount_import", json!({"AccountList":[{"UserID":"eve","Nick":"E"}]}));
    let check =
        |names: &[&str]| json!({"CheckItem": names.iter().map(|name| json!({"UserID":name})).collect::<Vec<_>>()});
    let response = app.call("im_open_login_svc/account_check", check(&["bob", "dan", "eve", "zoe"]));
    let states: Vec<&str> =
        response["ResultItem"].as_array().unwrap().iter().map(|item| item["AccountStatus"].as_str().unwrap()).collect();
    assert_eq!(states, ["Imported", "Imported", "Imported", "NotImported"]);
    app.call("follow/follow_add", json!({"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}));
    let response =
        app.call("im_open_login_svc/account_delete", json!({"DeleteItem":[{"UserID":"bob"},{"UserID":"zoe"}]}));
    let expected = json!([
        {"UserID":"bob","ResultCode":0,"ResultInfo":""},
        {"UserID":"zoe","ResultCode":70107,"ResultInfo":"account does not exist"},
    ]);
    assert_eq!(response["ResultItem"], expected);
    let response = app.call("follow/follow_check", json!({"From_Account":"ann","To_Account":["bob"]}));
    assert_eq!(response["ResultItem"][0]["ResultCode"], 30003);
    let many: Vec<Value> = (0..101).map(|number| json!({"UserID":format!("u{number}")})).collect();
    for (code, name, body) in [
        (70402, "account_import", json!({})),
        (60015, "account_import", json!({"UserID":5})),
        (70402, "account_import", json!({"UserID":"x","Nick":"n".repeat(501)})),
        (70402, "account_delete", json!({"DeleteItem":many})),
        (70402, "account_delete", json!({"DeleteItem":["bob"]})),
        (70402, "multiaccount_import", json!({})),
    ] {
        assert_eq!(app.code(&format!("im_open_login_svc/{name}"), body.clone()), code, "{name} {body}");
    }
}

#[test]
fn commands_that_are_not_simulated_answer_ok() {
    let mut app = App::new(&[]);
    let response = app.call("openim/sendmsg", json!({}));
    assert_eq!(response, json!({"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}));
}
