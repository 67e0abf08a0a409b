//! What Redis does in one step, in Lua. Every time is Redis' own, in microseconds since 1970, which Lua's
//! numbers hold exactly.

/// Begins every script: what time it is, and how times are written and read.
const TIME: &str = "
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local function text(moment) return string.format('%.0f', moment) end
local function mark(value)
  if value and string.sub(value, 1, 1) == '!' then return tonumber(string.sub(value, 2)) or 0 end
  return 0
end
";

/// The time. Whatever was kept before a Redis that has lost something is void: one that was started again, or
/// is another one than before, or was emptied.
///
/// Something is written every now and then, whoever beats: one that takes no writes, as a primary that has become a
/// replica or one without room, is not to be taken for a good one as long as everybody only reads.
///
/// KEYS: since when what is kept counts; the run of Redis that it was kept by; when this was written last. ARGV: this
/// run.
pub(super) const BEAT: &str = "
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  redis.call('SET', KEYS[2], ARGV[1])
  redis.call('SET', KEYS[1], text(now))
elseif redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('SET', KEYS[1], text(now))
end
local written = tonumber(redis.call('GET', KEYS[3]) or '')
if not written or written > now or now - written >= 200000 then redis.call('SET', KEYS[3], text(now)) end
return now
";

/// Permits: GCRA, granted ahead of its time. Answers with the time, how long until the next moment can be
/// granted, and the moments, as distances from the time.
///
/// KEYS: since when what is kept counts; the next free moment of the command; that of the app's total, if it
/// has one. ARGV: how many; how far ahead; for each of the two its interval and its credit (what may be granted
/// at once after a rest, less one, in intervals).
///
/// A command that is not kept has rested, unless Redis has just lost what it kept: then it has nothing to
/// spend; nor has one whose moment was kept by another run, for after a failover the last ones may be missing. A
/// moment that is absurdly far off is from before Redis' clock was set back. The total is asked only
/// for what the command may do now, so that a slow command reserves nothing of it.
pub(super) const LEASE: &str = "
local wanted, ahead = tonumber(ARGV[1]), tonumber(ARGV[2])
local since = tonumber(redis.call('GET', KEYS[1]) or '')
if not since then
  since = now
  redis.call('SET', KEYS[1], text(now))
end
local next, step = {}, {}
for i = 1, #KEYS - 1 do
  local credit = tonumber(ARGV[2 + 2 * i])
  step[i] = tonumber(ARGV[1 + 2 * i])
  local kept = tonumber(redis.call('GET', KEYS[1 + i]) or '')
  if not kept and now - since >= 2000000 then kept = 0 end
  if kept and kept > 0 and kept < since then kept = since end
  if not kept or kept > now + ahead + 3000000 then kept = now + step[i] end
  next[i] = math.max(kept, now - credit)
end
local answer = {now, 0}
local hint = 0
for n = 1, wanted do
  local at = next[1]
  if next[2] then
    if at > now then hint = at - now break end
    at = math.max(at, next[2])
  end
  if at > now + ahead then hint = at - now - ahead break end
  answer[#answer + 1] = math.max(0, at - now)
  next[1] = at + step[1]
  if next[2] then next[2] = at + step[2] end
end
answer[2] = hint
if #answer > 2 then
  for i = 1, #KEYS - 1 do redis.call('SET', KEYS[1 + i], text(next[i]), 'PX', 600000) end
end
return answer
";

/// An eviction: from now on what was learned before is void, and the others are told.
///
/// KEYS: what is marked. ARGV: how long marks stay, in milliseconds; the channel; the message.
pub(super) const EVICT: &str = "
for _, key in ipairs(KEYS) do redis.call('SET', key, '!' .. text(now), 'PX', ARGV[1]) end
redis.call('PUBLISH', ARGV[2], ARGV[3])
return now
";

/// Keeps facts that were learned together, except those that were evicted since. Answers how many.
///
/// KEYS: since when what is kept counts; the app's mark; for each fact the marks of both users, and its own
/// name. ARGV: the moment before their lookup was sent; how long they are kept from then on, in milliseconds;
/// for each its entry.
pub(super) const STORE: &str = "
local sent = tonumber(ARGV[1])
local since = tonumber(redis.call('GET', KEYS[1]) or '')
local left = tonumber(ARGV[2]) - math.floor((now - sent) / 1000)
if not since or since >= sent or mark(redis.call('GET', KEYS[2])) >= sent then return 0 end
if left <= 0 or sent > now or now - sent > 30000000 then return 0 end
local kept = 0
for n = 1, #ARGV - 2 do
  local at = 3 * n
  local marks = redis.call('MGET', KEYS[at], KEYS[at + 1], KEYS[at + 2])
  if mark(marks[1]) < sent and mark(marks[2]) < sent and mark(marks[3]) < sent then
    redis.call('SET', KEYS[at + 2], ARGV[2 + n], 'PX', left)
    kept = kept + 1
  end
end
return kept
";

/// A script as Redis is given it.
pub(super) fn whole(body: &str) -> String {
    format!("{TIME}{body}")
}
