//! The examination of an app: its key, both domains, one call, and the clock.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::cause::Cause;
use super::reach::{Failure, millis, reach};
use super::report::{AppReport, Check, Finding, Report, Status};
use crate::capacity::Capacity;
use crate::clock;
use crate::config::{self, App, Config, Endpoint, client_config};
use crate::domain::chat::app::KeyShape;
use crate::domain::chat::command::{CommandKind, CommandName};
use crate::domain::chat::envelope::Envelope;
use crate::domain::policy::outcome::{AttemptOutcome, RetryClass, classify};
use crate::error::display_chain;
use crate::upstream::signer::Signer;
use crate::upstream::{AttemptError, AttemptTime, Call, ChatResponse, SharedFailover, Upstream};

/// The command of the call, which reads whether an account is imported. It needs no paid edition and no feature. It has
/// its own rate limit of 100 calls per second (vendor page 1047/34956), so it takes no quota from callers.
const COMMAND: &str = "im_open_login_svc/account_check";

/// Smaller clock differences are harmless, because chatgate signs with the later of both clocks.
const SKEW_SECS_MAX: i64 = 60;

/// Examines the apps one after another. This takes at most about 10 s per address of each domain.
pub(super) async fn examine(config: &Config, apps: &[&App]) -> Report {
    let mut reports = Vec::with_capacity(apps.len());
    for app in apps {
        reports.push(examine_app(app, &config.upstream).await);
    }
    Report { apps: reports }
}

/// The result for one domain.
enum DomainResult {
    /// Chat responded, with this ErrorCode and ErrorInfo.
    Responded { code: i64, info: String },
    /// No response from Chat.
    Failed(Failure),
    /// Reached, without a call.
    Reached,
}

async fn examine_app(app: &App, settings: &config::Upstream) -> AppReport {
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
    let probe = DomainProbe { app, settings, signer: &signer };
    let mut skip_call = (shape == KeyShape::Pem).then_some("a PEM key cannot sign");
    let primary = probe.run(&app.endpoint, skip_call, &mut report.checks).await;
    if matches!(primary, DomainResult::Responded { code, .. } if code != 0) {
        skip_call = skip_call.or(Some("the standby domain would return the same error"));
    }
    let standby = match &app.standby {
        Some(standby) => Some(probe.run(standby, skip_call, &mut report.checks).await),
        None => None,
    };
    let has_response = |result: &DomainResult| matches!(result, DomainResult::Responded { .. });
    if has_response(&primary) || standby.as_ref().is_some_and(has_response) {
        report.checks.push(clock_check(signer.skew()));
    }
    report.checks.extend(standby_remark(app));
    report.causes = findings(shape, signer.skew(), &primary, standby.as_ref());
    report
}

fn key_check(shape: KeyShape) -> Check {
    let status = match shape {
        KeyShape::Usual => Status::Ok,
        KeyShape::Pem => Status::Failed,
        _ => Status::Remark,
    };
    Check::new("key", status, shape.to_string())
}

/// Remarks on a standby domain that the vendor does not document.
fn standby_remark(app: &App) -> Option<Check> {
    let standby = app.standby.as_ref().filter(|_| app.has_undocumented_standby())?;
    let detail = "Tencent does not document this domain; if it does not work, set app.standby";
    Some(Check { host: standby.to_string(), ..Check::new("standby", Status::Remark, detail) })
}

/// Compares the clocks. `skew` is Chat's time minus the time of this machine, in seconds.
fn clock_check(skew: i64) -> Check {
    match skew {
        0 => Check::new("clock", Status::Ok, "differs from Chat's by less than 3 s"),
        _ if skew.abs() < SKEW_SECS_MAX => Check::new("clock", Status::Remark, describe_skew(skew)),
        _ => Check::new("clock", Status::Failed, describe_skew(skew)),
    }
}

fn describe_skew(skew: i64) -> String {
    let side = if skew > 0 { "behind" } else { "ahead of" };
    format!("{} s {side} Chat's", skew.unsigned_abs())
}

/// Connects to the domains of an app and makes calls as it.
struct DomainProbe<'a> {
    app: &'a App,
    settings: &'a config::Upstream,
    signer: &'a Signer,
}

impl DomainProbe<'_> {
    /// Connects to a domain, then makes the call unless there is a reason to skip it. Adds the checks of each step.
    async fn run(&self, endpoint: &Endpoint, skip_call: Option<&'static str>, checks: &mut Vec<Check>) -> DomainResult {
        let first = checks.len();
        let result = match self.connect_and_call(endpoint, skip_call, checks).await {
            Ok(result) => result,
            Err(failure) => DomainResult::Failed(failure),
        };
        for check in &mut checks[first..] {
            check.host = endpoint.to_string();
        }
        result
    }

    async fn connect_and_call(
        &self,
        endpoint: &Endpoint,
        skip_call: Option<&'static str>,
        checks: &mut Vec<Check>,
    ) -> Result<DomainResult, Failure> {
        let tls = client_config(&self.app.extra_roots, None)
            .map_err(|error| Failure { cause: Cause::Certificate, detail: display_chain(&error) })?;
        let proxy = self.settings.proxy.as_ref().filter(|proxy| !proxy.is_bypassed_for(endpoint));
        reach(endpoint, Arc::new(tls), proxy, self.settings.connect_timeout, checks).await?;
        if let Some(reason) = skip_call {
            checks.push(Check::new("call", Status::Skipped, reason));
            return Ok(DomainResult::Reached);
        }
        let started = clock::now();
        let response = self.call(endpoint).await.map_err(|error| {
            let failure = describe_failure(&error);
            checks.push(Check::new("call", Status::Failed, &failure.detail));
            failure
        })?;
        let envelope = Envelope::parse(&response.body).ok();
        let info = envelope.and_then(|envelope| envelope.error_info).unwrap_or_default().into_owned();
        let code = response.error_code;
        checks.push(call_check(code, &info, clock::now() - started));
        Ok(DomainResult::Responded { code, info })
    }

    /// Makes the signed call with the same code that serves callers. Like there, a rejected signature is renewed once.
    async fn call(&self, endpoint: &Endpoint) -> Result<ChatResponse, AttemptError> {
        let Self { settings, signer, .. } = *self;
        let app = App { endpoint: endpoint.clone(), standby: None, ..self.app.clone() };
        let capacity = Capacity::new(2 * settings.max_answer);
        let upstream = Upstream::new(&app, settings, SharedFailover::new(false), capacity)
            .map_err(|error| AttemptError::NotSent(display_chain(&error)))?;
        let body = serde_json::json!({"CheckItem": [{"UserID": app.identifier.as_str()}]}).to_string();
        let name = CommandName::parse(COMMAND).expect("a command of the built-in table");
        let call = Call { name, body: Bytes::from(body), traceparent: None };
        let signature = signer.current(clock::unix_now());
        let deadline = clock::now() + settings.timeout;
        let connection = upstream.connect().await?;
        let response = upstream
            .send(connection, signer, &signature, call.clone(), AttemptTime { begun: clock::now(), deadline })
            .await?;
        let outcome = AttemptOutcome::Answer(response.error_code);
        if classify(outcome, CommandKind::Read).retry != RetryClass::FreshSignature {
            return Ok(response);
        }
        let Some(fresh) = signer.after_rejection(&signature, clock::unix_now()) else { return Ok(response) };
        drop(response);
        let deadline = clock::now() + settings.timeout;
        let connection = upstream.connect().await?;
        upstream.send(connection, signer, &fresh, call, AttemptTime { begun: clock::now(), deadline }).await
    }
}

fn call_check(code: i64, info: &str, took: Duration) -> Check {
    let status = if code == 0 { Status::Ok } else { Status::Failed };
    let info = if info.is_empty() { String::new() } else { format!(" ({info})") };
    Check::new("call", status, format!("{COMMAND}: ErrorCode {code}{info} in {}", millis(took)))
}

fn describe_failure(error: &AttemptError) -> Failure {
    let (cause, detail) = match error {
        AttemptError::NotSent(cause) | AttemptError::Proxy(_, cause) => {
            (Cause::of_connection(error.connect_failure()), format!("chatgate's own connection failed: {cause}"))
        }
        AttemptError::Broken(cause) => (Cause::NoAnswer, format!("the connection broke: {cause}")),
        AttemptError::TimedOut => (Cause::NoAnswer, "no response within upstream.attempt_timeout".to_owned()),
        AttemptError::Invalid(problem, status) => (Cause::NotChat, format!("HTTP status {status}; {problem}")),
        AttemptError::OverCapacity => (Cause::NotChat, "the response exceeds upstream.max_answer".to_owned()),
    };
    Failure { cause, detail }
}

/// Returns the problems, most important first: errors of Chat, then unreachable domains, then the clock.
fn findings(shape: KeyShape, skew: i64, primary: &DomainResult, standby: Option<&DomainResult>) -> Vec<Finding> {
    let is_skewed = skew.abs() >= SKEW_SECS_MAX;
    let mut findings = Vec::new();
    if shape == KeyShape::Pem {
        findings.push(Finding::new(Cause::KeyIsPem, "", None));
    }
    let results = [Some(primary), standby].into_iter().flatten();
    findings.extend(results.filter_map(|result| chat_error(result, shape, is_skewed)).next());
    findings.extend(unreachable_domain(primary, standby));
    if is_skewed {
        findings.push(Finding::new(Cause::Clock, &describe_skew(skew), None));
    }
    findings
}

/// Returns the error of a response, unless the clock explains it, which has a finding of its own.
fn chat_error(result: &DomainResult, shape: KeyShape, is_skewed: bool) -> Option<Finding> {
    let DomainResult::Responded { code, info } = result else { return None };
    let cause = cause_of_error(*code, shape, is_skewed).filter(|cause| *cause != Cause::Clock)?;
    let error = format!("ErrorCode {code}: {info}");
    let key = if cause == Cause::KeyIsUnusual { format!("; the key: {shape}") } else { String::new() };
    Some(Finding::new(cause, &format!("{}{key}", error.trim_end_matches([':', ' '])), None))
}

/// Returns the finding for a domain that failed. Calls go to the standby domain only if the primary domain is
/// unreachable, not if another server responds there.
fn unreachable_domain(primary: &DomainResult, standby: Option<&DomainResult>) -> Option<Finding> {
    let is_available = |result: &DomainResult| !matches!(result, DomainResult::Failed(_));
    match (primary, standby) {
        (DomainResult::Failed(Failure { cause, detail }), _) => {
            let fails_over = cause.is_unreachable() && standby.is_some_and(is_available);
            Some(if fails_over {
                Finding::new(Cause::PrimaryDown, &format!("{}: {detail}", cause.slug()), Some(*cause))
            } else {
                Finding::new(*cause, detail, None)
            })
        }
        (_, Some(DomainResult::Failed(Failure { cause, detail }))) => {
            Some(Finding::new(Cause::StandbyDown, &format!("{}: {detail}", cause.slug()), Some(*cause)))
        }
        _ => None,
    }
}

/// Returns the cause of an ErrorCode. Facts about key and clock may explain it better than the code itself.
fn cause_of_error(code: i64, shape: KeyShape, is_skewed: bool) -> Option<Cause> {
    Some(match (Cause::of_code(code)?, shape) {
        (Cause::WrongKey, KeyShape::Blanks) => Cause::KeyHasBlanks,
        (Cause::WrongKey, KeyShape::Usual | KeyShape::Pem) => Cause::WrongKey,
        (Cause::WrongKey, _) => Cause::KeyIsUnusual,
        (Cause::SignatureRefused, _) if is_skewed => Cause::Clock,
        (cause, _) => cause,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn responded(code: i64) -> DomainResult {
        DomainResult::Responded { code, info: "info".to_owned() }
    }

    fn slugs(shape: KeyShape, skew: i64, primary: &DomainResult, standby: Option<&DomainResult>) -> Vec<&'static str> {
        findings(shape, skew, primary, standby).iter().map(|finding| finding.cause).collect()
    }

    #[test]
    fn undocumented_standby_has_a_remark() {
        let folder = tempfile::tempdir().expect("a folder");
        let remark = |lines: &str| {
            let path = folder.path().join("c.toml");
            let text = format!("[[app]]\nname = 'a'\nsdkappid = 1\nsecret_key_env = 'KEY'\n{lines}\n");
            let config = config::load_text(&path, text, &[("KEY", "k")].into_iter().collect()).expect("good");
            standby_remark(&config.apps[0]).map(|check| check.host)
        };
        assert_eq!(remark("region = 'riyadh'").as_deref(), Some("https://adminapiksa.my-imcloud.com"));
        assert_eq!(remark("region = 'riyadh'\nstandby = 'https://x.test'"), None);
        assert_eq!(remark("region = 'tokyo'"), None);
    }

    #[test]
    fn rejected_key_is_explained_by_its_format() {
        let rejected = responded(70009);
        for (shape, slug) in [
            (KeyShape::Usual, "wrong_key"),
            (KeyShape::Blanks, "key_has_blanks"),
            (KeyShape::Unusual(63), "key_is_unusual"),
            (KeyShape::Quoted, "key_is_unusual"),
        ] {
            assert_eq!(slugs(shape, 0, &rejected, None), [slug]);
            assert!(
                slugs(shape, 0, &responded(0), None).is_empty(),
                "a key that works has no problem, even in an unusual format"
            );
        }
        assert_eq!(slugs(KeyShape::Pem, 0, &DomainResult::Reached, None), ["key_is_pem"]);
    }

    #[test]
    fn rejected_signature_is_explained_by_the_clock() {
        assert_eq!(slugs(KeyShape::Usual, 0, &responded(70001), None), ["signature_refused"]);
        assert_eq!(slugs(KeyShape::Usual, 3600, &responded(70001), None), ["clock"]);
        assert_eq!(slugs(KeyShape::Usual, -3600, &responded(0), None), ["clock"]);
        assert!(slugs(KeyShape::Usual, 59, &responded(0), None).is_empty(), "the gateway compensates for it");
    }

    #[test]
    fn one_unreachable_domain_is_distinguished_from_two() {
        let dead = |cause| DomainResult::Failed(Failure { cause, detail: "detail".to_owned() });
        let (fine, dns, proxy) = (responded(0), dead(Cause::Dns), dead(Cause::NotChat));
        let slugs =
            |primary: &DomainResult, standby: Option<&DomainResult>| slugs(KeyShape::Usual, 0, primary, standby);
        assert_eq!(slugs(&dns, Some(&fine)), ["primary_down"]);
        assert_eq!(slugs(&dns, None), ["dns"]);
        assert_eq!(slugs(&dns, Some(&dead(Cause::Connect))), ["dns"]);
        assert_eq!(slugs(&fine, Some(&dns)), ["standby_down"]);
        assert_eq!(slugs(&proxy, Some(&fine)), ["not_chat"], "such a primary domain causes no failover");
        assert_eq!(slugs(&dns, Some(&responded(60021))), ["ip_refused", "primary_down"]);
        let gone = dead(Cause::ProxyUnreachable);
        assert_eq!(slugs(&gone, Some(&fine)), ["proxy_unreachable"], "a failure of the proxy causes no failover");
    }
}
