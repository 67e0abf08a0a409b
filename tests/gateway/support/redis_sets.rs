//! Several real Redis: a primary with a replica and sentinels, and a Redis Cluster.

use std::net::SocketAddr;

use redis::aio::MultiplexedConnection;

use super::redis::{Redis, Server};
use super::{eventually, within};

/// A primary, its replica, and sentinels that watch them.
pub(crate) struct SentinelSet {
    pub(crate) primary: Redis,
    pub(crate) replica: Redis,
    pub(crate) sentinels: Vec<Redis>,
}

impl SentinelSet {
    /// Starts a primary, a replica, and three sentinels, and waits until they know each other.
    pub(crate) async fn start() -> SentinelSet {
        SentinelSet::start_server(&Server::default()).await
    }

    /// Does the same with this program for primary and replica.
    pub(crate) async fn start_server(server: &Server) -> SentinelSet {
        let start = || Redis::start_server(server);
        let (primary, replica) = (start().await, start().await);
        replica.replicate_from(primary.address()).await;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(start_sentinel(primary.address(), 2).await);
        }
        for sentinel in &sentinels {
            eventually("the sentinel knows the others", async || {
                let info = sentinel.command("INFO sentinel").await;
                info.contains("slaves=1,sentinels=3").then_some(())
            })
            .await;
        }
        SentinelSet { primary, replica, sentinels }
    }

    /// Returns the lines for `[fleet]`.
    pub(crate) fn lines(&self) -> Vec<String> {
        vec![format!("sentinels = {:?}", urls(&self.sentinels)), "master = 'chat'".to_owned()]
    }
}

/// Starts a sentinel that watches `primary` under the name `chat`.
pub(crate) async fn start_sentinel(primary: SocketAddr, quorum: u32) -> Redis {
    let mut sentinel = Redis::new(&Server::default(), &["--sentinel"]);
    sentinel.restart().await;
    monitor(&sentinel, primary, quorum).await;
    sentinel
}

/// Makes a sentinel watch `primary` under the name `chat`.
pub(crate) async fn monitor(sentinel: &Redis, primary: SocketAddr, quorum: u32) {
    for line in [
        format!("SENTINEL MONITOR chat {} {} {quorum}", primary.ip(), primary.port()),
        "SENTINEL SET chat down-after-milliseconds 500".to_owned(),
        "SENTINEL SET chat failover-timeout 3000".to_owned(),
    ] {
        assert_eq!(sentinel.command(&line).await, "+OK\r\n", "{line}");
    }
}

/// Returns the URLs without TLS.
pub(crate) fn urls(all: &[Redis]) -> Vec<String> {
    all.iter().map(|redis| format!("redis://{}", redis.address())).collect()
}

/// A Redis Cluster. Slots are spread evenly over the nodes that it was started with.
pub(crate) struct RedisCluster {
    pub(crate) nodes: Vec<Redis>,
    server: Server,
}

impl RedisCluster {
    /// Starts a cluster of this many primaries without replicas.
    pub(crate) async fn start(count: usize) -> RedisCluster {
        RedisCluster::start_server(count, &Server::default()).await
    }

    /// Does the same with this program for all nodes.
    pub(crate) async fn start_server(count: usize, server: &Server) -> RedisCluster {
        let mut nodes = Vec::new();
        for _ in 0..count {
            let mut node = Redis::cluster_node(server);
            node.restart().await;
            nodes.push(node);
        }
        RedisCluster { server: server.clone(), ..RedisCluster::form(nodes).await }
    }

    /// Makes a cluster of running nodes.
    pub(crate) async fn form(nodes: Vec<Redis>) -> RedisCluster {
        let cluster = RedisCluster { nodes, server: Server::default() };
        let count = cluster.nodes.len();
        for (at, node) in cluster.nodes.iter().enumerate() {
            let (first, last) = (at * SLOTS / count, (at + 1) * SLOTS / count - 1);
            assert_eq!(node.command(&format!("CLUSTER SET-CONFIG-EPOCH {}", at + 1)).await, "+OK\r\n");
            assert_eq!(node.command(&format!("CLUSTER ADDSLOTSRANGE {first} {last}")).await, "+OK\r\n");
            cluster.meet(node).await;
        }
        cluster.await_state().await;
        cluster
    }

    /// Adds a node without slots.
    pub(crate) async fn add_node(&mut self) {
        let mut node = Redis::cluster_node(&self.server);
        node.restart().await;
        self.meet(&node).await;
        self.nodes.push(node);
        self.await_state().await;
    }

    /// Adds a node that replicates the node at this position.
    pub(crate) async fn add_replica_of(&mut self, at: usize) {
        self.add_node().await;
        let (replica, id) = (self.nodes.last().expect("one was added"), id(&self.nodes[at]).await);
        let replicate = async || {
            // The new node knows the other one only after some gossip.
            let _ = replica.command(&format!("CLUSTER REPLICATE {id}")).await;
            replica.command("INFO replication").await.contains("master_link_status:up").then_some(())
        };
        eventually("the replica has synchronized", replicate).await;
    }

    async fn meet(&self, node: &Redis) {
        let first = &self.nodes[0];
        let line = format!("CLUSTER MEET 127.0.0.1 {} {}", first.peer_port(), first.bus_port());
        assert_eq!(node.command(&line).await, "+OK\r\n");
    }

    /// Waits until every node knows every other one and all slots.
    pub(crate) async fn await_state(&self) {
        let count = format!("cluster_known_nodes:{}\r", self.nodes.len());
        for node in &self.nodes {
            let knows_all = async || {
                let info = node.try_command("CLUSTER INFO").await?;
                (info.contains("cluster_state:ok") && info.contains(&count)).then_some(())
            };
            eventually("the node knows the cluster", knows_all).await;
        }
    }

    /// Returns the position of the primary that has the keys with this hash tag.
    pub(crate) async fn primary_of(&self, tag: u32) -> usize {
        eventually("a node has the slot", async || {
            for (at, node) in self.nodes.iter().enumerate() {
                let answer = node.try_command(&format!("EXISTS {{{tag}}}")).await;
                if answer.is_some_and(|answer| answer.starts_with(':')) {
                    return Some(at);
                }
            }
            None
        })
        .await
    }

    /// Returns the move of the slot of this hash tag to the node at `to`.
    pub(crate) async fn start_move(&self, tag: u32, to: usize) -> SlotMove<'_> {
        let (from, to) = (&self.nodes[self.primary_of(tag).await], &self.nodes[to]);
        let slot = from.command(&format!("CLUSTER KEYSLOT {{{tag}}}")).await;
        let slot = slot.trim_matches([':', '\r', '\n']).parse().expect("a slot");
        let (from_id, to_id) = (id(from).await, id(to).await);
        for (node, state, other) in [(to, "IMPORTING", &from_id), (from, "MIGRATING", &to_id)] {
            eventually("the node accepts the move", async || set_slot(node, slot, state, other).await.ok()).await;
        }
        SlotMove { cluster: self, from, to, slot, to_id }
    }

    /// Returns the line for `[fleet]`.
    pub(crate) fn line(&self) -> String {
        format!("redis = {:?}", urls(&self.nodes))
    }
}

/// The number of slots of every Redis Cluster.
const SLOTS: usize = 16384;

/// A slot on its way from one node to another, key by key, as `redis-cli --cluster reshard` moves it.
pub(crate) struct SlotMove<'a> {
    cluster: &'a RedisCluster,
    from: &'a Redis,
    to: &'a Redis,
    slot: usize,
    to_id: String,
}

impl SlotMove<'_> {
    /// Moves up to `count` keys. Returns how many were moved.
    pub(crate) async fn move_keys(&self, count: usize) -> usize {
        let mut connection = connect(self.from).await;
        let mut command = redis::cmd("CLUSTER");
        command.arg("GETKEYSINSLOT").arg(self.slot).arg(count);
        let keys: Vec<Vec<u8>> = command.query_async(&mut connection).await.expect("keys");
        if !keys.is_empty() {
            let mut command = redis::cmd("MIGRATE");
            let to = self.to.address();
            command.arg(to.ip().to_string()).arg(to.port()).arg("").arg(0).arg(5000).arg("KEYS").arg(&keys);
            let () = command.query_async(&mut connection).await.expect("the keys move");
        }
        keys.len()
    }

    /// Moves the remaining keys, and gives the slot to the new node.
    pub(crate) async fn finish(self) {
        while self.move_keys(100).await > 0 {}
        for node in [self.to, self.from].into_iter().chain(&self.cluster.nodes) {
            // A replica rejects it.
            let _ = set_slot(node, self.slot, "NODE", &self.to_id).await;
        }
    }
}

/// Changes the state of a slot. Valkey responds only after its replicas have it, and not to a client that has closed its
/// side of the connection meanwhile.
async fn set_slot(node: &Redis, slot: usize, state: &str, other: &str) -> redis::RedisResult<()> {
    let mut command = redis::cmd("CLUSTER");
    command.arg("SETSLOT").arg(slot).arg(state).arg(other).query_async(&mut connect(node).await).await
}

async fn connect(redis: &Redis) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis://{}", redis.address())).expect("a URL");
    let connecting = client.get_multiplexed_async_connection();
    within(super::PATIENCE, "a connection", connecting).await.expect("a connection")
}

async fn id(node: &Redis) -> String {
    let answer = node.command("CLUSTER MYID").await;
    answer.lines().nth(1).expect("an ID").to_owned()
}
