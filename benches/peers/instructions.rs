//! Instructions per request, counted by callgrind. Unlike times, they hardly depend on what else the machine does.
//!
//! The instructions of the kernel are not counted.

use std::time::Duration;

use super::chat::{Certified, Chat};
use super::targets::{Setup, Target, runs};
use super::work::Work;

/// Requests of the shorter run. The longer one has twice as many, and the difference is what these cost.
const REQUESTS: usize = 500;

/// Returns the instructions of chatgate per request over one connection, or `None` if valgrind is not installed.
pub(crate) async fn per_request(work: Work, certified: &Certified) -> Option<u64> {
    if !runs("valgrind", "--version") {
        return None;
    }
    let once = count(work, certified, REQUESTS).await?;
    let twice = count(work, certified, 2 * REQUESTS).await?;
    Some(twice.saturating_sub(once) / REQUESTS as u64)
}

/// Returns the instructions of a process that starts and answers `requests` requests.
async fn count(work: Work, certified: &Certified, requests: usize) -> Option<u64> {
    let tls = work.uses_tls().then_some(certified);
    let chat = Chat::start(Duration::ZERO, tls);
    let setup = Setup::new(chat.address, tls.map(Certified::ca_file), "");
    let running = Target::Chatgate.start(Setup { counted: true, ..setup });
    let load = work.load(running.address);
    // Fills the cache, and opens the connection to Chat.
    assert_eq!(load.warm(running.address).await.failed, 0, "{} fails under valgrind", work.name());
    assert_eq!(load.sequence(running.address, requests).await.failed, 0, "{} fails under valgrind", work.name());
    let profile = running.profile();
    let total =
        profile.lines().find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    total?.split_whitespace().next()?.parse().ok()
}
