//! `chatgate usersig`: making signatures and taking them apart, without a network.

use std::fmt::Write as _;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};

use super::output::{complain, print};
use super::{USAGE, config_path, load};
use crate::clock;
use crate::config::{App, Config, Env, parse_duration, read_secret_file, show_duration};
use crate::domain::chat::app::{AppName, Identifier, SdkAppId, SecretKey};
use crate::domain::chat::usersig;
use crate::domain::chat::usersig::Document;

/// How long a signature is good if nobody says otherwise, as in the configuration.
const LIFETIME_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Longest life of a signature: the vendor libraries' default, 180 days ("Use Limits", 1047/34381).
const LIFETIME_MAX: Duration = Duration::from_secs(180 * 24 * 3600);
/// Longest text that is read from stdin; no signature has a tenth of it.
const STDIN_LEN_MAX: u64 = 64 * 1024;
/// The first second whose year has five digits, which RFC 3339 (section 5.6) cannot write.
const YEAR_10000: u64 = 253_402_300_800;

/// What to do with signatures.
#[derive(Debug, Subcommand)]
pub(super) enum UsersigCommand {
    /// Makes a signature and prints it
    Mint {
        #[command(flatten)]
        signer: SignerArgs,
        /// How long it is good, "1s" to "4320h" [default: the app's usersig_lifetime, or 24h]
        #[arg(long, value_name = "DURATION", value_parser = lifetime)]
        lifetime: Option<Duration>,
    },
    /// Takes a signature apart and verifies it; exit code 0 if it verifies, 1 if not
    Inspect {
        /// The signature, or `-` to read it from stdin
        #[arg(value_name = "SIG")]
        sig: String,
        #[command(flatten)]
        signer: SignerArgs,
    },
}

/// Who signs: an app of the configuration, or all that matters of one.
#[derive(Debug, Args)]
pub(super) struct SignerArgs {
    /// Configuration [default: $CHATGATE_CONFIG, or /etc/chatgate/chatgate.toml]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sdkappid", "identifier", "key_file"])]
    config: Option<PathBuf>,
    /// App of the configuration [default: its default app]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["sdkappid", "identifier", "key_file"])]
    app: Option<AppName>,
    /// SDKAppID, instead of a configuration
    #[arg(long, value_name = "N", value_parser = sdkappid, requires_all = ["identifier", "key_file"])]
    sdkappid: Option<SdkAppId>,
    /// Administrator who signs
    #[arg(long, value_name = "S", requires_all = ["sdkappid", "key_file"], allow_hyphen_values = true)]
    identifier: Option<Identifier>,
    /// File whose one line is the app's secret key
    #[arg(long, value_name = "FILE", requires_all = ["sdkappid", "identifier"])]
    key_file: Option<PathBuf>,
}

/// Who signs, found.
struct Signer {
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
        UsersigCommand::Inspect { sig, signer } => match signer.find().and_then(|signer| Ok((signer, text_of(sig)?))) {
            Ok((signer, text)) => inspect(&signer, &text),
            Err(code) => code,
        },
    }
}

fn mint(signer: &Signer, lifetime: Duration) -> ExitCode {
    let now = clock::unix_now().as_secs();
    let sig = usersig::mint(&signer.key, signer.sdkappid, &signer.identifier, now, lifetime.as_secs());
    print(&format!("{}\n", sig.expose()))
}

fn inspect(signer: &Signer, text: &str) -> ExitCode {
    let document = match usersig::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let _ = print(&format!("verifies     no: {error} ({})\n", error.code()));
            return ExitCode::FAILURE;
        }
    };
    let now = clock::unix_now().as_secs();
    let verdict = document.verify(&signer.key, signer.sdkappid, signer.identifier.as_str(), now);
    let shown = match verdict {
        Ok(()) => "yes".to_owned(),
        Err(error) => format!("no: {error} ({})", error.code()),
    };
    let printed = print(&format!("{}verifies     {shown}\n", members(&document, now)));
    if verdict.is_ok() { printed } else { ExitCode::FAILURE }
}

/// What the document says, one member a line. The HMAC is left out: nobody can read anything from it.
fn members(document: &Document, now: u64) -> String {
    let mut text = String::new();
    let expires = document.expires_at();
    let left = if now > expires {
        format!("{} ago", show_duration(Duration::from_secs(now - expires)))
    } else {
        format!("in {}", show_duration(Duration::from_secs(expires - now)))
    };
    let lines = [
        ("version", format!("{:?}", document.version)),
        ("identifier", format!("{:?}", document.identifier)),
        ("sdkappid", document.sdkappid.to_string()),
        ("issued", utc(document.issued_at)),
        ("lifetime", show_duration(Duration::from_secs(document.lifetime_secs))),
        ("expires", format!("{}, {left}", utc(expires))),
        ("userbuf", if document.userbuf.is_some() { "there is one" } else { "none" }.to_owned()),
    ];
    for (name, value) in lines {
        writeln!(text, "{name:<12} {value}").expect("a String takes everything");
    }
    text
}

/// A Unix second as UTC, as in `2026-11-23T10:00:00Z`.
fn utc(second: u64) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_secs(second)) {
        Some(moment) if second < YEAR_10000 => humantime::format_rfc3339_seconds(moment).to_string(),
        _ => format!("after the year 9999 (Unix second {second})"),
    }
}

impl SignerArgs {
    /// The signer, or the exit code after the user was told what is wrong.
    fn find(self) -> Result<Signer, ExitCode> {
        let (Some(sdkappid), Some(identifier), Some(key_file)) = (self.sdkappid, self.identifier, self.key_file) else {
            let config = load(&config_path(self.config), &Env::of_process())?;
            let app = choose(&config, self.app.as_ref())?;
            return Ok(Signer {
                sdkappid: app.sdkappid,
                identifier: app.identifier.clone(),
                key: app.secret_key.clone(),
                lifetime: app.usersig_lifetime,
            });
        };
        let refuse = |message: &dyn std::fmt::Display| {
            complain(format_args!("--key-file: {message}"));
            ExitCode::FAILURE
        };
        let (secret, remarks) = read_secret_file(&key_file).map_err(|error| refuse(&error))?;
        for remark in remarks {
            complain(format_args!("--key-file: {remark}"));
        }
        let key = SecretKey::new(secret.expose()).ok_or_else(|| refuse(&"it is empty"))?;
        Ok(Signer { sdkappid, identifier, key, lifetime: LIFETIME_DEFAULT })
    }
}

fn choose<'a>(config: &'a Config, name: Option<&AppName>) -> Result<&'a App, ExitCode> {
    let found = match name {
        Some(name) => config.apps.iter().find(|app| app.name == *name),
        None => config.default_app(),
    };
    found.ok_or_else(|| {
        let names: Vec<&str> = config.apps.iter().map(|app| app.name.as_str()).collect();
        let problem = if name.is_some() { "there is no app of that name" } else { "there is no default app" };
        complain(format_args!("--app: {problem}; there are {}", names.join(", ")));
        ExitCode::from(USAGE)
    })
}

fn text_of(sig: String) -> Result<String, ExitCode> {
    if sig != "-" {
        return Ok(sig);
    }
    let mut text = String::new();
    match std::io::stdin().take(STDIN_LEN_MAX).read_to_string(&mut text) {
        Ok(_) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => {
            complain(format_args!("cannot read a signature from stdin: {error}"));
            Err(ExitCode::FAILURE)
        }
    }
}

fn sdkappid(text: &str) -> Result<SdkAppId, &'static str> {
    text.parse().ok().and_then(SdkAppId::new).ok_or("is not a number from 1 to 4294967295")
}

fn lifetime(text: &str) -> Result<Duration, &'static str> {
    let lifetime = parse_duration(text).ok_or("is not a duration; write for example 24h")?;
    let fits = (Duration::from_secs(1)..=LIFETIME_MAX).contains(&lifetime) && lifetime.subsec_nanos() == 0;
    if fits { Ok(lifetime) } else { Err("must be whole seconds, 1s to 4320h") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_is_shown_with_its_times_in_utc() {
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
    fn times_beyond_all_calendars_are_shown_as_numbers() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(YEAR_10000 - 1), "9999-12-31T23:59:59Z");
        assert!(utc(YEAR_10000).contains("253402300800"));
        assert!(utc(u64::MAX).contains("18446744073709551615"));
    }

    #[test]
    fn lifetimes_are_whole_seconds_within_bounds() {
        assert_eq!(lifetime("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(lifetime("4320h"), Ok(LIFETIME_MAX));
        for bad in ["0s", "1500ms", "4321h", "soon", ""] {
            assert!(lifetime(bad).is_err(), "{bad}");
        }
    }
}
