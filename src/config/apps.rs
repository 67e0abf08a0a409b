//! `[[app]]` and its quota.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::build::unknown_command;
use super::secret::read_ca_file;
use super::section::{SecretNames, Section};
use super::tls::file;
use super::tree::{Node, Place};
use super::units::{Reading, boolean, duration, parsed, rate};
use super::{APPS_MAX, App, Endpoint, Quota, lower_limit};
use crate::domain::chat::app::{AppName, Identifier, SdkAppId, SecretKey};
use crate::domain::chat::command::{CommandName, VENDOR_QPS_DEFAULT};
use crate::domain::chat::region::Region;

const SECRET_KEY: SecretNames = SecretNames { inline: "secret_key", file: "secret_key_file", env: "secret_key_env" };

/// The administrator that the vendor's console makes for every app.
const IDENTIFIER_DEFAULT: &str = "administrator";

/// Longest life of a signature: the vendor libraries' default, 180 days ("Use Limits", 1047/34381). A
/// gateway renews by itself, so a longer one would only be longer in wrong hands.
const LIFETIME_MAX: Duration = Duration::from_secs(180 * 24 * 3600);

/// Shortest life of a signature: with a fifth left at renewal, 2 s are still enough for a call.
const LIFETIME_MIN: Duration = Duration::from_secs(10);

const LIFETIME_DEFAULT: Duration = Duration::from_secs(24 * 3600);

/// All apps that could be read, and the names of all, also of those that could not.
pub(super) fn apps(root: &mut Section<'_>) -> (Vec<App>, HashSet<AppName>) {
    let sections = root.sections("app");
    if sections.is_empty() && !root.has("app") {
        root.problem("app", "is missing; write [[app]] with name, sdkappid, region and secret_key_file");
    }
    if sections.len() > APPS_MAX {
        root.problem("app", format_args!("stands more than {APPS_MAX} times"));
        return Default::default();
    }
    let mut seen = Seen::default();
    let apps = sections.into_iter().filter_map(|section| app(section, &mut seen)).collect();
    (apps, seen.names.into_keys().collect())
}

/// What must not stand twice, and where it stood first.
#[derive(Default)]
struct Seen {
    names: HashMap<AppName, Place>,
    numbers: HashMap<SdkAppId, Place>,
    default: Option<Place>,
}

fn app(mut section: Section<'_>, seen: &mut Seen) -> Option<App> {
    let name = section.required("name", "name = \"main\"", parsed::<AppName>);
    let sdkappid = section.required("sdkappid", "sdkappid = NUMBER, as the console shows it", sdkappid);
    let written = section.optional("endpoint", parsed::<Endpoint>);
    let region = if section.has("endpoint") {
        Some(section.optional("region", parsed).unwrap_or(Region::Singapore))
    } else {
        let instead = format!("region = {}", Region::ALL.map(|region| format!("\"{region}\"")).join(" or "));
        section.required("region", &instead, parsed)
    };
    let extra_roots = file(&mut section, "ca_file", false, read_ca_file).unwrap_or_default();
    let identifier = if section.has("identifier") {
        section.optional("identifier", parsed::<Identifier>)
    } else {
        IDENTIFIER_DEFAULT.parse().ok()
    };
    let secret = section.secret(&SECRET_KEY, true).and_then(|secret| SecretKey::new(secret.expose()));
    let mut usersig_lifetime = LIFETIME_DEFAULT;
    section.read("usersig_lifetime", &mut usersig_lifetime, lifetime);
    let mut default = false;
    section.read("default", &mut default, boolean);
    let quota = quota(section.section("quota"));
    let own_standby = section.optional("standby", parsed::<Endpoint>);

    refuse_twice(&section, "name", name.clone(), &mut seen.names);
    refuse_twice(&section, "sdkappid", sdkappid, &mut seen.numbers);
    if default {
        match &seen.default {
            Some(first) => section.problem("default", format_args!("another app is the default already{}", at(first))),
            None => seen.default = Some(section.place_of("default").clone()),
        }
    }
    section.finish();

    let region = region?;
    let standby = own_standby.or_else(|| written.is_none().then(|| Endpoint::https(region.standby_host())));
    let endpoint = written.unwrap_or_else(|| Endpoint::https(region.host()));
    Some(App {
        name: name?,
        sdkappid: sdkappid?,
        region,
        endpoint,
        standby,
        extra_roots,
        identifier: identifier?,
        secret_key: secret?,
        usersig_lifetime,
        default,
        quota,
    })
}

fn refuse_twice<T: std::hash::Hash + Eq>(
    section: &Section<'_>,
    key: &str,
    value: Option<T>,
    seen: &mut HashMap<T, Place>,
) {
    let Some(value) = value else { return };
    match seen.get(&value) {
        Some(first) => section.problem(key, format_args!("is that of another app{}; give each its own", at(first))),
        None => {
            seen.insert(value, section.place_of(key).clone());
        }
    }
}

/// The first place, as the end of a sentence.
pub(super) fn at(place: &Place) -> String {
    match place {
        Place::Line(line) => format!(" (line {line})"),
        Place::Variable(name) => format!(" ({name})"),
        Place::File => String::new(),
    }
}

fn sdkappid(node: &Node) -> Reading<SdkAppId> {
    let number = node.integer().and_then(|number| u32::try_from(number).ok());
    number
        .and_then(SdkAppId::new)
        .ok_or_else(|| format!("must be a whole number from 1 to {}, without quotes", u32::MAX))
}

/// Signatures count in whole seconds.
fn lifetime(node: &Node) -> Reading<Duration> {
    let lifetime = duration(LIFETIME_MIN..=LIFETIME_MAX)(node)?;
    if lifetime.subsec_nanos() == 0 { Ok(lifetime) } else { Err("must be whole seconds".to_owned()) }
}

fn quota(mut section: Section<'_>) -> Quota {
    let mut quota = Quota::default();
    section.read("per_command", &mut quota.per_command, rate);
    if quota.per_command > VENDOR_QPS_DEFAULT {
        let message = format_args!("is above the {VENDOR_QPS_DEFAULT}/s that Chat allows unless it was raised");
        section.warning("per_command", message);
    }
    quota.total = section.optional("total", rate);
    for entry in section.entries("commands") {
        let Ok(name) = CommandName::parse(entry.name) else {
            section.problem_at(entry.key_place, &entry.path, "is not a command; write \"service/command\"");
            continue;
        };
        let per_second = match rate(entry.node) {
            Ok(per_second) => per_second,
            Err(message) => {
                section.problem_at(&entry.node.place, &entry.path, message);
                continue;
            }
        };
        let vendor = lower_limit(name).unwrap_or(VENDOR_QPS_DEFAULT);
        if name.known().is_none() {
            section.warning_at(entry.key_place, &entry.path, unknown_command(entry.name));
        } else if per_second > vendor {
            let message =
                format_args!("is above the {vendor}/s that Chat allows for this command unless it was raised");
            section.warning_at(&entry.node.place, &entry.path, message);
        }
        quota.commands.insert(entry.name.to_owned(), per_second);
    }
    section.finish();
    quota
}
