//! Friends and blocklists: shapes, limits, codes, and events.

use serde_json::{Value, json};

use super::super::*;
use super::{App, NOW};

fn add(from: &str, to: &[&str], kind: &str) -> Value {
    let items: Vec<Value> = to.iter().map(|to| json!({"To_Account":to,"AddSource":"AddSource_Type_Server"})).collect();
    json!({"From_Account":from,"AddFriendItem":items,"AddType":kind})
}

fn targets(from: &str, to: &[&str]) -> Value {
    json!({"From_Account":from,"To_Account":to})
}

fn check(from: &str, to: &[&str], kind: &str) -> Value {
    json!({"From_Account":from,"To_Account":to,"CheckType":kind})
}

fn pair(from: &str, to: &str) -> EventPair {
    EventPair { from: from.to_owned(), to: to.to_owned() }
}

fn many(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("u{number}")).collect()
}

impl App {
    /// Returns the ResultCode of each item, and the event.
    fn changed(&mut self, name: &str, body: &Value) -> (Vec<i64>, Option<Event>) {
        let result = self.result(name, body).unwrap_or_else(|error| panic!("{name} {body}: {error:?}"));
        let response: Value = serde_json::from_slice(&result.body).unwrap();
        let items = response["ResultItem"].as_array().unwrap();
        let failed: Vec<&Value> =
            items.iter().filter(|item| item["ResultCode"] != 0).map(|item| &item["To_Account"]).collect();
        let expected = if failed.is_empty() { Value::Null } else { json!(failed) };
        assert_eq!(response["Fail_Account"], expected, "{response}");
        (items.iter().map(|item| item["ResultCode"].as_i64().unwrap()).collect(), result.event)
    }

    fn relations(&mut self, name: &str, body: Value, list: &str) -> Vec<String> {
        let response = self.call(name, body);
        let items = response[list].as_array().unwrap();
        items.iter().map(|item| item["Relation"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn friend_check_answers_for_one_list_or_both() {
    let mut app = App::new(&["ann", "bob", "cyd", "dan", "eve"]);
    app.call("sns/friend_add", add("ann", &["bob"], "Add_Type_Both"));
    app.call("sns/friend_add", add("ann", &["cyd"], "Add_Type_Single"));
    app.call("sns/friend_add", add("dan", &["ann"], "Add_Type_Single"));
    let to = ["bob", "cyd", "dan", "eve", "ann", "bob"];
    let mut relations = |kind: &str| {
        let relations = app.relations("sns/friend_check", check("ann", &to, kind), "InfoItem");
        relations.iter().map(|text| text.strip_prefix("CheckResult_Type_").unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        relations("CheckResult_Type_Both"),
        ["BothWay", "AWithB", "BWithA", "NoRelation", "NoRelation", "BothWay"]
    );
    assert_eq!(
        relations("CheckResult_Type_Single"),
        ["AWithB", "AWithB", "NoRelation", "NoRelation", "NoRelation", "AWithB"]
    );
    let response = app.call("sns/friend_check", check("ann", &["zoe", "bob"], "CheckResult_Type_Both"));
    let expected = json!({"InfoItem":[
        {"To_Account":"zoe","Relation":"CheckResult_Type_NoRelation","ResultCode":30003,"ResultInfo":"account does not exist"},
        {"To_Account":"bob","Relation":"CheckResult_Type_BothWay","ResultCode":0,"ResultInfo":""},
    ],"Fail_Account":["zoe"],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""});
    assert_eq!(response, expected);
}

#[test]
fn black_list_check_answers_for_one_list_or_both() {
    let mut app = App::new(&["ann", "bob", "cyd", "dan", "eve"]);
    for (from, to) in [("ann", "bob"), ("bob", "ann"), ("ann", "cyd"), ("dan", "ann")] {
        app.call("sns/black_list_add", targets(from, &[to]));
    }
    let to = ["bob", "cyd", "dan", "eve", "zoe"];
    let mut relations = |kind: &str| {
        let relations = app.relations("sns/black_list_check", check("ann", &to, kind), "BlackListCheckItem");
        relations.iter().map(|text| text.strip_prefix("BlackCheckResult_Type_").unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(relations("BlackCheckResult_Type_Both"), ["BothWay", "AWithB", "BWithA", "NO", "NO"]);
    assert_eq!(relations("BlackCheckResult_Type_Single"), ["AWithB", "AWithB", "NO", "NO", "NO"]);
    let response = app.call("sns/black_list_check", check("ann", &["bob"], "BlackCheckResult_Type_Both"));
    let expected = json!({"BlackListCheckItem":[
        {"To_Account":"bob","Relation":"BlackCheckResult_Type_BothWay","ResultCode":0,"ResultInfo":""},
    ],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""});
    assert_eq!(response, expected);
}

#[test]
fn friends_are_added_and_deleted_with_codes_and_events() {
    let mut app = App::new(&["ann", "bob", "cyd"]);
    let mut body = add("ann", &["bob", "zoe", "ann", "bob"], "Add_Type_Both");
    body["ForceAddFlags"] = json!(1);
    let pairs = vec![pair("ann", "bob"), pair("bob", "ann")];
    let event = Event::FriendsAdded { initiator: "ann".into(), pairs: pairs.clone(), forced: true };
    assert_eq!(app.changed("sns/friend_add", &body), (vec![0, 30003, 30001, 30001], Some(event)));
    let default = json!({"From_Account":"ann","AddFriendItem":[{"To_Account":"cyd","AddSource":"AddSource_Type_Web"}]});
    let (codes, event) = app.changed("sns/friend_add", &default);
    let added = vec![pair("ann", "cyd"), pair("cyd", "ann")];
    assert_eq!(
        (codes, event),
        (vec![0], Some(Event::FriendsAdded { initiator: "ann".into(), pairs: added, forced: false }))
    );
    assert_eq!(app.changed("sns/friend_add", &default), (vec![30001], None));

    let mut delete = targets("ann", &["bob", "zoe"]);
    let event = Event::FriendsDeleted { pairs: vec![pair("ann", "bob")] };
    assert_eq!(app.changed("sns/friend_delete", &delete), (vec![0, 30003], Some(event)), "one side by default");
    assert_eq!(app.changed("sns/friend_delete", &delete), (vec![31704, 30003], None));
    delete["DeleteType"] = json!("Delete_Type_Both");
    let event = Event::FriendsDeleted { pairs: vec![pair("bob", "ann")] };
    assert_eq!(app.changed("sns/friend_delete", &delete), (vec![0, 30003], Some(event)));
    let event = Event::FriendsDeleted { pairs: vec![pair("cyd", "ann"), pair("ann", "cyd")] };
    let delete = json!({"From_Account":"cyd","To_Account":["ann"],"DeleteType":"Delete_Type_Both"});
    assert_eq!(app.changed("sns/friend_delete", &delete), (vec![0], Some(event)));
}

#[test]
fn import_and_delete_all_change_one_side_without_events() {
    let mut app = App::new(&["ann", "bob", "cyd"]);
    let import = |from: &str, to: &[&str]| add(from, to, "ignored");
    assert_eq!(app.changed("sns/friend_import", &import("ann", &["bob", "cyd", "bob"])), (vec![0, 0, 30001], None));
    assert_eq!(app.changed("sns/friend_import", &import("bob", &["ann"])), (vec![0], None));
    assert_eq!(app.0.friend_type("ann", "bob"), 3);
    let result = app.result("sns/friend_delete_all", &json!({"From_Account":"ann"})).unwrap();
    assert_eq!((result.event, app.0.friend_type("ann", "bob"), app.0.friend_type("ann", "cyd")), (None, 1, 0));
    app.changed("sns/friend_import", &import("ann", &["bob"]));
    let all = json!({"From_Account":"ann","DeleteType":"Delete_Type_Both"});
    assert_eq!(app.result("sns/friend_delete_all", &all).unwrap().event, None);
    assert_eq!(app.0.friend_type("ann", "bob"), 0);
}

#[test]
fn block_ends_friendship_and_prevents_requests() {
    let mut app = App::new(&["ann", "bob", "cyd"]);
    app.call("sns/friend_add", add("ann", &["bob"], "Add_Type_Both"));
    let event = Event::Blocked { pairs: vec![pair("bob", "ann"), pair("bob", "cyd")] };
    let block = targets("bob", &["ann", "zoe", "cyd", "bob"]);
    assert_eq!(app.changed("sns/black_list_add", &block), (vec![0, 30003, 0, 30001], Some(event)));
    assert_eq!(app.0.friend_type("ann", "bob"), 0);
    assert_eq!(app.changed("sns/black_list_add", &targets("bob", &["ann"])), (vec![30001], None));
    let mut body = add("ann", &["bob"], "Add_Type_Single");
    body["ForceAddFlags"] = json!(1);
    assert_eq!(app.changed("sns/friend_add", &body), (vec![30525], None));
    assert_eq!(app.changed("sns/friend_add", &add("bob", &["ann"], "Add_Type_Both")), (vec![30515], None));
    let unblock = targets("bob", &["ann"]);
    let event = Event::Unblocked { pairs: vec![pair("bob", "ann")] };
    assert_eq!(app.changed("sns/black_list_delete", &unblock), (vec![0], Some(event)));
    assert_eq!(app.changed("sns/black_list_delete", &unblock), (vec![30001], None));
    assert_eq!(app.0.friend_type("ann", "bob"), 0, "the friendship does not come back");
    assert_eq!(app.changed("sns/friend_add", &body).0, [0]);
}

#[test]
fn deleted_accounts_leave_all_lists() {
    let mut app = App::new(&["ann", "bob", "cyd"]);
    app.call("sns/friend_add", add("ann", &["bob"], "Add_Type_Both"));
    app.call("sns/black_list_add", targets("cyd", &["ann"]));
    app.call("im_open_login_svc/account_delete", json!({"DeleteItem":[{"UserID":"ann"}]}));
    app.call("im_open_login_svc/account_import", json!({"UserID":"ann"}));
    assert_eq!((app.0.friend_type("ann", "bob"), app.0.block_type("ann", "cyd")), (0, 0));
}

#[test]
fn sns_commands_enforce_their_limits() {
    let mut app = App::new(&["ann"]);
    let items = |count| {
        let item = |to| json!({"To_Account":to,"AddSource":"AddSource_Type_Web","SnsItem":[{"Tag":"Tag_SNS_IM_Remark","Value":""}]});
        many(count).into_iter().map(item).collect::<Vec<Value>>()
    };
    for (name, member, max) in [
        ("friend_add", "AddFriendItem", 1000),
        ("friend_import", "AddFriendItem", 1000),
        ("friend_update", "UpdateItem", 1000),
        ("friend_delete", "To_Account", 1000),
        ("friend_check", "To_Account", 1000),
        ("friend_get_list", "To_Account", 100),
        ("black_list_add", "To_Account", 1000),
        ("black_list_delete", "To_Account", 1000),
        ("black_list_check", "To_Account", 1000),
    ] {
        let mut body = json!({"From_Account":"ann","TagList":["Tag_SNS_IM_Remark"]});
        if name.ends_with("check") {
            body["CheckType"] =
                json!(format!("{}Result_Type_Both", if name == "friend_check" { "Check" } else { "BlackCheck" }));
        }
        for (count, code) in [(max, 0), (max + 1, 30001), (0, 30001)] {
            body[member] = if member == "To_Account" { json!(many(count)) } else { json!(items(count)) };
            assert_eq!(app.code(&format!("sns/{name}"), body.clone()), code, "{name} {count}");
        }
    }
}

#[test]
fn invalid_sns_fields_get_their_code_and_change_nothing() {
    let mut app = App::new(&["ann", "bob"]);
    let item = |change: &[(&str, Value)]| {
        let mut item = json!({"To_Account":"bob","AddSource":"AddSource_Type_Web"});
        change.iter().for_each(|(member, value)| item[*member] = value.clone());
        json!({"From_Account":"ann","AddFriendItem":[item]})
    };
    for source in [json!(null), json!("Web"), json!("AddSource_Type_"), json!("AddSource_Type_ninechars"), json!(1)] {
        assert_eq!(app.code("sns/friend_add", item(&[("AddSource", source.clone())])), 30001, "{source}");
    }
    for (member, value) in [
        ("Remark", json!("r".repeat(97))),
        ("AddWording", json!("w".repeat(257))),
        ("GroupName", json!("g".repeat(31))),
        ("GroupName", json!(["g"])),
        ("CustomItem", json!([])),
    ] {
        assert_eq!(app.code("sns/friend_add", item(&[(member, value)])), 30001, "{member}");
    }
    for value in [json!("g"), json!([""]), json!(vec!["g"; 33])] {
        assert_eq!(app.code("sns/friend_import", item(&[("GroupName", value.clone())])), 30001, "{value}");
    }
    let mut body = item(&[]);
    for (member, value) in
        [("AddType", json!("Add_Type_None")), ("ForceAddFlags", json!(2)), ("ForceAddFlags", json!("1"))]
    {
        body[member] = value;
        assert_eq!(app.code("sns/friend_add", body.clone()), 30001, "{member}");
        body = item(&[]);
    }
    for kind in [json!(null), json!("CheckResult_Type_None"), json!("BlackCheckResult_Type_Both"), json!(1)] {
        let body = json!({"From_Account":"ann","To_Account":["bob"],"CheckType":kind});
        assert_eq!(app.code("sns/friend_check", body), 30001);
    }
    let delete = json!({"From_Account":"ann","To_Account":["bob"],"DeleteType":"Delete_Type_None"});
    assert_eq!(app.code("sns/friend_delete", delete), 30001);
    for name in ["friend_delete", "friend_delete_all", "black_list_add", "black_list_delete"] {
        assert_eq!(app.code(&format!("sns/{name}"), targets("zoe", &["bob"])), 30003, "{name}");
    }
    let check = check("zoe", &["bob"], "CheckResult_Type_Both");
    assert_eq!(app.code("sns/friend_check", check), 30003);
    assert_eq!((app.0.friend_type("ann", "bob"), app.0.block_type("ann", "bob")), (0, 0));
}

#[test]
fn friend_get_pages_and_skips_known_lists() {
    let mut app = App::new(&["ann"]);
    for name in many(501) {
        app.0.import(&name).unwrap();
    }
    let names = many(501);
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    app.changed("sns/friend_import", &add("ann", &all, ""));
    let get = |start: u64, known: u64| json!({"From_Account":"ann","StartIndex":start,"StandardSequence":known});
    let first = app.call("sns/friend_get", get(0, 0));
    let len = |page: &Value| page["UserDataItem"].as_array().unwrap().len();
    let end = |page: &Value| (page["CompleteFlag"].clone(), page["NextStartIndex"].clone(), page["FriendNum"].clone());
    assert_eq!((len(&first), end(&first)), (500, (json!(0), json!(500), json!(501))));
    let second = app.call("sns/friend_get", get(500, 0));
    assert_eq!((len(&second), end(&second)), (1, (json!(1), json!(0), json!(501))));
    let sequence = first["StandardSequence"].as_u64().unwrap();
    assert_eq!((second["StandardSequence"].as_u64(), &second["CustomSequence"]), (Some(sequence), &json!(0)));
    let known = app.call("sns/friend_get", get(0, sequence));
    assert_eq!((len(&known), end(&known)), (0, (json!(1), json!(0), json!(501))));
    app.call("sns/friend_delete", targets("ann", &["u0"]));
    assert_eq!(len(&app.call("sns/friend_get", get(0, sequence))), 500, "the list has changed");
    assert_eq!(len(&app.call("sns/friend_get", get(1 << 63, 0))), 0);
    assert_eq!(app.code("sns/friend_get", json!({"From_Account":"ann"})), 30001);
}

#[test]
fn friend_fields_are_stored_updated_and_returned() {
    let mut app = App::new(&["ann", "bob", "cyd"]);
    let import = json!({"From_Account":"ann","AddFriendItem":[{"To_Account":"bob","AddSource":"AddSource_Type_Web",
        "Remark":"B","GroupName":["Work","Home"],"AddTime":5}]});
    app.changed("sns/friend_import", &import);
    let page = app.call("sns/friend_get", json!({"From_Account":"ann","StartIndex":0}));
    let expected = json!([{"To_Account":"bob","ValueItem":[
        {"Tag":"Tag_SNS_IM_AddSource","Value":"AddSource_Type_Web"},
        {"Tag":"Tag_SNS_IM_Remark","Value":"B"},
        {"Tag":"Tag_SNS_IM_Group","Value":["Work","Home"]},
        {"Tag":"Tag_SNS_IM_AddTime","Value":5},
    ]}]);
    assert_eq!(page["UserDataItem"], expected);
    let update = |tag: &str, value: Value| {
        let change = json!([{"Tag":tag,"Value":value}]);
        json!({"From_Account":"ann","UpdateItem":[{"To_Account":"bob","SnsItem":change},{"To_Account":"cyd","SnsItem":change}]})
    };
    assert_eq!(app.changed("sns/friend_update", &update("Tag_SNS_IM_Remark", json!("Bobby"))), (vec![0, 30001], None));
    app.changed("sns/friend_update", &update("Tag_SNS_IM_Group", json!([])));
    for (tag, value) in
        [("Tag_SNS_IM_AddTime", json!(1)), ("Tag_SNS_Custom_A", json!("")), ("Tag_SNS_IM_Remark", json!(1))]
    {
        assert_eq!(app.code("sns/friend_update", update(tag, value)), 30001, "{tag}");
    }
    app.call(
        "profile/portrait_set",
        json!({"From_Account":"bob","ProfileItem":[{"Tag":"Tag_Profile_IM_Nick","Value":"bob!"}]}),
    );
    let tags = ["Tag_Profile_IM_Nick", "Tag_Profile_IM_Image", "Tag_SNS_IM_Remark", "Tag_SNS_IM_Group"];
    let list = app.call("sns/friend_get_list", json!({"From_Account":"ann","To_Account":["bob","cyd"],"TagList":tags}));
    let expected = json!({"InfoItem":[
        {"To_Account":"bob","SnsProfileItem":[
            {"Tag":"Tag_Profile_IM_Nick","Value":"bob!"},{"Tag":"Tag_SNS_IM_Remark","Value":"Bobby"}],
            "ResultCode":0,"ResultInfo":""},
        {"To_Account":"cyd","ResultCode":30001,"ResultInfo":"SNS_FRD_GET_LIST_FRD_NO_EXIST"},
    ],"Fail_Account":["cyd"],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""});
    assert_eq!(list, expected);
    let unknown = json!({"From_Account":"ann","To_Account":["bob"],"TagList":["Tag_SNS_Custom_A"]});
    assert_eq!(app.code("sns/friend_get_list", unknown), 30001);
}

#[test]
fn black_list_get_pages_through_the_list() {
    let mut app = App::new(&["ann", "bob", "cyd", "dan"]);
    app.call("sns/black_list_add", targets("ann", &["dan", "bob", "cyd"]));
    let get = |start: u64, max: u64| json!({"From_Account":"ann","StartIndex":start,"MaxLimited":max,"LastSequence":0});
    let first = app.call("sns/black_list_get", get(0, 2));
    let expected = json!([{"To_Account":"bob","AddBlackTimeStamp":NOW},{"To_Account":"cyd","AddBlackTimeStamp":NOW}]);
    assert_eq!((&first["BlackListItem"], &first["StartIndex"]), (&expected, &json!(2)));
    let second = app.call("sns/black_list_get", get(2, 2));
    assert_eq!((&second["BlackListItem"][0]["To_Account"], &second["StartIndex"]), (&json!("dan"), &json!(0)));
    assert_eq!(first["CurruentSequence"], second["CurruentSequence"]);
    for (start, max) in [(0, 0), (0, 1001)] {
        assert_eq!(app.code("sns/black_list_get", get(start, max)), 30001);
    }
}

#[test]
fn item_fault_fails_items_of_reads_and_prevents_writes() {
    let mut app = App::new(&["ann", "bob", "cyd"]);
    let fault = ItemFault { code: 30006, to: Some("bob".to_owned()) };
    let mut call = |name: &str, body: &Value| {
        let result = app.result_with_fault(name, body, Some(&fault)).unwrap();
        (serde_json::from_slice::<Value>(&result.body).unwrap(), result.event)
    };
    let (response, event) = call("sns/friend_add", &add("ann", &["bob", "cyd"], "Add_Type_Single"));
    assert_eq!((&response["ErrorCode"], &response["Fail_Account"]), (&json!(0), &json!(["bob"])));
    let pairs = vec![pair("ann", "cyd")];
    assert_eq!(event, Some(Event::FriendsAdded { initiator: "ann".into(), pairs, forced: false }));
    let (response, _) = call("sns/friend_check", &check("ann", &["cyd", "bob"], "CheckResult_Type_Both"));
    let expected = json!([
        {"To_Account":"cyd","Relation":"CheckResult_Type_AWithB","ResultCode":0,"ResultInfo":""},
        {"To_Account":"bob","Relation":"CheckResult_Type_NoRelation","ResultCode":30006,"ResultInfo":"injected fault"},
    ]);
    assert_eq!(response["InfoItem"], expected);
    let (response, _) = call("follow/follow_check", &targets("ann", &["bob"]));
    assert_eq!((&response["ResultItem"][0]["ResultCode"], &response["Fail_Account"]), (&json!(30006), &json!(null)));
}
