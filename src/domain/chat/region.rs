//! The regions of Chat and their domains.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

/// The data center of an app. Each app is in exactly one; the domain of another region answers 60026.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Region(&'static RegionRow);

#[derive(Debug, PartialEq, Eq, Hash)]
struct RegionRow {
    name: &'static str,
    primary: &'static str,
    standby: &'static str,
    note: Note,
}

/// A remark about a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Note {
    None,
    /// Only older pages of the vendor list the region.
    Legacy,
    /// No page of the vendor names the standby domain.
    StandbyUndocumented,
}

/// `regions.csv` has the columns region, primary, standby, note, and doc (the source page), in the order of the vendor
/// page "RESTful API Overview" (1047/34620). No cell is quoted.
static REGIONS: LazyLock<Vec<RegionRow>> = LazyLock::new(|| {
    include_str!("regions.csv").lines().skip(1).map(|line| row(line).expect("a row of the built-in table")).collect()
});

impl Region {
    /// Iterates over all regions, in the order of the table.
    pub fn all() -> impl Iterator<Item = Region> {
        REGIONS.iter().map(Region)
    }

    /// The name used in the configuration.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// The primary domain.
    pub fn host(self) -> &'static str {
        self.0.primary
    }

    /// The standby domain: the same data center, for when the primary domain cannot be reached.
    pub fn standby_host(self) -> &'static str {
        self.0.standby
    }

    /// Whether the vendor documents the standby domain. An undocumented one follows the pattern of the other names.
    pub fn has_documented_standby(self) -> bool {
        self.0.note != Note::StandbyUndocumented
    }

    /// Whether only older pages of the vendor list the region.
    pub fn is_legacy(self) -> bool {
        self.0.note == Note::Legacy
    }
}

fn row(line: &'static str) -> Option<RegionRow> {
    let mut columns = line.splitn(5, ',');
    Some(RegionRow {
        name: columns.next()?,
        primary: columns.next()?,
        standby: columns.next()?,
        note: match columns.next()? {
            "" => Note::None,
            "legacy" => Note::Legacy,
            "standby_undocumented" => Note::StandbyUndocumented,
            _ => return None,
        },
    })
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text does not name a region of Chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownRegion;

impl std::error::Error for UnknownRegion {}

impl fmt::Display for UnknownRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Region::all().map(Region::name).collect();
        write!(f, "unknown region; valid regions: {}", names.join(", "))
    }
}

impl FromStr for Region {
    type Err = UnknownRegion;

    fn from_str(text: &str) -> Result<Self, UnknownRegion> {
        Region::all().find(|region| region.name() == text).ok_or(UnknownRegion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_region_has_a_unique_name_and_two_unique_domains() {
        let mut hosts = std::collections::HashSet::new();
        for region in Region::all() {
            assert_eq!(region.name().parse::<Region>(), Ok(region));
            assert!(hosts.insert(region.host()), "{region}");
            assert!(hosts.insert(region.standby_host()), "{region}");
        }
    }

    #[test]
    fn notes_mark_a_legacy_region_and_an_undocumented_standby() {
        let named = |filter: fn(&Region) -> bool| Region::all().filter(filter).map(Region::name).collect::<Vec<_>>();
        assert_eq!(named(|region| region.is_legacy()), ["mumbai"]);
        assert_eq!(named(|region| !region.has_documented_standby()), ["riyadh"]);
    }

    #[test]
    fn region_names_are_case_sensitive_and_exact() {
        for text in ["", "Singapore", "singapore ", "silicon_valley", "saudi"] {
            assert_eq!(text.parse::<Region>(), Err(UnknownRegion), "{text:?}");
        }
    }

    #[test]
    fn message_about_an_unknown_region_lists_all() {
        let message = UnknownRegion.to_string();
        assert!(Region::all().all(|region| message.contains(region.name())), "{message}");
        assert!(message.len() <= 120, "{message}");
    }
}
