//! The options of `chatgate sandbox`.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::webhook::WebhookTarget;
use super::{SandboxConfig, SandboxTls};
use crate::domain::chat::app::{Identifier, SdkAppId, SecretKey};

/// Options of the Chat simulator.
#[derive(Debug, clap::Args)]
pub struct SandboxArgs {
    /// Address to listen on; port 0 selects a free port, which the log names
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9700")]
    pub listen: SocketAddr,

    /// SDKAppID of the simulated app
    #[arg(long, value_name = "N", default_value = "1400000001", value_parser = sdkappid)]
    pub sdkappid: SdkAppId,

    /// Administrator of the app
    #[arg(long, value_name = "NAME", default_value = "administrator")]
    pub identifier: Identifier,

    /// Secret key of the app; not a real one, because the process list shows it
    #[arg(long, value_name = "KEY", env = "CHATGATE_SANDBOX_KEY", hide_env_values = true, value_parser = secret)]
    pub secret_key: SecretKey,

    /// Serve HTTPS with a generated certificate and write its CA to DIR/ca.pem
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,

    /// Rate limit in calls per second and command; calls over the limit get 60007
    #[arg(long, value_name = "N", default_value = "200")]
    pub qps: NonZeroU32,

    /// Delay before each response, in milliseconds
    #[arg(long, value_name = "MS", default_value = "0", value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub latency: u64,

    /// Post webhooks to this URL (plain http)
    #[arg(long, value_name = "URL", requires = "webhook_token", value_parser = WebhookTarget::parse_url)]
    pub webhook: Option<Uri>,

    /// Token that signs webhooks
    #[arg(long, value_name = "TOKEN", requires = "webhook", value_parser = secret)]
    pub webhook_token: Option<SecretKey>,

    /// Allow an address beyond loopback, where any client can use the control API
    #[arg(long)]
    pub open: bool,
}

/// Options that conflict: a usage error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SandboxArgsError {
    /// Other machines can reach the address.
    #[error("{0} is not a loopback address, and the control API has no authentication; add --open to accept this")]
    NotLoopback(SocketAddr),
}

impl TryFrom<SandboxArgs> for SandboxConfig {
    type Error = SandboxArgsError;

    fn try_from(args: SandboxArgs) -> Result<Self, SandboxArgsError> {
        if !args.listen.ip().is_loopback() && !args.open {
            return Err(SandboxArgsError::NotLoopback(args.listen));
        }
        Ok(SandboxConfig {
            listen: args.listen,
            sdkappid: args.sdkappid,
            identifier: args.identifier,
            secret_key: args.secret_key,
            tls: args.tls_dir.map_or(SandboxTls::Off, SandboxTls::Dir),
            qps: args.qps,
            latency: Duration::from_millis(args.latency),
            webhook: args.webhook.zip(args.webhook_token).map(|(url, token)| WebhookTarget { url, token }),
            seed_graph: None,
        })
    }
}

fn sdkappid(text: &str) -> Result<SdkAppId, &'static str> {
    text.parse().ok().and_then(SdkAppId::new).ok_or("must be a number from 1 to 4294967295")
}

fn secret(text: &str) -> Result<SecretKey, &'static str> {
    SecretKey::new(text).ok_or("must not be empty")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: SandboxArgs,
    }

    fn config(options: &[&str]) -> Result<SandboxConfig, String> {
        let line = ["sandbox", "--secret-key", "k"].iter().chain(options);
        let cli = Cli::try_parse_from(line).map_err(|error| error.to_string())?;
        SandboxConfig::try_from(cli.args).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_match_the_documentation() {
        let config = config(&[]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:9700");
        assert_eq!((config.sdkappid.get(), config.identifier.as_str()), (1400000001, "administrator"));
        assert_eq!((config.qps.get(), config.latency), (200, Duration::ZERO));
        assert!(matches!(config.tls, SandboxTls::Off) && config.webhook.is_none());
    }

    #[test]
    fn addresses_beyond_loopback_require_open() {
        assert!(config(&["--listen", "0.0.0.0:0"]).unwrap_err().contains("--open"));
        assert!(config(&["--listen", "0.0.0.0:0", "--open"]).is_ok());
        assert!(config(&["--listen", "[::1]:0"]).is_ok());
    }

    #[test]
    fn invalid_values_are_rejected() {
        for options in [
            ["--sdkappid", "0"],
            ["--sdkappid", "4294967296"],
            ["--identifier", ""],
            ["--qps", "0"],
            ["--latency", "60001"],
            ["--webhook", "http://127.0.0.1:1/"],
            ["--webhook-token", "t"],
        ] {
            assert!(config(&options).is_err(), "{options:?}");
        }
        assert!(config(&["--webhook", "https://h/", "--webhook-token", "t"]).is_err());
        let config = config(&["--webhook", "http://127.0.0.1:1/", "--webhook-token", "secret-token"]).unwrap();
        assert!(config.webhook.is_some() && !format!("{config:?}").contains("secret-token"));
    }
}
