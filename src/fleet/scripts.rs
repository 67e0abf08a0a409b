//! Lua scripts, which Redis runs atomically.
//!
//! All times are on Redis' clock, in microseconds since 1970. Lua's numbers represent them exactly.

/// The start of every script: the time, and functions that write and read times and publish invalidations.
///
/// `publish` publishes the messages that wait under the key `pending`, and `message` after them, unless it has published
/// less than 50 ms ago: then the message waits too. So a subscriber receives at most 20 messages per second, however
/// many invalidations there are, and the first one after a quiet 50 ms at once. Messages that fill 32 KiB do not wait.
/// Returns the time until the waiting messages are due, or 0 if none waits.
const PRELUDE: &str = "
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local function text(time) return string.format('%.0f', time) end
local function mark(value)
  if value and string.sub(value, 1, 1) == '!' then return tonumber(string.sub(value, 2)) or 0 end
  return 0
end
local function publish(pending, published, command, channel, message)
  local len = redis.call('STRLEN', pending) + #message
  if len == 0 then return 0 end
  local last = tonumber(redis.call('GET', published) or '')
  if last and last <= now and now - last < 50000 and len < 32768 then
    if message ~= '' then redis.call('APPEND', pending, message) end
    return last + 50000 - now
  end
  redis.call(command, channel, (redis.call('GET', pending) or '') .. message)
  redis.call('DEL', pending)
  redis.call('SET', published, text(now))
  return 0
end
";

/// The heartbeat, which returns the time, the time until the waiting invalidations are due, and the time before which
/// everything is void. If the last one changes, waiting invalidations may be lost too. Everything in Redis becomes void if
/// Redis has lost data: after a restart, a failover, or a flush.
///
/// About every 200 ms one heartbeat of the fleet also writes a key. A Redis that rejects writes is thus noticed even
/// if all replicas only read: a primary that has become a replica, or one that is out of memory. If the key is from the
/// future, the clock was set back. Then everything from before is void: its times are later than those of the next
/// invalidations. No heartbeat is as far apart from the next one as the added time. The same time is
/// added in another run with data of the former one, whose clock may have been ahead.
///
/// KEYS: the time before which everything is void; the run of Redis that the data belongs to; the time of the last
/// write; a key that never exists; the waiting invalidations; the time of the last publication. ARGV: the current run;
/// the command that publishes; the channel.
///
/// While a Redis Cluster moves the app's keys from one node to another, it rejects every script with a key that is not
/// there. So the heartbeat fails from the beginning of the move to its end, and not only those scripts that happen to
/// need a moved key.
pub(super) const HEARTBEAT: &str = "
local written = tonumber(redis.call('GET', KEYS[3]) or '')
local is_other_run = redis.call('GET', KEYS[2]) ~= ARGV[1]
if is_other_run then redis.call('SET', KEYS[2], ARGV[1]) end
if written and (is_other_run or written > now) then
  redis.call('SET', KEYS[1], text(math.max(now, written) + 500000))
elseif is_other_run or redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('SET', KEYS[1], text(now))
end
if not written or written > now or now - written >= 200000 then redis.call('SET', KEYS[3], text(now)) end
local due = publish(KEYS[5], KEYS[6], ARGV[2], ARGV[3], '')
return {now, due, tonumber(redis.call('GET', KEYS[1])) or 0}
";

/// A lease of permits: GCRA, granted ahead of time. Returns the time; the time until the next moment can be granted; 1 if
/// that moment depends on the total quota, else 0; and the granted moments, as distances from the time.
///
/// KEYS: the time before which everything is void; the next free moment of the command; that of the app's total quota,
/// if it has one. ARGV: the number of permits; how far ahead to grant; for each of the two quotas its interval and its
/// credit (the burst less one, in intervals).
///
/// A quota without a key is idle and has its burst, unless Redis has just lost its data. Then it has no burst. The same
/// holds for a quota that was written in another run, because after a failover its last moments may be missing. A
/// moment too far in the future is from before Redis' clock was set back. The total quota is used only for moments that
/// the command's own quota grants now, so a slow command reserves nothing of it.
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
  local stored = tonumber(redis.call('GET', KEYS[1 + i]) or '')
  if not stored and now - since >= 2000000 then stored = 0 end
  if stored and stored > 0 and stored < since then stored = since end
  if not stored or stored > now + ahead + 3000000 then stored = now + step[i] end
  next[i] = math.max(stored, now - credit)
end
local reply = {now, 0, 0}
local hint, by_total = 0, 0
for n = 1, wanted do
  local at = next[1]
  if next[2] then
    if at > now then hint = at - now break end
    at = math.max(at, next[2])
  end
  if at > now + ahead then
    hint = at - now - ahead
    if next[2] then by_total = 1 end
    break
  end
  reply[#reply + 1] = math.max(0, at - now)
  next[1] = at + step[1]
  if next[2] then next[2] = at + step[2] end
end
reply[2], reply[3] = hint, by_total
if #reply > 3 then
  for i = 1, #KEYS - 1 do redis.call('SET', KEYS[1 + i], text(next[i]), 'PX', 600000) end
end
return reply
";

/// An invalidation: marks make earlier pairs void, and the message reaches the other replicas, at once or with the next
/// ones. Returns the time until the waiting messages are due, or 0 if none waits.
///
/// KEYS: the waiting invalidations; the time of the last publication; the marks. ARGV: the lifetime of the marks, in
/// milliseconds; the command that publishes; the channel; the message.
pub(super) const INVALIDATE: &str = "
for n = 3, #KEYS do redis.call('SET', KEYS[n], '!' .. text(now), 'PX', ARGV[1]) end
return publish(KEYS[1], KEYS[2], ARGV[2], ARGV[3], ARGV[4])
";

/// A store of the pairs of one lookup, except for pairs that were invalidated since. Returns the number of stored pairs.
///
/// KEYS: the time before which everything is void; the app's mark; for each pair the marks of both users, and its own
/// key. ARGV: a time before the lookup was sent; the lifetime of the pairs from then on, in milliseconds; for each pair
/// its entry.
pub(super) const STORE: &str = "
local sent = tonumber(ARGV[1])
local since = tonumber(redis.call('GET', KEYS[1]) or '')
local left = tonumber(ARGV[2]) - math.floor((now - sent) / 1000)
if not since or since >= sent or mark(redis.call('GET', KEYS[2])) >= sent then return 0 end
if left <= 0 or sent > now or now - sent > 30000000 then return 0 end
local stored = 0
for n = 1, #ARGV - 2 do
  local at = 3 * n
  local marks = redis.call('MGET', KEYS[at], KEYS[at + 1], KEYS[at + 2])
  if mark(marks[1]) < sent and mark(marks[2]) < sent and mark(marks[3]) < sent then
    redis.call('SET', KEYS[at + 2], ARGV[2 + n], 'PX', left)
    stored = stored + 1
  end
end
return stored
";

/// Returns the whole text of a script.
pub(super) fn with_prelude(body: &str) -> String {
    format!("{PRELUDE}{body}")
}
