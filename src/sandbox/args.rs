//! The options of `chatgate sandbox`.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::webhook::WebhookTarget;
use super::{SandboxConfig, SandboxTls};
use crate::domain::chat::app::{Identifier, SdkAppId, SecretKey};

/// Options of the stand-in for Chat.
#[derive(Debug, clap::Args)]
pub struct SandboxArgs {
    /// Address to listen on; port 0 takes any free one and the log names it
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9700")]
    pub listen: SocketAddr,

    /// The app it plays
    #[arg(long, value_name = "N", default_value = "1400000001", value_parser = sdkappid)]
    pub sdkappid: SdkAppId,

    /// The app's administrator
    #[arg(long, value_name = "NAME", default_value = "administrator")]
    pub identifier: Identifier,

    /// The app's secret key; not a real one, since it stands in the process list
    #[arg(long, value_name = "KEY", env = "CHATGATE_SANDBOX_KEY", hide_env_values = true, value_parser = secret)]
    pub secret_key: SecretKey,

    /// Serve HTTPS with a certificate of its own and write its CA to DIR/ca.pem
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,

    /// Calls that a command may get in any second, beyond which it answers 60007
    #[arg(long, value_name = "N", default_value = "200")]
    pub qps: NonZeroU32,

    /// Milliseconds before each answer
    #[arg(long, value_name = "MS", default_value = "0", value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub latency: u64,

    /// Post webhooks to this URL (plain http)
    #[arg(long, value_name = "URL", requires = "webhook_token", value_parser = WebhookTarget::parse_url)]
    pub webhook: Option<Uri>,

    /// The token that signs webhooks
    #[arg(long, value_name = "TOKEN", requires = "webhook", value_parser = secret)]
    pub webhook_token: Option<SecretKey>,

    /// Allow an address beyond loopback, where anyone can give it orders
    #[arg(long)]
    pub open: bool,
}

/// Options that do not go together; a matter of wrong usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SandboxArgsError {
    /// The address is reachable from elsewhere.
    #[error(
        "{0} is not a loopback address, and anyone who reaches the sandbox can give it orders; add --open to allow it"
    )]
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
    text.parse().ok().and_then(SdkAppId::new).ok_or("is not a number from 1 to 4294967295")
}

fn secret(text: &str) -> Result<SecretKey, &'static str> {
    SecretKey::new(text).ok_or("is empty")
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
    fn defaults_are_those_of_the_contract() {
        let config = config(&[]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:9700");
        assert_eq!((config.sdkappid.get(), config.identifier.as_str()), (1400000001, "administrator"));
        assert_eq!((config.qps.get(), config.latency), (200, Duration::ZERO));
        assert!(matches!(config.tls, SandboxTls::Off) && config.webhook.is_none());
    }

    #[test]
    fn only_open_listens_beyond_loopback() {
        assert!(config(&["--listen", "0.0.0.0:0"]).unwrap_err().contains("--open"));
        assert!(config(&["--listen", "0.0.0.0:0", "--open"]).is_ok());
        assert!(config(&["--listen", "[::1]:0"]).is_ok());
    }

    #[test]
    fn wrong_values_are_refused() {
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
        let with = config(&["--webhook", "http://127.0.0.1:1/", "--webhook-token", "secret-token"]).unwrap();
        assert!(with.webhook.is_some() && !format!("{with:?}").contains("secret-token"));
    }
}
