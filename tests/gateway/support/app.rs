//! Apps known to the fake Chat.

/// An app as registered with Chat. Each key is a unique marker, so that a search for it matches nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TestApp {
    pub(crate) name: &'static str,
    pub(crate) sdkappid: u32,
    pub(crate) identifier: &'static str,
    pub(crate) key: &'static str,
    /// Token that signs the app's webhooks.
    pub(crate) webhook_token: &'static str,
}

/// The app used by nearly every test.
pub(crate) const MAIN: TestApp = TestApp {
    name: "main",
    sdkappid: 1_400_000_001,
    identifier: "administrator",
    key: "5ec2e7ma1n0marked0key0of0the0main0app0never0to0be0seen0anywhere1",
    webhook_token: "webhook0token0of0the0main0app0marked1",
};

/// A second app, for tests that two apps are kept separate.
pub(crate) const OTHER: TestApp = TestApp {
    name: "other",
    sdkappid: 1_400_000_002,
    identifier: "administrator",
    key: "5ec2e7oth3r0marked0key0of0the0other0app0never0to0be0seen0at0all2",
    webhook_token: "webhook0token0of0the0other0app0marked2",
};

/// An app with an administrator name that needs percent-encoding in a query.
pub(crate) const ODD: TestApp = TestApp {
    name: "odd-name",
    sdkappid: u32::MAX,
    identifier: "root & 管理=+%",
    key: "5ec2e7 odd key: not hex, has blanks & signs +/%",
    webhook_token: "webhook token of the odd app: blanks & signs +/%",
};

/// All apps.
pub(crate) const ALL: [TestApp; 3] = [MAIN, OTHER, ODD];

/// Returns the app with this SDKAppID.
pub(crate) fn by_sdkappid(sdkappid: &str) -> Option<TestApp> {
    ALL.into_iter().find(|app| app.sdkappid.to_string() == sdkappid)
}
