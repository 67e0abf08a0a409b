//! `chatgate usersig`: creates and inspects UserSigs, without network access.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};

use super::output::{print, print_error};
use super::pasted;
use super::{USAGE, config_path, load};
use crate::clock;
use crate::config::{
    App, Config, Env, USERSIG_LIFETIME_DEFAULT, USERSIG_LIFETIME_MAX, parse_duration, quoted_path, read_secret_file,
    show_duration,
};
use crate::domain::chat::app::{AppName, Identifier, SdkAppId, SecretKey};
use crate::domain::chat::usersig;
use crate::domain::chat::usersig::Document;
use crate::domain::quote::with_value;

/// Maximum input from stdin in bytes. Signatures are less than a tenth of it.
const STDIN_LEN_MAX: u64 = 64 * 1024;
/// The first second of the year 10000. RFC 3339 (section 5.6) has four-digit years.
const YEAR_10000: u64 = 253_402_300_800;

/// Subcommands of `chatgate usersig`.
#[derive(Debug, Subcommand)]
pub(super) enum UsersigCommand {
    /// Create a signature and print it
    Mint {
        #[command(flatten)]
        signer: SignerArgs,
        /// Lifetime, "1s" to "4320h" [default: the app's usersig_lifetime, else 24h]
        #[arg(long, value_name = "DURATION", value_parser = lifetime)]
        lifetime: Option<Duration>,
    },
    /// Decode and verify a signature; exit with 0 if it is valid, with 1 if not
    Inspect {
        /// Signature, or `-` to read it from stdin; also the URL that contains it
        #[arg(value_name = "SIG")]
        sig: String,
        #[command(flatten)]
        signer: SignerArgs,
    },
}

/// The account and key that sign: an app of the configuration, or explicit values.
#[derive(Debug, Args)]
pub(super) struct SignerArgs {
    /// Configuration file [default: $CHATGATE_CONFIG, else /etc/chatgate/chatgate.toml]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sdkappid", "identifier", "key_file"])]
    config: Option<PathBuf>,
    /// App in the configuration [default: the default app]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["sdkappid", "identifier", "key_file"])]
    app: Option<AppName>,
    /// SDKAppID; replaces the configuration
    #[arg(long, value_name = "N", value_parser = sdkappid, requires_all = ["identifier", "key_file"])]
    sdkappid: Option<SdkAppId>,
    /// UserID that the signature is for: an administrator, or any other user of the app
    #[arg(long, value_name = "S", requires_all = ["sdkappid", "key_file"], allow_hyphen_values = true)]
    identifier: Option<Identifier>,
    /// File with the app's secret key, on one line
    #[arg(long, value_name = "FILE", requires_all = ["sdkappid", "identifier"])]
    key_file: Option<PathBuf>,
}

/// The account and key that sign, and the default lifetime.
struct SigningAccount {
    sdkappid: SdkAppId,
    identifier: Identifier,
    key: SecretKey,
    lifetime: Duration,
}

pub(super) fn run(command: UsersigCommand) -> ExitCode {
    match command {
        UsersigCommand::Mint { signer, lifetime } => match signer.find() {
            Ok(signer) => mint(&signer, lifetime.unwrap_or(signer.lifetime)),
            Err(code) => code,
        },
        UsersigCommand::Inspect { sig, signer } => {
            match signer.find().and_then(|signer| Ok((signer, read_signature(sig)?))) {
                Ok((signer, text)) => inspect(&signer, &text),
                Err(code) => code,
            }
        }
    }
}

fn mint(signer: &SigningAccount, lifetime: Duration) -> ExitCode {
    let now = clock::unix_now().as_secs();
    let sig = usersig::mint(&signer.key, signer.sdkappid, &signer.identifier, now, lifetime.as_secs());
    print(&format!("{}\n", sig.expose()))
}

fn inspect(signer: &SigningAccount, text: &str) -> ExitCode {
    let fail = |forms: &str, problem: &str| {
        let _ = print(&format!("{forms}{}", row("valid", &format!("no: {problem}"))));
        ExitCode::FAILURE
    };
    let pasted = match pasted::read(text) {
        Ok(pasted) => pasted,
        Err(error) => return fail("", &error.to_string()),
    };
    let forms: String = pasted.forms.iter().map(|form| row("input", form.text())).collect();
    let document = match usersig::parse(&pasted.signature) {
        Ok(document) => document,
        Err(error) => return fail(&forms, &format!("{error} ({})", error.code())),
    };
    let now = clock::unix_now().as_secs();
    let verdict = document.verify(&signer.key, signer.sdkappid, signer.identifier.as_str(), now);
    let shown = match verdict {
        Ok(()) => "yes".to_owned(),
        Err(error) => format!("no: {error} ({})", error.code()),
    };
    let printed = print(&(forms + &members(&document, now) + &row("valid", &shown)));
    if verdict.is_ok() { printed } else { ExitCode::FAILURE }
}

/// Formats the members of the document, one per line. The HMAC is omitted, because it has no readable content.
fn members(document: &Document, now: u64) -> String {
    let expires = document.expires_at();
    let left = if now > expires {
        format!("{} ago", show_duration(Duration::from_secs(now - expires)))
    } else {
        format!("in {}", show_duration(Duration::from_secs(expires - now)))
    };
    let rows = [
        ("version", format!("{:?}", document.version)),
        ("identifier", format!("{:?}", document.identifier)),
        ("sdkappid", document.sdkappid.to_string()),
        ("issued", utc(document.issued_at)),
        ("lifetime", show_duration(Duration::from_secs(document.lifetime_secs))),
        ("expires", format!("{}, {left}", utc(expires))),
        ("userbuf", if document.userbuf.is_some() { "present" } else { "none" }.to_owned()),
    ];
    rows.into_iter().map(|(name, value)| row(name, &value)).collect()
}

fn row(name: &str, value: &str) -> String {
    format!("{name:<12} {value}\n")
}

/// Formats a Unix second as UTC, as in `2026-11-23T10:00:00Z`.
fn utc(second: u64) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_secs(second)) {
        Some(time) if second < YEAR_10000 => humantime::format_rfc3339_seconds(time).to_string(),
        _ => format!("after the year 9999 (Unix second {second})"),
    }
}

impl SignerArgs {
    /// Resolves the arguments. On failure, prints a message and returns the exit code.
    fn find(self) -> Result<SigningAccount, ExitCode> {
        let (Some(sdkappid), Some(identifier), Some(key_file)) = (self.sdkappid, self.identifier, self.key_file) else {
            let config = load(&config_path(self.config), &Env::of_process())?;
            let app = choose(&config, self.app.as_ref())?;
            return Ok(SigningAccount {
                sdkappid: app.sdkappid,
                identifier: app.identifier.clone(),
                key: app.secret_key.clone(),
                lifetime: app.usersig_lifetime,
            });
        };
        let shown = quoted_path(Path::new(""), &key_file.to_string_lossy());
        let fail = |message: &dyn std::fmt::Display| {
            print_error(format_args!("--key-file: {}", with_value(&message.to_string(), &shown)));
            ExitCode::FAILURE
        };
        let (secret, warnings) = read_secret_file(&key_file).map_err(|error| fail(&error))?;
        for warning in warnings {
            print_error(format_args!("warning: --key-file: {}", with_value(&warning.to_string(), &shown)));
        }
        let key = SecretKey::new(secret.expose())
            .ok_or_else(|| fail(&"the file is empty; it must contain the secret key"))?;
        Ok(SigningAccount { sdkappid, identifier, key, lifetime: USERSIG_LIFETIME_DEFAULT })
    }
}

fn choose<'a>(config: &'a Config, name: Option<&AppName>) -> Result<&'a App, ExitCode> {
    let found = match name {
        Some(name) => config.apps.iter().find(|app| app.name == *name),
        None => config.default_app(),
    };
    found.ok_or_else(|| {
        let names: Vec<&str> = config.apps.iter().map(|app| app.name.as_str()).collect();
        let cause = if name.is_some() { "unknown app" } else { "no default app" };
        print_error(format_args!("--app: {cause}; configured apps: {}", names.join(", ")));
        ExitCode::from(USAGE)
    })
}

/// Returns the signature from the argument or stdin.
fn read_signature(sig: String) -> Result<String, ExitCode> {
    if sig != "-" {
        return Ok(sig);
    }
    let mut text = String::new();
    match std::io::stdin().take(STDIN_LEN_MAX).read_to_string(&mut text) {
        Ok(_) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => {
            print_error(format_args!("cannot read the signature from stdin: {error}"));
            Err(ExitCode::FAILURE)
        }
    }
}

fn sdkappid(text: &str) -> Result<SdkAppId, &'static str> {
    text.parse().ok().and_then(SdkAppId::new).ok_or("must be a number from 1 to 4294967295")
}

fn lifetime(text: &str) -> Result<Duration, &'static str> {
    let lifetime = parse_duration(text).ok_or("not a duration; use for example 24h")?;
    let is_valid = (Duration::from_secs(1)..=USERSIG_LIFETIME_MAX).contains(&lifetime) && lifetime.subsec_nanos() == 0;
    if is_valid { Ok(lifetime) } else { Err("must be whole seconds from 1s to 4320h") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_shown_with_times_in_utc() {
        let key = SecretKey::new("key").expect("not empty");
        let app = SdkAppId::new(7).expect("not 0");
        let identifier: Identifier = "管理员 \"&".parse().expect("a name");
        let sig = usersig::mint(&key, app, &identifier, 1_764_000_000, 3600);
        let document = usersig::parse(sig.expose()).expect("ours");
        let text = members(&document, 1_764_003_000);
        let expected = "version      \"2.0\"\nidentifier   \"管理员 \\\"&\"\nsdkappid     7\nissued       \
                        2025-11-24T16:00:00Z\nlifetime     1h\nexpires      2025-11-24T17:00:00Z, in 10m\nuserbuf      \
                        none\n";
        assert_eq!(text, expected);
        assert!(members(&document, 1_764_003_660).contains("T17:00:00Z, 1m ago"));
    }

    #[test]
    fn times_after_year_9999_are_shown_as_unix_seconds() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(YEAR_10000 - 1), "9999-12-31T23:59:59Z");
        assert!(utc(YEAR_10000).contains("253402300800"));
        assert!(utc(u64::MAX).contains("18446744073709551615"));
    }

    #[test]
    fn lifetimes_are_whole_seconds_in_range() {
        assert_eq!(lifetime("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(lifetime("4320h"), Ok(USERSIG_LIFETIME_MAX));
        for bad in ["0s", "1500ms", "4321h", "soon", ""] {
            assert!(lifetime(bad).is_err(), "{bad}");
        }
    }
}
