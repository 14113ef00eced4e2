"""
The Lua scripts of the Redis store. Each has one key.
"""

from __future__ import annotations

from typing import Final

from live_cache.redis_connection import Script

__all__ = ["COMPARE_AND_SWAP", "GET_WITH_EXPIRY", "INCREMENT", "PERSIST"]

# The sum is read back as text, since Lua numbers hold no more than 53 bits. INCRBY itself keeps the time to live,
# checks the 64 bits, and refuses what is no integer. A default that leads to an error is taken back.
INCREMENT: Final = Script("""
local is_new = redis.call('EXISTS', KEYS[1]) == 0
if is_new then
  if ARGV[2] == '' then return {0} end
  redis.call('SET', KEYS[1], ARGV[2])
end
local answer = redis.pcall('INCRBY', KEYS[1], ARGV[1])
if type(answer) == 'table' and answer.err then
  if is_new then redis.pcall('DEL', KEYS[1]) end
  if string.sub(answer.err, 1, 4) ~= 'ERR ' then return answer end
  return {2, answer.err}
end
return {1, redis.call('GET', KEYS[1])}
""")

# ARGV: '1' or '0' for whether a value is expected, that value, the new one, milliseconds ('' never, '0' at once).
COMPARE_AND_SWAP: Final = Script("""
local held = redis.call('GET', KEYS[1])
if ARGV[1] == '1' then
  if held ~= ARGV[2] then return 0 end
elseif held then
  return 0
end
if ARGV[4] == '' then
  redis.call('SET', KEYS[1], ARGV[3])
elseif ARGV[4] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
end
return 1
""")

# In one step, so that no other value takes the key between the two and lends this one its time to live.
GET_WITH_EXPIRY: Final = Script("return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}")
PERSIST: Final = Script("redis.call('PERSIST', KEYS[1]) return redis.call('EXISTS', KEYS[1])")
