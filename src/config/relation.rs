//! `[relation]`: checks of relations that chatgate answers.

use super::section::Section;
use super::tree::Node;
use super::units::{ParseResult, boolean, count};
use crate::domain::relation::{FOLLOW, KINDS, RelationKind};

/// `[relation]`: checks of relations that chatgate answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Relation {
    /// Relations that are answered from the cache and by lookups; checks of others are relayed. Each once. Default: only
    /// `follow`.
    pub kinds: Vec<&'static RelationKind>,
    /// Maximum number of accounts per request, 1 to 10,000. Default 1000.
    pub max_to: usize,
    /// Maximum number of accounts in one call, 1 to 1000. Chat's own limit for the command applies too. Default 100.
    pub call_max: usize,
    /// Whether pairs may be flipped, that is, fetched from their other side. Default true.
    pub flip: bool,
}

impl Default for Relation {
    fn default() -> Self {
        Self { kinds: vec![&FOLLOW], max_to: 1000, call_max: 100, flip: true }
    }
}

impl Relation {
    /// Reads the section, also under its former name.
    pub(super) fn read(root: &mut Section<'_>) -> Self {
        let mut relation = Self::default();
        if root.has("follow_check") {
            if root.has("relation") {
                root.problem("follow_check", "the former name of [relation]; move its keys there");
            } else {
                root.warning("follow_check", "the former name of [relation]; rename it");
            }
            let mut section = root.section("follow_check");
            relation.read_shared_keys(&mut section);
            section.finish();
        }
        let mut section = root.section("relation");
        relation.read_shared_keys(&mut section);
        section.read("call_max", &mut relation.call_max, count(1..=1000));
        if let Some(kinds) = section.list("kinds", false, 0..=KINDS.len(), kind) {
            relation.kinds.clear();
            for (kind, location) in kinds {
                if relation.kinds.contains(&kind) {
                    let path = section.path_of("kinds");
                    section.problem_at(&location, &path, format_args!("\"{}\" is listed twice", kind.name));
                } else {
                    relation.kinds.push(kind);
                }
            }
            relation.kinds.sort_by_key(|kind| kind.index);
        }
        section.finish();
        relation
    }

    fn read_shared_keys(&mut self, section: &mut Section<'_>) {
        section.read("max_to", &mut self.max_to, count(1..=10_000));
        section.read("flip", &mut self.flip, boolean);
    }

    /// Returns the maximum number of accounts in one call that checks this relation.
    pub fn call_max_of(&self, kind: &RelationKind) -> usize {
        self.call_max.min(kind.call_max)
    }
}

fn kind(node: &Node) -> ParseResult<&'static RelationKind> {
    let named = node.text().and_then(|name| KINDS.into_iter().find(|kind| kind.name == name));
    named.ok_or_else(|| {
        let names: Vec<String> = KINDS.iter().map(|kind| format!("\"{}\"", kind.name)).collect();
        format!("must be one of {}", names.join(", "))
    })
}
