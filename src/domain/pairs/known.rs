//! Checks whose pairs are all cached, which are nearly all checks.
//!
//! Such a check asks nothing of Chat, so it needs nothing of what a [`CheckSession`](super::check::CheckSession) keeps
//! between its steps. [`KnownPairs::find`] answers it in one go, with the same result, or leaves it to a session.

use std::time::Duration;

use super::check::{CheckSummary, PairView};
use super::dedup::count_distinct;
use super::directives::{CacheDirectives, PairSources};
use super::pair::{Pair, Relation, UserKey};
use crate::domain::tick::Tick;

/// The pairs of a check, each of which is a hit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KnownPairs {
    /// The relation to each account, in the order of the request.
    pub relations: Vec<Relation>,
    pub summary: CheckSummary,
}

impl KnownPairs {
    /// Returns the pairs of `from` with each of `to`, or `None` if one of them is not cached, is not fresh enough for
    /// the directives and for `cache.ttl`, or may be from before a write.
    pub(crate) fn find(
        view: PairView<'_>,
        from: UserKey,
        to: &[UserKey],
        directives: &CacheDirectives,
        ttl: Duration,
        now: Tick,
    ) -> Option<Self> {
        let age_max = directives.hit_age_max(ttl);
        if age_max.is_zero() {
            return None;
        }
        let pairs = to.iter().map(|to| Pair { from, to: *to });
        let cached = view.cache.get_all(pairs.clone().map(Pair::key))?;
        let oldest = cached.iter().map(|cached| cached.sent).min()?;
        if oldest <= now.before(age_max) {
            return None;
        }
        // Only now: a write that was acknowledged before its pair was read has its mark by then.
        let is_after_every_write = oldest > view.fence.latest_mark();
        if !is_after_every_write
            && !pairs.clone().zip(&cached).all(|(pair, cached)| view.fence.admits(pair, cached.sent))
        {
            return None;
        }
        let relations = pairs.zip(&cached).map(|(pair, cached)| pair.seen_from(cached.stored)).collect();
        let sources = PairSources { hit: count_distinct(to), ..PairSources::default() };
        Some(Self {
            relations,
            summary: CheckSummary { sources, oldest: now.since(oldest), ..CheckSummary::default() },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::*;

    use super::super::cache::{CachedPair, PairCache};
    use super::super::check::{CheckOptions, CheckSession, CheckStep};
    use super::super::directives::Source;
    use super::super::fence::Fence;
    use super::super::item::Item;
    use super::super::pair::{Sides, UserHasher};
    use super::*;
    use crate::domain::policy::stale_gate::StaleGate;

    const TTL: Duration = Duration::from_secs(30);
    /// The moment of a check, in seconds: cached pairs and marks are up to this old.
    const NOW: u64 = 60;

    fn user(number: usize) -> UserKey {
        UserHasher::new(&[7; 16]).user(&format!("user{number}"))
    }

    fn seconds(number: u64) -> Tick {
        Tick::from_micros(number * 1_000_000)
    }

    /// What a mark voids.
    #[derive(Debug, Clone, Copy)]
    enum Marked {
        Pair(usize),
        User(usize),
        App,
    }

    /// A moment, and a check at it.
    #[derive(Debug)]
    struct Case {
        /// Account, relation, when it was sent, and whether it was stored from the other side.
        cached: Vec<(usize, i64, u64, bool)>,
        marks: Vec<(Marked, u64)>,
        to: Vec<usize>,
        directives: CacheDirectives,
        while_revalidate: Duration,
        stale_if_error: Duration,
        chat_fails: bool,
    }

    /// Accounts are numbered from 1; `From_Account` is 0.
    const ACCOUNTS: Range<usize> = 1..6;

    fn directives() -> impl Strategy<Value = CacheDirectives> {
        let age = || proptest::option::weighted(0.3, (0..50u64).prop_map(Duration::from_secs));
        let rarely = || proptest::bool::weighted(0.1);
        (rarely(), rarely(), rarely(), age(), age()).prop_map(
            |(no_cache, no_store, only_if_cached, max_age, max_stale)| CacheDirectives {
                no_cache,
                no_store,
                max_age,
                max_stale,
                only_if_cached,
            },
        )
    }

    fn cases() -> impl Strategy<Value = Case> {
        // Mostly young pairs and old marks, so that many cases have an answer.
        let sent = prop_oneof![1..=NOW, NOW - 25..=NOW, NOW - 25..=NOW];
        let cached = proptest::collection::vec((ACCOUNTS, 0..4i64, sent, any::<bool>()), 0..16);
        let marked =
            prop_oneof![ACCOUNTS.prop_map(Marked::Pair), (0..6usize).prop_map(Marked::User), Just(Marked::App)];
        let marks = proptest::collection::vec((marked, prop_oneof![1..=NOW, 1..=NOW - 25]), 0..3);
        let to = proptest::collection::vec(ACCOUNTS, 1..7);
        let span = || prop_oneof![Just(Duration::ZERO), Just(Duration::from_secs(10))];
        (cached, marks, to, directives(), span(), span(), any::<bool>()).prop_map(
            |(cached, marks, to, directives, while_revalidate, stale_if_error, chat_fails)| Case {
                cached,
                marks,
                to,
                directives,
                while_revalidate,
                stale_if_error,
                chat_fails,
            },
        )
    }

    /// Answers a case both ways. Returns whether the pairs were known.
    fn compare(case: &Case) -> Result<bool, TestCaseError> {
        let (cache, fence, stale_gate) = (PairCache::new(64), Fence::with_slots(16, 16), StaleGate::default());
        let pair = |account: usize| Pair { from: user(0), to: user(account) };
        for &(account, relation, sent, is_flipped) in &case.cached {
            let seen = Relation::new(relation).expect("0 to 3");
            let pair = if is_flipped { pair(account).flipped() } else { pair(account) };
            cache.insert(pair.key(), CachedPair { stored: pair.stored_as(seen), sent: seconds(sent) });
        }
        for &(marked, at) in &case.marks {
            match marked {
                Marked::Pair(account) => fence.mark_pair(pair(account).key(), seconds(at)),
                Marked::User(number) => fence.mark_user(user(number), seconds(at)),
                Marked::App => fence.mark_all(seconds(at)),
            }
        }
        stale_gate.record(case.chat_fails, seconds(NOW));
        let view = PairView { cache: &cache, fence: &fence, stale_gate: &stale_gate };
        let to: Vec<UserKey> = case.to.iter().map(|account| user(*account)).collect();
        let known = KnownPairs::find(view, user(0), &to, &case.directives, TTL, seconds(NOW));

        let options = CheckOptions {
            directives: case.directives,
            ttl: TTL,
            stale_if_error: case.stale_if_error,
            stale_while_revalidate: case.while_revalidate,
            partial: false,
            sides: Sides::Both,
        };
        let mut session = CheckSession::new(case.to.iter().map(|account| pair(*account)), options);
        session.scan(view, seconds(NOW));
        let (step, summary) = (session.next(view), session.summary());
        let Some(known) = known else {
            let oldest = summary.oldest < case.directives.hit_age_max(TTL);
            let all_hits = step == CheckStep::Respond && !summary.served_stale && summary.sources.stale == 0;
            prop_assert!(!all_hits || !oldest, "a check of hits is declined: {:?}", summary);
            return Ok(false);
        };
        prop_assert_eq!((step, summary), (CheckStep::Respond, known.summary));
        prop_assert!(!session.has_due());
        prop_assert_eq!(known.relations.len(), case.to.len());
        for (account, relation) in known.relations.iter().enumerate() {
            let answer = session.answer(account).expect("the check is complete");
            prop_assert_eq!((&answer.item, answer.source), (&Item::Known(*relation), Source::Hit));
        }
        Ok(true)
    }

    #[test]
    fn known_pairs_answer_as_a_session_does() {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(4000));
        let known = std::cell::Cell::new(0);
        let result = runner.run(&cases(), |case| {
            known.set(known.get() + u32::from(compare(&case)?));
            Ok(())
        });
        assert!(result.is_ok(), "{result:?}");
        assert!((400..3600).contains(&known.get()), "{} of 4000 cases are known", known.get());
    }

    /// A mark of one pair does not keep checks of others from being answered, however many writes there are.
    #[test]
    fn only_marks_of_its_own_pairs_make_a_check_unknown() {
        let (cache, fence, stale_gate) = (PairCache::new(64), Fence::default(), StaleGate::default());
        let view = PairView { cache: &cache, fence: &fence, stale_gate: &stale_gate };
        let pair = |to: usize| Pair { from: user(0), to: user(to) };
        for to in ACCOUNTS {
            cache.insert(pair(to).key(), CachedPair { stored: Relation::NONE, sent: seconds(50) });
        }
        let find = |to: &[UserKey]| {
            KnownPairs::find(view, user(0), to, &CacheDirectives::default(), TTL, seconds(NOW)).is_some()
        };
        fence.mark_pair(pair(1).key(), seconds(55));
        assert!(find(&[user(2), user(3)]));
        assert!(!find(&[user(2), user(1)]));
        assert!(!find(&[user(2), user(7)]), "one pair is not cached");
        fence.mark_user(user(0), seconds(50));
        assert!(!find(&[user(2)]), "a result of the same moment may be from before the write");
    }
}
