//! DNS changes: Chat's host name gets new addresses, loses them, or has unreachable ones.

use std::net::SocketAddr;

use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::hosts::Hosts;
use crate::support::link::{Link, NetworkState};
use crate::support::setup::Setup;
use crate::support::tls::Ca;

const WRITE: &str = "openim/sendmsg";
const NAME: &str = "chat.test";

/// A port under the name [`NAME`], and the CA of the servers there.
struct Site {
    ca: Ca,
    port: u16,
}

impl Site {
    fn new() -> Site {
        Site { ca: Ca::new(), port: crate::support::wire::free_address().port() }
    }

    fn at(&self, last: u8) -> SocketAddr {
        ([127, 0, 0, last], self.port).into()
    }

    async fn chat(&self, last: u8) -> FakeChat {
        let authority = format!("{NAME}:{}", self.port);
        FakeChat::start_behind(self.at(last), authority, Some(self.ca.acceptor(NAME))).await
    }

    /// Starts a gateway for which the name resolves to these addresses.
    async fn gateway(&self, addresses: &[u8]) -> (Gateway, Hosts) {
        let setup = Setup::without_apps();
        let hosts = Hosts::new(setup.dir(), &lines(addresses));
        let ca = setup.file("ca.pem", &self.ca.pem());
        let app = format!("endpoint = \"https://{NAME}:{}\"\nca_file = '{}'", self.port, ca.display());
        let setup = setup.app(MAIN, &app).set("upstream", "connection_max_age = \"1s\"");
        (setup.start().await, hosts)
    }
}

fn lines(addresses: &[u8]) -> String {
    addresses.iter().map(|last| format!("127.0.0.{last} {NAME}\n")).collect()
}

#[tokio::test]
async fn one_unreachable_address_of_two_fails_no_request() {
    // Either address, refusing connections or dropping packets.
    for (unreachable, reachable) in [(2, 3), (3, 2)] {
        for drops_packets in [false, true] {
            let site = Site::new();
            let chat = site.chat(reachable).await;
            let mut link = Link::at(site.at(unreachable));
            if drops_packets {
                link.set(NetworkState::DroppingSyn).await;
            }
            let (gateway, _hosts) = site.gateway(&[2, 3]).await;
            for number in 0..3 {
                let response = gateway.call(WRITE, format!("{{\"n\":{number}}}")).await;
                response.assert_relayed(200, OK);
            }
            assert_eq!(chat.call_count(), 3);
        }
    }
}

#[tokio::test]
async fn changed_address_is_used_although_the_old_one_answers() {
    let site = Site::new();
    let (old, new) = (site.chat(2).await, site.chat(3).await);
    let (gateway, hosts) = site.gateway(&[2]).await;
    let mut conn = gateway.connect().await;
    conn.request(&TestRequest::command(WRITE)).await.assert_relayed(200, OK);
    assert_eq!((old.call_count(), new.call_count()), (1, 0));
    hosts.set(&lines(&[3]));
    let mut calls = 1;
    eventually("calls go to the new address", async || {
        calls += 1;
        conn.request(&TestRequest::command(WRITE)).await.assert_relayed(200, OK);
        (new.call_count() > 0).then_some(())
    })
    .await;
    assert_eq!(old.call_count() + new.call_count(), calls, "a call was lost");
}

#[tokio::test]
async fn failed_dns_lookup_keeps_the_last_known_addresses() {
    let site = Site::new();
    let old = site.chat(2).await;
    let (gateway, hosts) = site.gateway(&[2]).await;
    let mut conn = gateway.connect().await;
    conn.request(&TestRequest::command(WRITE)).await.assert_relayed(200, OK);
    hosts.set("");
    let opened = old.accepted_connections();
    eventually("new connections are opened without DNS", async || {
        conn.request(&TestRequest::command(WRITE)).await.assert_relayed(200, OK);
        (old.accepted_connections() > opened + 1).then_some(())
    })
    .await;
    assert!(gateway.log().contains("using the last known addresses"));
    let new = site.chat(3).await;
    drop(old);
    hosts.set(&lines(&[3]));
    eventually("calls go to the new address", async || {
        let response = conn.request(&TestRequest::command(WRITE)).await;
        (response.slug().is_none() && new.call_count() > 0).then_some(())
    })
    .await;
}
