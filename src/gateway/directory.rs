//! The configured apps, by the names that requests give them.

use std::collections::HashMap;
use std::sync::Arc;

use super::query::Values;
use crate::config;
use crate::domain::chat::app::{AppName, SdkAppId};
use crate::domain::quote::plain_name;
use crate::error::GatewayError;

/// One `T` for each configured app.
#[derive(Debug)]
pub(crate) struct Directory<T> {
    /// In the order of the configuration.
    entries: Vec<T>,
    index: Arc<Index>,
}

#[derive(Debug)]
struct Index {
    by_name: HashMap<AppName, usize>,
    by_sdkappid: HashMap<SdkAppId, usize>,
    /// The app of requests that name none.
    default: Option<usize>,
}

/// The app that a request names, by every means it used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AppReference<'a> {
    /// `NAME` of a path `/apps/NAME/v4/...`.
    pub(crate) prefix: Option<&'a str>,
    /// Values of `Chatgate-App`.
    pub(crate) headers: &'a [&'a str],
    /// Values of the query parameter `sdkappid`.
    pub(crate) sdkappids: &'a Values<'a>,
}

impl<T> Directory<T> {
    /// Makes an entry for each app.
    pub(super) fn new<E>(apps: &[config::App], entry: impl FnMut(&config::App) -> Result<T, E>) -> Result<Self, E> {
        let entries = apps.iter().map(entry).collect::<Result<_, E>>()?;
        let by_name = apps.iter().enumerate().map(|(index, app)| (app.name.clone(), index)).collect();
        let by_sdkappid = apps.iter().enumerate().map(|(index, app)| (app.sdkappid, index)).collect();
        let default = if apps.len() == 1 { Some(0) } else { apps.iter().position(|app| app.default) };
        Ok(Self { entries, index: Arc::new(Index { by_name, by_sdkappid, default }) })
    }

    /// Makes a directory of the same apps with other entries.
    pub(super) fn map<U, E>(&self, entry: impl FnMut(&T) -> Result<U, E>) -> Result<Directory<U>, E> {
        let entries = self.entries.iter().map(entry).collect::<Result<_, E>>()?;
        Ok(Directory { entries, index: Arc::clone(&self.index) })
    }

    /// Iterates in the order of the configuration.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.entries.iter()
    }

    /// Returns the app with this name, or without a name the default app.
    pub(crate) fn named(&self, name: Option<&str>) -> Option<&T> {
        let index = match name {
            None => self.index.default?,
            Some(name) => *self.index.by_name.get(&name.parse::<AppName>().ok()?)?,
        };
        self.entries.get(index)
    }

    /// Returns the app with this SDKAppID.
    pub(crate) fn numbered(&self, sdkappid: SdkAppId) -> Option<&T> {
        self.entries.get(self.position(sdkappid)?)
    }

    /// Returns the position of an app in the configuration.
    pub(super) fn position(&self, sdkappid: SdkAppId) -> Option<usize> {
        self.index.by_sdkappid.get(&sdkappid).copied()
    }

    /// Chooses the app that a request names. All means that the request uses must agree.
    ///
    /// # Errors
    /// `unknown_app`
    pub(crate) fn choose(&self, reference: AppReference<'_>) -> Result<&T, GatewayError> {
        let unknown = |what: &str| GatewayError::UnknownApp(what.to_owned());
        let named = reference.prefix.iter().chain(reference.headers).map(|written| {
            let name = written.parse::<AppName>().ok();
            let index = name.and_then(|name| self.index.by_name.get(&name));
            index.ok_or_else(|| match plain_name(written) {
                Some(name) => unknown(&format!("no app named {name} is configured")),
                None => unknown("no app with this name is configured"),
            })
        });
        let numbered = reference.sdkappids.iter().map(|number| {
            let number = parse_sdkappid(number);
            let index = number.and_then(|number| self.index.by_sdkappid.get(&number));
            index.ok_or_else(|| match number {
                Some(number) => unknown(&format!("no app with sdkappid {number} is configured")),
                None => unknown("sdkappid is not the number of an app"),
            })
        });
        let mut chosen = None;
        for index in named.chain(numbered) {
            let index = *index?;
            if *chosen.get_or_insert(index) != index {
                return Err(unknown("path, header, and query name different apps"));
            }
        }
        let chosen = chosen.or(self.index.default).and_then(|index| self.entries.get(index));
        chosen.ok_or_else(|| {
            unknown("several apps are configured, none as the default; name one: /apps/NAME/v4/... or Chatgate-App")
        })
    }
}

/// Parses an SDKAppID as a query names it, with spaces around it.
pub(super) fn parse_sdkappid(text: &str) -> Option<SdkAppId> {
    SdkAppId::new(text.trim().parse().ok()?)
}
