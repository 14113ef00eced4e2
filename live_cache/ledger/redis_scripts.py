"""
The Lua scripts of the Redis ledger, for Redis 6.2 and later. Each has one key and is one atomic step.

A clock is a hash: ``e`` epoch, ``q`` seq, ``i`` identity of the server that it was born on, ``n`` open intents, and one
field per slot that was ever ticked. An intent is a line: id, deadline in microseconds, slots, fence, record in base64.

The log is one field ``l<seq>`` per record that is kept, ``f`` the newest seq whose record is not, and ``b`` the bytes
of all. A record begins with ``r`` and is as it is, or with ``b`` and is in base64, as the reaped intent had it.
"""

from __future__ import annotations

from typing import Final

from live_cache.ledger.clocks import LOG_BYTES, LOG_LENGTH
from live_cache.redis_connection import Script

__all__ = ["DECLARE", "EXPIRED", "LOG", "READ", "REAP", "RESET", "TICK"]

# The identity is asked in the same atomic step as everything else: a connection may outlive the role of its server
# (REPLICAOF closes no connection), and so must not remember it. A server gets a new replication id when it starts and
# when it is promoted, which is when it may have lost the last ticks.
_PRIMARY: Final = """
local info = redis.call('INFO', 'replication')
if not string.find(info, 'role:master', 1, true) then
  return redis.error_reply('READONLY A ledger is read and written on the primary only.')
end
local identity = string.match(info, 'master_replid:(%x+)')
if not identity then
  return redis.error_reply('ERR INFO replication has no master_replid, which a ledger needs to notice a failover.')
end
"""

_NOW: Final = """
local function now_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end
"""

_WITHOUT: Final = """
local function without(intents, id)
  local kept = {}
  for line in string.gmatch(intents, '[^\\n]+') do
    if string.match(line, '^%S+') ~= id then kept[#kept + 1] = line .. '\\n' end
  end
  return table.concat(kept), #kept
end
"""

# An empty message on the channel that is called as the clock's key. A user who may not publish there wakes nobody.
_WAKE: Final = """
local function wake() redis.pcall('PUBLISH', KEYS[1], '') end
"""

_BEAR: Final = (
    _NOW
    + _WITHOUT
    + _WAKE
    + """
local function bear(epoch, lease_us, identity, intents)
  local hold = string.format('newborn %.0f 0  \\n', now_us() + tonumber(lease_us))
  intents = without(intents, 'newborn') .. hold
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'e', epoch, 'q', 0, 'i', identity, 'n', intents)
  wake()
end
"""
)

# A change that cannot be recorded because the memory is full must not leave a clock that looks as if nothing had
# changed. A clock that is gone is safe; the next one has another epoch and a hold.
_TICK: Final = f"""
local function failed(answer) return type(answer) == 'table' and answer.err end

local function log_field(seq) return string.format('l%.0f', seq) end

local function trim(seq, added)
  local held = redis.call('HMGET', KEYS[1], 'f', 'b')
  local floor, bytes = tonumber(held[1]) or 0, (tonumber(held[2]) or 0) + added
  if added == 0 and floor >= seq - {LOG_LENGTH} then return end
  while floor < seq - {LOG_LENGTH} or bytes > {LOG_BYTES} do
    floor = floor + 1
    bytes = bytes - redis.call('HSTRLEN', KEYS[1], log_field(floor))
    redis.call('HDEL', KEYS[1], log_field(floor))
  end
  return redis.pcall('HSET', KEYS[1], 'f', floor, 'b', bytes)
end

local function tick(slots, record)
  local seq = redis.pcall('HINCRBY', KEYS[1], 'q', 1)
  local answer = seq
  if record ~= '' and not failed(answer) then
    answer = redis.pcall('HSET', KEYS[1], log_field(seq), record)
  end
  if not failed(answer) then answer = trim(seq, #record) end
  for _, slot in ipairs(slots) do
    if failed(answer) then break end
    answer = redis.pcall('HSET', KEYS[1], slot, seq)
  end
  if failed(answer) then redis.call('DEL', KEYS[1]) end
  wake()
  return not failed(answer)
end
"""

READ: Final = Script(
    _PRIMARY
    + """
local held = redis.call('HMGET', KEYS[1], unpack(ARGV, 3))
if held[3] == identity then return held end
"""
    + _BEAR
    + """
bear(ARGV[1], ARGV[2], identity, held[4] or '')
return redis.call('HMGET', KEYS[1], unpack(ARGV, 3))
"""
)
"""ARGV: epoch and lease in us for a clock that must be born, then e, q, i, n and the slots to read."""

DECLARE: Final = Script(
    _PRIMARY
    + _BEAR
    + """
local intents = redis.call('HGET', KEYS[1], 'n')
if not intents then return 0 end
local others, count = without(intents, ARGV[1])
local answer
if count >= tonumber(ARGV[5]) then
  answer = redis.pcall('HGET', KEYS[1], 'i')
  bear(ARGV[6], ARGV[4], answer, others)
  return 2
end
local deadline = string.format('%.0f', now_us() + tonumber(ARGV[4]))
local slots, record = ARGV[2], ARGV[7]
if #others + #record > tonumber(ARGV[8]) then slots, record = '0', '' end
local line = table.concat({ARGV[1], deadline, slots, ARGV[3], record}, ' ') .. '\\n'
answer = redis.pcall('HSET', KEYS[1], 'n', others .. line)
if type(answer) == 'table' and answer.err then
  redis.call('DEL', KEYS[1])
  return 3
end
return 1
"""
)
"""
ARGV: id, slots, fence, lease in us, most intents, epoch for a clock with more, record in base64, most bytes of all
intents.

The intents of a clock with too many go on as those of a newborn clock. One that makes them too long for every reading
is told without its record, as a change of the table.
"""

TICK: Final = Script(
    _PRIMARY
    + _WITHOUT
    + _WAKE
    + _TICK
    + """
local intents = redis.call('HGET', KEYS[1], 'n')
if not intents then return 0 end
if #ARGV > 2 then
  local slots = {}
  for i = 3, #ARGV do slots[i - 2] = ARGV[i] end
  if not tick(slots, ARGV[2]) then return 2 end
end
if ARGV[1] ~= '' and string.find(intents, ARGV[1], 1, true) then
  redis.call('HSET', KEYS[1], 'n', (without(intents, ARGV[1])))
end
return 1
"""
)
"""ARGV: id of the intent that goes, or empty; record as the log has it, or empty; slots."""

REAP: Final = Script(
    _PRIMARY
    + _WITHOUT
    + _WAKE
    + _TICK
    + """
local held = redis.call('HMGET', KEYS[1], 'e', 'n')
if not held[1] or (ARGV[1] ~= '' and ARGV[1] ~= held[1]) then return 0 end
local intents = held[2]
for i = 2, #ARGV do
  for line in string.gmatch(held[2], '[^\\n]+') do
    local id, text, record = string.match(line, '^(%S+) %S+ (%S+) %S* (%S*)$')
    if id == ARGV[i] then
      local slots = {}
      for slot in string.gmatch(text, '%d+') do slots[#slots + 1] = slot end
      if record ~= '' then record = 'b' .. record end
      if not tick(slots, record) then return 2 end
      intents = without(intents, id)
    end
  end
end
redis.call('HSET', KEYS[1], 'n', intents)
return 1
"""
)
"""ARGV: epoch that the proof is about, or empty; ids."""

EXPIRED: Final = Script(
    _PRIMARY
    + _NOW
    + """
return {redis.call('HGET', KEYS[1], 'n') or '', string.format('%.0f', now_us())}
"""
)

# The identity again: after a failover the new server may go on counting in an epoch that nobody has ended yet.
LOG: Final = Script(
    _PRIMARY
    + """
local held = redis.call('HMGET', KEYS[1], 'e', 'i', 'q', 'f')
local after, last = tonumber(ARGV[2]), tonumber(ARGV[3])
if held[1] ~= ARGV[1] or held[2] ~= identity then return false end
if last > tonumber(held[3]) or after < (tonumber(held[4]) or 0) then return false end
local fields = {}
for seq = after + 1, last do fields[#fields + 1] = string.format('l%.0f', seq) end
if #fields == 0 then return {} end
return redis.call('HMGET', KEYS[1], unpack(fields))
"""
)
"""ARGV: epoch, and the seqs as Ledger.log() takes them. Nothing if not all are kept."""

RESET: Final = Script(
    _PRIMARY
    + _BEAR
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
bear(ARGV[1], ARGV[2], identity, '')
return 1
"""
)
"""ARGV: epoch, lease in us."""
