//! Listeners that other machines can reach without authentication.
//!
//! A client that can connect to the data listener has administrator rights. A TCP listener beyond loopback therefore
//! needs authentication, or `access.open = true`.

use super::Config;
use super::address::ListenAddr;
use super::problem::{Problem, Problems};
use super::section::Section;
use super::server::Server;
use super::tree::Location;

/// The configured ways to authenticate.
#[derive(Clone, Copy)]
pub(super) struct Authentication {
    /// Every request must show which `[[caller]]` it comes from.
    pub(super) callers: bool,
    /// Callers over TCP need a client certificate. The admin listener does not ask for one.
    pub(super) client_certs: bool,
    /// Admin actions need a token. Without one they are accepted from this machine only; the rest of the admin listener
    /// shows no secret.
    pub(super) admin_token: bool,
}

impl Authentication {
    fn protects_data(self) -> bool {
        self.callers || self.client_certs
    }

    fn protects_admin(self) -> bool {
        self.callers || self.admin_token
    }
}

/// Notes a problem for each listener that is open to other machines. `listen_locations` has one location per address of
/// `server.listen`.
pub(super) fn check_listeners(
    section: &Section<'_>,
    server: &Server,
    listen_locations: &[Location],
    authentication: Authentication,
) {
    if !authentication.protects_data() {
        let listeners = server.listen.iter().zip(listen_locations);
        for (address, location) in listeners.filter(|(address, _)| !address.is_local()) {
            let remedy = "add a [[caller]], set server.tls.client_ca_file, or";
            section.problem_at(location, "server.listen", open_listener(address, remedy));
        }
    }
    if !authentication.protects_admin() && !server.admin.is_local() {
        let remedy = "add a [[caller]], set server.admin_token_file, or";
        section.problem("admin", open_listener(&server.admin, remedy));
    }
}

/// The message for an open listener.
fn open_listener(address: &ListenAddr, remedy: &str) -> String {
    format!(
        "reachable from other machines without authentication: \"{address}\"; listen on 127.0.0.1, [::1], or \
         \"unix:/path\", {remedy} set access.open = true to accept this"
    )
}

impl Config {
    /// Rejects listeners that are open to other machines. A reload calls this after it has kept the current listeners,
    /// which may be open under the new rules.
    ///
    /// # Errors
    /// One problem per open listener.
    pub fn refuse_open_listeners(&self) -> Result<(), Problems> {
        if self.access.open {
            return Ok(());
        }
        let authentication = Authentication {
            callers: !self.callers.is_empty(),
            client_certs: self.server.requires_client_cert(),
            admin_token: self.server.admin_token.is_some(),
        };
        let data = self.server.listen.iter().filter(|_| !authentication.protects_data());
        let admin = Some(&self.server.admin).filter(|_| !authentication.protects_admin());
        let listeners =
            data.map(|address| ("server.listen", address)).chain(admin.map(|address| ("server.admin", address)));
        let open = listeners.filter(|(_, address): &(_, &ListenAddr)| !address.is_local());
        let problem = |(key, address): (&str, &ListenAddr)| Problem {
            file: String::new(),
            line: None,
            column: None,
            key: key.to_owned(),
            message: format!(
                "the current address, which only a restart changes, would be open to other machines without \
                 authentication: \"{address}\"; restart, or add a [[caller]]"
            ),
        };
        Problems::of(open.map(problem).collect()).map_or(Ok(()), Err)
    }
}
