//! The regions of Chat and their domains.

use std::fmt;
use std::str::FromStr;

/// The data center of an app. Each app is in exactly one; the domain of another region answers 60026.
///
/// Source: vendor page "RESTful API Overview" (1047/34620). Only the follow pages list Mumbai (1047/70349), and only
/// 679/131707 lists the standby domain of Tokyo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Region {
    China,
    Singapore,
    Seoul,
    Tokyo,
    Frankfurt,
    Mumbai,
    SiliconValley,
    Jakarta,
}

impl Region {
    /// All regions, in the order of the vendor's page.
    pub const ALL: [Region; 8] = [
        Region::China,
        Region::Singapore,
        Region::Seoul,
        Region::Tokyo,
        Region::Frankfurt,
        Region::Mumbai,
        Region::SiliconValley,
        Region::Jakarta,
    ];

    /// The name used in the configuration.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// The primary domain.
    pub const fn host(self) -> &'static str {
        self.row().1
    }

    /// The standby domain: the same data center, for when the primary domain cannot be reached.
    pub const fn standby_host(self) -> &'static str {
        self.row().2
    }

    const fn row(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Region::China => ("china", "console.tim.qq.com", "adminapi.my-imcloud.com"),
            Region::Singapore => ("singapore", "adminapisgp.im.qcloud.com", "adminapisgp.my-imcloud.com"),
            Region::Seoul => ("seoul", "adminapikr.im.qcloud.com", "adminapikr.my-imcloud.com"),
            Region::Tokyo => ("tokyo", "adminapijpn.im.qcloud.com", "adminapijpn.my-imcloud.com"),
            Region::Frankfurt => ("frankfurt", "adminapiger.im.qcloud.com", "adminapiger.my-imcloud.com"),
            Region::Mumbai => ("mumbai", "adminapiind.im.qcloud.com", "adminapiind.my-imcloud.com"),
            Region::SiliconValley => ("silicon-valley", "adminapiusa.im.qcloud.com", "adminapiusa.my-imcloud.com"),
            Region::Jakarta => ("jakarta", "adminapiidn.im.qcloud.com", "adminapiidn.my-imcloud.com"),
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text does not name a region of Chat.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown region; valid regions: china, singapore, seoul, tokyo, frankfurt, mumbai, silicon-valley, jakarta")]
pub struct UnknownRegion;

impl FromStr for Region {
    type Err = UnknownRegion;

    fn from_str(text: &str) -> Result<Self, UnknownRegion> {
        Region::ALL.into_iter().find(|region| region.name() == text).ok_or(UnknownRegion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_region_has_a_unique_name_and_two_unique_domains() {
        let mut hosts = std::collections::HashSet::new();
        for region in Region::ALL {
            assert_eq!(region.name().parse::<Region>(), Ok(region));
            assert!(hosts.insert(region.host()), "{region}");
            assert!(hosts.insert(region.standby_host()), "{region}");
        }
    }

    #[test]
    fn region_names_are_case_sensitive_and_exact() {
        for text in ["", "Singapore", "singapore ", "silicon_valley", "saudi"] {
            assert_eq!(text.parse::<Region>(), Err(UnknownRegion), "{text:?}");
        }
    }
}
