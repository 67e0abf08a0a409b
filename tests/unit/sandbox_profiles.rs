//! Profiles: shapes, limits, and codes.

use serde_json::{Value, json};

use super::super::*;
use super::App;

fn set(from: &str, tag: &str, value: Value) -> Value {
    json!({"From_Account":from,"ProfileItem":[{"Tag":tag,"Value":value}]})
}

#[test]
fn profiles_are_set_imported_and_returned() {
    let mut app = App::new(&["ann"]);
    app.call("im_open_login_svc/account_import", json!({"UserID":"bob","Nick":"B","FaceUrl":"http://b/"}));
    let body = set("ann", "Tag_Profile_IM_Level", json!(7));
    let event = app.result("profile/portrait_set", &body).unwrap().event;
    assert_eq!(event, Some(Event::ProfileSet { from: "ann".into(), fields: vec![("Tag_Profile_IM_Level", json!(7))] }));
    let tags = ["Tag_Profile_IM_Nick", "Tag_Profile_IM_Image", "Tag_Profile_IM_Level"];
    let response = app.call("profile/portrait_get", json!({"To_Account":["ann","bob","zoe"],"TagList":tags}));
    let expected = json!({"UserProfileItem":[
        {"To_Account":"ann","ProfileItem":[{"Tag":"Tag_Profile_IM_Level","Value":7}],"ResultCode":0,"ResultInfo":""},
        {"To_Account":"bob","ProfileItem":[
            {"Tag":"Tag_Profile_IM_Nick","Value":"B"},{"Tag":"Tag_Profile_IM_Image","Value":"http://b/"}],
            "ResultCode":0,"ResultInfo":""},
        {"To_Account":"zoe","ResultCode":40003,"ResultInfo":"account does not exist"},
    ],"Fail_Account":["zoe"],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""});
    assert_eq!(response, expected);
}

#[test]
fn invalid_profile_fields_get_their_code_and_change_nothing() {
    let mut app = App::new(&["ann"]);
    for (code, body) in [
        (40001, json!({"From_Account":"ann"})),
        (40001, json!({"From_Account":"ann","ProfileItem":[]})),
        (40001, set("ann", "Tag_Profile_IM_Nick", json!(1))),
        (40001, set("ann", "Tag_Profile_IM_Level", json!("1"))),
        (40001, set("ann", "Tag_Profile_IM_AllowType", json!("AllowType_Type_Ann"))),
        (40003, set("zoe", "Tag_Profile_IM_Nick", json!("Z"))),
        (40009, set("ann", "Tag_Profile_Custom_A", json!("A"))),
        (40601, set("ann", "Tag_Profile_IM_Nick", json!("n".repeat(501)))),
    ] {
        assert_eq!(app.code("profile/portrait_set", body.clone()), code, "{body}");
    }
    for (code, to, tags) in [
        (40001, json!([]), json!(["Tag_Profile_IM_Nick"])),
        (40001, json!(vec!["ann"; 101]), json!(["Tag_Profile_IM_Nick"])),
        (40001, json!(["ann"]), json!([])),
        (40009, json!(["ann"]), json!(["Tag_Profile_Custom_A"])),
    ] {
        assert_eq!(app.code("profile/portrait_get", json!({"To_Account":to,"TagList":tags})), code, "{tags}");
    }
    assert!(app.0.profile("ann").unwrap().is_empty());
}
