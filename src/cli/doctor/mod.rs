//! `chatgate doctor`: what is wrong between here and Chat, found step by step and named in plain words.
//!
//! For each app: what its key looks like; then for the first domain and the standby name, connection and TLS;
//! then one harmless signed call by the same code that serves callers; then Chat's clock, as that answer
//! shows it. A call that Chat refuses is not repeated at the standby: the answer would be the same, and refused
//! signatures are counted (70050).

pub(crate) mod args;
mod cause;
mod reach;
mod report;

use std::sync::Arc;

use bytes::Bytes;

pub use self::cause::Cause;
use self::reach::{millis, reach};
pub use self::report::{AppReport, Check, Finding, Report, Status};
use crate::capacity::Capacity;
use crate::clock;
use crate::config::{App, Config, Endpoint, Upstream as Settings, client_config};
use crate::domain::chat::app::KeyShape;
use crate::domain::chat::command::{CommandKind, CommandName};
use crate::domain::chat::envelope::Envelope;
use crate::domain::policy::outcome::{AttemptOutcome, RetryClass, classify};
use crate::error::display_chain;
use crate::upstream::signer::Signer;
use crate::upstream::{AttemptError, AttemptTime, Call, ChatResponse, SharedFailover, Upstream};

/// The call that is made: it reads whether an account is imported, needs no edition and no feature, and has a
/// quota of its own of 100 a second (vendor page 1047/34956), so it takes nothing from callers.
const COMMAND: &str = "im_open_login_svc/account_check";

/// A clock that differs by less does no harm: signatures are made by the later of both.
const SKEW_SECS_MAX: i64 = 60;

/// Examines these apps one after the other. It takes at most some ten seconds for each address of each domain.
pub async fn examine(config: &Config, apps: &[&App]) -> Report {
    let mut reports = Vec::with_capacity(apps.len());
    for app in apps {
        reports.push(examine_app(app, &config.upstream).await);
    }
    Report { apps: reports }
}

/// How it went with one domain.
enum Visit {
    /// Chat answered: its code.
    Answered { code: i64, info: String },
    /// No answer of Chat.
    Failed(Cause, String),
    /// Reached; no call was made.
    Reached,
}

async fn examine_app(app: &App, settings: &Settings) -> AppReport {
    let mut report = AppReport {
        app: app.name.to_string(),
        sdkappid: app.sdkappid.get(),
        identifier: app.identifier.as_str().to_owned(),
        checks: Vec::new(),
        causes: Vec::new(),
    };
    let shape = app.secret_key.shape();
    report.checks.push(key_check(shape));
    let lifetime = app.usersig_lifetime;
    let signer = Signer::new(app.sdkappid, app.identifier.clone(), app.secret_key.clone(), lifetime, clock::unix_now());
    let mut signing = if shape == KeyShape::Pem { Err("a PEM key signs nothing here") } else { Ok(&signer) };
    let first = visit(app, &app.endpoint, settings, signing, &mut report.checks).await;
    if matches!(first, Visit::Answered { code, .. } if code != 0) {
        signing = signing.and(Err("the refusal would only be repeated"));
    }
    let standby = match &app.standby {
        Some(standby) => Some(visit(app, standby, settings, signing, &mut report.checks).await),
        None => None,
    };
    let answered = [Some(&first), standby.as_ref()].into_iter().flatten().any(|v| matches!(v, Visit::Answered { .. }));
    if answered {
        report.checks.push(clock_check(signer.skew()));
    }
    report.causes = conclude(shape, signer.skew(), &first, standby.as_ref());
    report
}

fn key_check(shape: KeyShape) -> Check {
    let (status, detail) = match shape {
        KeyShape::Usual => (Status::Fine, "64 hex digits, as the console shows keys".to_owned()),
        KeyShape::Pem => (Status::Failed, "PEM, which is no secret key".to_owned()),
        KeyShape::Blanks => (Status::Remark, "begins or ends with a blank or a byte order mark".to_owned()),
        KeyShape::Unusual(len) => (Status::Remark, format!("{len} bytes that are not 64 hex digits")),
    };
    Check::new("key", status, detail)
}

fn clock_check(skew: i64) -> Check {
    match skew {
        0 => Check::new("clock", Status::Fine, "within 3 s of Chat's"),
        _ if skew.abs() < SKEW_SECS_MAX => Check::new("clock", Status::Remark, apart(skew)),
        _ => Check::new("clock", Status::Failed, apart(skew)),
    }
}

fn apart(skew: i64) -> String {
    let side = if skew > 0 { "behind" } else { "ahead of" };
    format!("{} s {side} Chat's", skew.unsigned_abs())
}

/// Goes to one domain: steps, then the call if there is somebody to sign it.
async fn visit(
    app: &App,
    endpoint: &Endpoint,
    settings: &Settings,
    signer: Result<&Signer, &'static str>,
    checks: &mut Vec<Check>,
) -> Visit {
    let from = checks.len();
    let visit = go(app, endpoint, settings, signer, checks).await;
    for check in &mut checks[from..] {
        check.host = endpoint.to_string();
    }
    visit
}

async fn go(
    app: &App,
    endpoint: &Endpoint,
    settings: &Settings,
    signer: Result<&Signer, &'static str>,
    checks: &mut Vec<Check>,
) -> Visit {
    let tls = match client_config(&app.extra_roots, None) {
        Ok(tls) => Arc::new(tls),
        Err(error) => return Visit::Failed(Cause::Certificate, display_chain(&error)),
    };
    if let Err((cause, detail)) = reach(endpoint, tls, settings.connect_timeout, checks).await {
        return Visit::Failed(cause, detail);
    }
    let signer = match signer {
        Ok(signer) => signer,
        Err(why) => {
            checks.push(Check::new("call", Status::Skipped, why));
            return Visit::Reached;
        }
    };
    let begun = clock::now();
    match call(app, endpoint, settings, signer).await {
        Ok(answer) => {
            let envelope = Envelope::parse(&answer.body).ok();
            let info = envelope.and_then(|envelope| envelope.error_info).unwrap_or_default().into_owned();
            let code = answer.error_code;
            let status = if code == 0 { Status::Fine } else { Status::Failed };
            let took = millis(clock::now() - begun);
            checks.push(Check::new("call", status, format!("{COMMAND}: ErrorCode {code} {info} in {took}")));
            Visit::Answered { code, info }
        }
        Err(fault) => {
            let (cause, detail) = cause_of(&fault);
            checks.push(Check::new("call", Status::Failed, &detail));
            Visit::Failed(cause, detail)
        }
    }
}

/// The one signed call, by the way that callers' calls go. As there, a refused signature is made anew once.
async fn call(
    app: &App,
    endpoint: &Endpoint,
    settings: &Settings,
    signer: &Signer,
) -> Result<ChatResponse, AttemptError> {
    let way = App { endpoint: endpoint.clone(), standby: None, ..app.clone() };
    let upstream = Upstream::new(&way, settings, SharedFailover::new(false), Capacity::new(2 * settings.max_answer))
        .map_err(|error| AttemptError::NotSent(display_chain(&error)))?;
    let body = serde_json::json!({"CheckItem": [{"UserID": app.identifier.as_str()}]}).to_string();
    let name = CommandName::parse(COMMAND).expect("a command of the built-in table");
    let call = Call { name, body: Bytes::from(body), traceparent: None };
    let signature = signer.current(clock::unix_now());
    let deadline = clock::now() + settings.timeout;
    let answer = upstream
        .send(
            upstream.connect().await?,
            signer,
            &signature,
            call.clone(),
            AttemptTime { begun: clock::now(), deadline },
        )
        .await?;
    if classify(AttemptOutcome::Answer(answer.error_code), CommandKind::Read).retry != RetryClass::FreshSignature {
        return Ok(answer);
    }
    let Some(fresh) = signer.after_rejection(&signature, clock::unix_now()) else { return Ok(answer) };
    drop(answer);
    let deadline = clock::now() + settings.timeout;
    upstream.send(upstream.connect().await?, signer, &fresh, call, AttemptTime { begun: clock::now(), deadline }).await
}

fn cause_of(fault: &AttemptError) -> (Cause, String) {
    match fault {
        AttemptError::NotSent(why) => (Cause::Connect, format!("the gateway's own way fails: {why}")),
        AttemptError::Broken(why) => (Cause::NoAnswer, format!("the connection broke: {why}")),
        AttemptError::TimedOut => (Cause::NoAnswer, "no answer within upstream.attempt_timeout".to_owned()),
        AttemptError::Invalid(what, status) => (Cause::NotChat, format!("HTTP status {status}; {what}")),
        AttemptError::OverCapacity => (Cause::NotChat, "an answer larger than upstream.max_answer".to_owned()),
    }
}

/// What is wrong, the most important first: what Chat refuses, then ways that do not lead there, then the clock.
fn conclude(shape: KeyShape, skew: i64, first: &Visit, standby: Option<&Visit>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if shape == KeyShape::Pem {
        findings.push(Finding::new(Cause::KeyIsPem, "", None));
    }
    let skewed = skew.abs() >= SKEW_SECS_MAX;
    for visit in [Some(first), standby].into_iter().flatten() {
        let Visit::Answered { code, info } = visit else { continue };
        let Some(cause) = refusal(*code, shape, skewed) else { continue };
        if cause != Cause::Clock {
            findings.push(Finding::new(cause, &format!("ErrorCode {code} {info}"), None));
            break;
        }
    }
    let serves = |visit: &Visit| !matches!(visit, Visit::Failed(..));
    if let Visit::Failed(cause, detail) = first {
        // Calls go to the standby only if the first domain cannot be reached, not if something answers there.
        if cause.is_unreachable() && standby.is_some_and(serves) {
            findings.push(Finding::new(Cause::PrimaryDown, &format!("{}: {detail}", cause.slug()), Some(*cause)));
        } else {
            findings.push(Finding::new(*cause, detail, None));
        }
    } else if let Some(Visit::Failed(cause, detail)) = standby {
        findings.push(Finding::new(Cause::StandbyDown, &format!("{}: {detail}", cause.slug()), Some(*cause)));
    }
    if skewed {
        findings.push(Finding::new(Cause::Clock, &apart(skew), None));
    }
    findings
}

/// The cause of a refusal, which what is known of key and clock may explain better than Chat's code.
fn refusal(code: i64, shape: KeyShape, skewed: bool) -> Option<Cause> {
    Some(match (Cause::of_code(code)?, shape) {
        (Cause::WrongKey, KeyShape::Blanks) => Cause::KeyHasBlanks,
        (Cause::WrongKey, KeyShape::Unusual(_)) => Cause::KeyIsUnusual,
        (Cause::SignatureRefused, _) if skewed => Cause::Clock,
        (cause, _) => cause,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: i64) -> Visit {
        Visit::Answered { code, info: "said so".to_owned() }
    }

    fn slugs(shape: KeyShape, skew: i64, first: &Visit, standby: Option<&Visit>) -> Vec<&'static str> {
        conclude(shape, skew, first, standby).iter().map(|finding| finding.cause).collect()
    }

    #[test]
    fn a_refused_key_is_explained_by_its_looks() {
        let refused = answered(70009);
        for (shape, slug) in [
            (KeyShape::Usual, "wrong_key"),
            (KeyShape::Blanks, "key_has_blanks"),
            (KeyShape::Unusual(63), "key_is_unusual"),
        ] {
            assert_eq!(slugs(shape, 0, &refused, None), [slug]);
            assert!(slugs(shape, 0, &answered(0), None).is_empty(), "a key that works is good, whatever it looks like");
        }
        assert_eq!(slugs(KeyShape::Pem, 0, &Visit::Reached, None), ["key_is_pem"]);
    }

    #[test]
    fn a_refused_signature_is_explained_by_the_clock() {
        assert_eq!(slugs(KeyShape::Usual, 0, &answered(70001), None), ["signature_refused"]);
        assert_eq!(slugs(KeyShape::Usual, 3600, &answered(70001), None), ["clock"]);
        assert_eq!(slugs(KeyShape::Usual, -3600, &answered(0), None), ["clock"]);
        assert!(slugs(KeyShape::Usual, 59, &answered(0), None).is_empty(), "the gateway makes up for it");
    }

    #[test]
    fn one_dead_domain_is_told_from_two() {
        let dead = |cause| Visit::Failed(cause, "so it is".to_owned());
        let (fine, dns, proxy) = (answered(0), dead(Cause::Dns), dead(Cause::NotChat));
        let slugs = |first: &Visit, standby: Option<&Visit>| slugs(KeyShape::Usual, 0, first, standby);
        assert_eq!(slugs(&dns, Some(&fine)), ["primary_down"]);
        assert_eq!(slugs(&dns, None), ["dns"]);
        assert_eq!(slugs(&dns, Some(&dead(Cause::Connect))), ["dns"]);
        assert_eq!(slugs(&fine, Some(&dns)), ["standby_down"]);
        assert_eq!(slugs(&proxy, Some(&fine)), ["not_chat"], "calls do not go to the standby for it");
        assert_eq!(slugs(&dns, Some(&answered(60021))), ["ip_refused", "primary_down"]);
    }
}
