//! The apps that the fake Chat knows.

/// An app as Chat has it. The keys are marked texts, so that a search for them finds nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TestApp {
    pub(crate) name: &'static str,
    pub(crate) sdkappid: u32,
    pub(crate) identifier: &'static str,
    pub(crate) key: &'static str,
    /// Signs its webhooks.
    pub(crate) webhook_token: &'static str,
}

/// The app of nearly every test.
pub(crate) const MAIN: TestApp = TestApp {
    name: "main",
    sdkappid: 1_400_000_001,
    identifier: "administrator",
    key: "5ec2e7ma1n0marked0key0of0the0main0app0never0to0be0seen0anywhere1",
    webhook_token: "webhook0token0of0the0main0app0marked1",
};

/// A second app, for tests of what two apps do not share.
pub(crate) const OTHER: TestApp = TestApp {
    name: "other",
    sdkappid: 1_400_000_002,
    identifier: "administrator",
    key: "5ec2e7oth3r0marked0key0of0the0other0app0never0to0be0seen0at0all2",
    webhook_token: "webhook0token0of0the0other0app0marked2",
};

/// An app whose administrator's name needs percent-encoding in a query.
pub(crate) const ODD: TestApp = TestApp {
    name: "odd-name",
    sdkappid: u32::MAX,
    identifier: "root & 管理=+%",
    key: "5ec2e7 odd key: not hex, has blanks & signs +/%",
    webhook_token: "webhook token of the odd app: blanks & signs +/%",
};

/// All of them.
pub(crate) const ALL: [TestApp; 3] = [MAIN, OTHER, ODD];

/// The app of that number.
pub(crate) fn by_number(sdkappid: &str) -> Option<TestApp> {
    ALL.into_iter().find(|app| app.sdkappid.to_string() == sdkappid)
}
