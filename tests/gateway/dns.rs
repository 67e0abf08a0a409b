//! What a name of Chat's means changes, or some of what it means is dead.

use std::net::SocketAddr;

use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::Ask;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::hosts::Hosts;
use crate::support::link::{Link, Weather};
use crate::support::setup::Setup;
use crate::support::tls::Ca;

const WRITE: &str = "openim/sendmsg";
const NAME: &str = "chat.test";

/// A port of a name, and who answers there.
struct Place {
    ca: Ca,
    port: u16,
}

impl Place {
    fn new() -> Place {
        Place { ca: Ca::new(), port: crate::support::wire::free_address().port() }
    }

    fn at(&self, last: u8) -> SocketAddr {
        ([127, 0, 0, last], self.port).into()
    }

    async fn chat(&self, last: u8) -> FakeChat {
        let authority = format!("{NAME}:{}", self.port);
        FakeChat::start_behind(self.at(last), authority, Some(self.ca.acceptor(NAME))).await
    }

    /// A gateway to which the name means these addresses.
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
async fn one_dead_address_of_two_costs_a_moment_and_no_request() {
    // Whichever is dead, and whether it refuses or says nothing at all.
    for (dead, alive) in [(2, 3), (3, 2)] {
        for is_deaf in [false, true] {
            let place = Place::new();
            let chat = place.chat(alive).await;
            let mut link = Link::at(place.at(dead));
            if is_deaf {
                link.set(Weather::Deaf).await;
            }
            let (gateway, _hosts) = place.gateway(&[2, 3]).await;
            for number in 0..3 {
                let answer = gateway.call(WRITE, format!("{{\"n\":{number}}}")).await;
                answer.assert_relayed(200, OK);
            }
            assert_eq!(chat.count(), 3);
        }
    }
}

#[tokio::test]
async fn a_name_that_moves_is_followed_while_its_old_address_still_answers() {
    let place = Place::new();
    let (old, new) = (place.chat(2).await, place.chat(3).await);
    let (gateway, hosts) = place.gateway(&[2]).await;
    let mut conn = gateway.connect().await;
    conn.ask(&Ask::command(WRITE)).await.assert_relayed(200, OK);
    assert_eq!((old.count(), new.count()), (1, 0));
    hosts.set(&lines(&[3]));
    let mut calls = 1;
    eventually("calls go to the new address", async || {
        calls += 1;
        conn.ask(&Ask::command(WRITE)).await.assert_relayed(200, OK);
        (new.count() > 0).then_some(())
    })
    .await;
    assert_eq!(old.count() + new.count(), calls, "no call is lost on the way");
}

#[tokio::test]
async fn a_name_that_is_lost_serves_on_from_memory_until_it_is_back() {
    let place = Place::new();
    let old = place.chat(2).await;
    let (gateway, hosts) = place.gateway(&[2]).await;
    let mut conn = gateway.connect().await;
    conn.ask(&Ask::command(WRITE)).await.assert_relayed(200, OK);
    hosts.set("");
    let opened = old.accepted();
    eventually("new connections are made without the name", async || {
        conn.ask(&Ask::command(WRITE)).await.assert_relayed(200, OK);
        (old.accepted() > opened + 1).then_some(())
    })
    .await;
    assert!(gateway.log().contains("the last good addresses serve on"));
    let new = place.chat(3).await;
    drop(old);
    hosts.set(&lines(&[3]));
    eventually("the name is back", async || {
        let answer = conn.ask(&Ask::command(WRITE)).await;
        (answer.slug().is_none() && new.count() > 0).then_some(())
    })
    .await;
}
