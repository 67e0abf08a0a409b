//! DNS lookups with a fallback: if the resolver fails, the last known addresses are used.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use parking_lot::Mutex;
use tower::Service;

/// Maximum number of addresses of a name that are kept and tried.
const ADDRESSES_MAX: usize = 16;
/// Maximum number of names with known addresses. An app has two.
const NAMES_MAX: usize = 4;

type KnownAddresses = Vec<(Name, Vec<SocketAddr>)>;

/// The system's resolver, with the last known addresses.
#[derive(Clone)]
pub(super) struct Resolver<R = GaiResolver> {
    inner: R,
    last: Arc<Mutex<KnownAddresses>>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new(GaiResolver::new())
    }
}

impl<R> Resolver<R> {
    fn new(inner: R) -> Self {
        Self { inner, last: Arc::default() }
    }
}

impl<R> Service<Name> for Resolver<R>
where
    R: Service<Name, Error = io::Error>,
    R::Response: Iterator<Item = SocketAddr>,
    R::Future: Send + 'static,
{
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (looking_up, last) = (self.inner.call(name.clone()), Arc::clone(&self.last));
        Box::pin(async move {
            let found = looking_up.await.map(|addresses| addresses.take(ADDRESSES_MAX).collect::<Vec<_>>());
            let mut last = last.lock();
            let known = last.iter().position(|(other, _)| *other == name);
            match (found, known) {
                (Ok(addresses), known) if !addresses.is_empty() => {
                    match known {
                        Some(known) => last[known].1.clone_from(&addresses),
                        None if last.len() < NAMES_MAX => last.push((name, addresses.clone())),
                        None => {}
                    }
                    Ok(addresses.into_iter())
                }
                (found, Some(known)) => {
                    let error = found.err().map(|error| error.to_string());
                    tracing::warn!(name = name.as_str(), error, "DNS lookup failed; using the last known addresses");
                    Ok(last[known].1.clone().into_iter())
                }
                (found, None) => found.map(Vec::into_iter),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    #[tokio::test]
    async fn failed_lookup_returns_the_last_known_addresses() {
        let results = Arc::new(Mutex::new(vec![
            Err("no server"),
            Ok(vec![]),
            Ok(vec![1, 2]),
            Err("no server"),
            Ok(vec![]),
            Ok(vec![3]),
            Err("no server"),
        ]));
        let mut resolver = Resolver::new(service_fn(move |_: Name| {
            let result = results.lock().remove(0);
            let addresses = result.map(|ports| ports.into_iter().map(|port| SocketAddr::from(([127, 0, 0, 1], port))));
            std::future::ready(addresses.map_err(io::Error::other))
        }));
        let mut look_up = async || {
            let name: Name = "chat.example".parse().expect("a name");
            let found = resolver.ready().await.expect("ready").call(name).await;
            found.map(|addresses| addresses.map(|address| address.port()).collect::<Vec<_>>()).ok()
        };
        assert_eq!(look_up().await, None);
        assert_eq!(look_up().await, Some(vec![]));
        for expected in [[1, 2].as_slice(), &[1, 2], &[1, 2], &[3], &[3]] {
            assert_eq!(look_up().await.as_deref(), Some(expected));
        }
    }
}
