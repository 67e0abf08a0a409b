//! The Redis of a run in one of its three forms, and what can be done to it.

use std::time::Duration;

use crate::support::app::MAIN;
use crate::support::redis::{Redis, Server};
use crate::support::redis_sets::{RedisCluster, SentinelSet};

/// The form of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Primary,
    Sentinel,
    Cluster,
}

/// All Redis of a run.
pub(super) enum Nodes {
    Primary(Box<Redis>),
    Sentinel(Box<SentinelSet>),
    /// Three primaries, and a replica of the one with the app's keys.
    Cluster(Box<RedisCluster>),
}

impl Nodes {
    /// Starts all Redis with this program.
    pub(super) async fn start(form: Form, server: &Server) -> Nodes {
        match form {
            Form::Primary => Nodes::Primary(Box::new(Redis::start_server(server).await)),
            Form::Sentinel => Nodes::Sentinel(Box::new(SentinelSet::start_server(server).await)),
            Form::Cluster => {
                let mut cluster = RedisCluster::start_server(3, server).await;
                let primary = cluster.primary_of(MAIN.sdkappid).await;
                cluster.add_replica_of(primary).await;
                Nodes::Cluster(Box::new(cluster))
            }
        }
    }

    /// Returns the lines for `[fleet]`.
    pub(super) fn lines(&self) -> Vec<String> {
        match self {
            Nodes::Primary(redis) => vec![format!("redis = 'redis://{}'", redis.address())],
            Nodes::Sentinel(set) => set.lines(),
            Nodes::Cluster(cluster) => vec![cluster.line()],
        }
    }

    fn data(&mut self) -> Vec<&mut Redis> {
        match self {
            Nodes::Primary(redis) => vec![redis],
            Nodes::Sentinel(set) => vec![&mut set.primary, &mut set.replica],
            Nodes::Cluster(cluster) => cluster.nodes.iter_mut().collect(),
        }
    }

    /// Returns the Redis that has the app's keys now, if that is clear.
    pub(super) async fn primary(&mut self) -> &mut Redis {
        let at = match self {
            Nodes::Primary(_) => 0,
            Nodes::Sentinel(set) => {
                let address = set.sentinels[0].command("SENTINEL GET-MASTER-ADDR-BY-NAME chat").await;
                usize::from(address.contains(&format!("\r\n{}\r\n", set.replica.address().port())))
            }
            Nodes::Cluster(cluster) => cluster.primary_of(MAIN.sdkappid).await,
        };
        self.data().swap_remove(at)
    }

    /// Kills the primary and starts it again, without data.
    pub(super) async fn kill_primary(&mut self, down: Duration) {
        let primary = self.primary().await;
        primary.kill();
        tokio::time::sleep(down).await;
        primary.restart().await;
    }

    /// Suspends the primary for `span` in total, `on` at a time.
    pub(super) async fn suspend_primary(&mut self, span: Duration, on: Duration) {
        let primary = self.primary().await;
        let mut left = span;
        while !left.is_zero() {
            primary.signal("STOP");
            tokio::time::sleep(on.min(left)).await;
            primary.signal("CONT");
            tokio::time::sleep(Duration::from_millis(10)).await;
            left = left.saturating_sub(on);
        }
    }

    /// Makes another Redis the primary, in the way of an operator. If there is no other one, closes all connections.
    pub(super) async fn fail_over(&mut self) {
        match self {
            Nodes::Primary(redis) => drop(redis.command("CLIENT KILL TYPE pubsub").await),
            Nodes::Sentinel(set) => drop(set.sentinels[0].command("SENTINEL FAILOVER chat").await),
            Nodes::Cluster(cluster) => {
                cluster.await_state().await;
                for node in &cluster.nodes {
                    // A primary rejects it.
                    let _ = node.try_command("CLUSTER FAILOVER").await;
                }
            }
        }
    }

    /// Moves the app's slot to another primary of a Redis Cluster; elsewhere, empties Redis.
    pub(super) async fn move_keys(&mut self) {
        if let Nodes::Cluster(cluster) = self {
            cluster.await_state().await;
            let from = cluster.primary_of(MAIN.sdkappid).await;
            for to in (0..cluster.nodes.len()).filter(|to| *to != from) {
                if cluster.nodes[to].command("INFO replication").await.contains("role:master") {
                    let moving = cluster.start_move(MAIN.sdkappid, to).await;
                    moving.move_keys(3).await;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    moving.finish().await;
                    return;
                }
            }
        }
        self.primary().await.command("FLUSHALL").await;
    }

    /// Returns the ports by which the primary is reached.
    pub(super) async fn primary_ports(&mut self) -> Vec<u16> {
        let is_cluster = matches!(self, Nodes::Cluster(_));
        let primary = self.primary().await;
        let bus = is_cluster.then(|| primary.bus_port());
        [primary.address().port()].into_iter().chain(bus).collect()
    }
}
