//! A builder of gateway configurations.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;

use super::app::{MAIN, TestApp};
use super::chat::FakeChat;
use super::gateway::Gateway;
use super::process::Process;
use super::secrets;
use super::wire::free_address;

/// A configuration builder. The default is loopback, free ports, and all commands allowed.
pub(crate) struct Setup {
    dir: Arc<TempDir>,
    /// Lines by table and key; a later line replaces an earlier line with the same key.
    tables: BTreeMap<&'static str, BTreeMap<String, String>>,
    apps: Vec<String>,
    env: Vec<(&'static str, &'static str)>,
    listeners: usize,
}

impl Setup {
    /// Starts with the main app in front of `chat`.
    pub(crate) fn new(chat: &FakeChat) -> Setup {
        Setup::without_apps().app(MAIN, &chat.app_lines())
    }

    /// Starts without an app; the test adds apps with [`Setup::app`].
    pub(crate) fn without_apps() -> Setup {
        let dir = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        let setup = Setup { dir, tables: BTreeMap::new(), apps: Vec::new(), env: Vec::new(), listeners: 1 };
        setup
            .set("server", r#"listen = "127.0.0.1:0""#)
            .set("server", r#"admin = "127.0.0.1:0""#)
            .set("access", r#"allow = ["*"]"#)
            .set("app.quota", r#"per_command = "100000/s""#)
    }

    /// Sets `key = value` in a table. `app.quota` applies to every app.
    pub(crate) fn set(mut self, table: &'static str, line: &str) -> Setup {
        let (key, _) = line.split_once('=').expect("key = value");
        self.tables.entry(table).or_default().insert(key.trim().to_owned(), line.to_owned());
        self
    }

    /// Adds an app, with `lines` in addition to name, SDKAppID, identifier and key.
    pub(crate) fn app(mut self, app: TestApp, lines: &str) -> Setup {
        let key = self.file(&format!("{}.key", app.name), app.key);
        let mut text = format!("[[app]]\nname = \"{}\"\nsdkappid = {}\n", app.name, app.sdkappid);
        let _ = write!(text, "identifier = '{}'\nsecret_key_file = '{}'\n{lines}\n", app.identifier, key.display());
        self.apps.push(text);
        self
    }

    /// Adds a caller with this token, with `lines` in addition to name and token.
    pub(crate) fn caller(mut self, name: &str, token: &str, lines: &str) -> Setup {
        secrets::add(token);
        let file = self.file(&format!("{name}.token"), token);
        self.apps.push(format!("[[caller]]\nname = '{name}'\ntoken_file = '{}'\n{lines}\n", file.display()));
        self
    }

    /// Sets the timeouts of a request, of an attempt, and of a connect to `span`.
    pub(crate) fn timeout(self, span: &str) -> Setup {
        let keys = ["timeout", "attempt_timeout", "connect_timeout"];
        keys.into_iter().fold(self, |setup, key| setup.set("upstream", &format!("{key} = \"{span}\"")))
    }

    /// Sets an environment variable of the gateway.
    pub(crate) fn env(mut self, name: &'static str, value: &str) -> Setup {
        // A test leaks only a few strings.
        self.env.push((name, value.to_owned().leak()));
        self
    }

    /// Adds a table verbatim.
    pub(crate) fn raw(mut self, text: &str) -> Setup {
        self.apps.push(format!("{text}\n"));
        self
    }

    /// Removes a key from a table, so that its default applies.
    pub(crate) fn unset(mut self, table: &'static str, key: &str) -> Setup {
        self.tables.entry(table).or_default().remove(key);
        self
    }

    /// Replaces the data listeners. Each is an address or `unix:/path`.
    pub(crate) fn listen(mut self, addresses: &[&str]) -> Setup {
        self.listeners = addresses.len();
        self.set("server", &format!("listen = {addresses:?}"))
    }

    /// Writes a file with mode 0600 into the gateway's directory.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("own directory");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("own file");
        path
    }

    /// Returns the gateway's directory.
    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Returns the configuration as text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let table = |name: &str| -> String {
            let lines = self.tables.get(name).map(|lines| lines.values().map(String::as_str).collect::<Vec<_>>());
            format!("[{name}]\n{}\n", lines.unwrap_or_default().join("\n"))
        };
        for name in self.tables.keys().filter(|name| **name != "app.quota") {
            text += &table(name);
        }
        for app in &self.apps {
            text += app;
            if app.starts_with("[[app]]") {
                text += &table("app.quota");
            }
        }
        text
    }

    /// Writes the configuration to a file, for subcommands that read one.
    pub(crate) fn write(&self) -> PathBuf {
        self.file("chatgate.toml", &self.text())
    }

    /// Starts the gateway at fixed addresses that were free a moment ago, for a log that is not JSON and so cannot be
    /// searched for addresses.
    pub(crate) async fn start_at_fixed_addresses(self) -> Gateway {
        let (data, admin) = (free_address().to_string(), free_address().to_string());
        let setup = self.listen(&[&data]).set("server", &format!("admin = \"{admin}\""));
        Gateway::start_at(&setup.text(), setup.dir.clone(), vec![data], admin).await
    }

    /// Starts the gateway with a custom command; `serve` and the configuration file are appended.
    pub(crate) async fn start_with_command(self, mut command: std::process::Command) -> Gateway {
        let file = self.write();
        command.args(["serve", "--config"]).arg(file);
        let turn = super::turn::shared().await;
        let process = Process::spawn(command, self.dir.path(), &self.env);
        Gateway::attach(process, turn, self.dir.clone(), self.listeners).await
    }

    /// Starts the gateway and waits until it listens.
    pub(crate) async fn start(self) -> Gateway {
        Gateway::start(&self.text(), self.dir.clone(), &self.env, self.listeners).await
    }
}

/// Starts a gateway with the default setup in front of `chat`.
pub(crate) async fn gateway(chat: &FakeChat) -> Gateway {
    Setup::new(chat).start().await
}
