"""What has to happen in one step on the server. A script's writes reach the disk together or not at all."""

PUBLISH = """
-- Append a batch and return its ids. A batch that is sent again (its answer was lost) appends only what is missing.
-- KEYS: what this producer sent last.
-- ARGV: 1 when sent again, then MessagePack of {sequence, stream, table or false, key, data or false}.
local seen = {}
if ARGV[1] == '1' then
  local saved = redis.call('GET', KEYS[1])
  if saved then seen = cjson.decode(saved) end
end
local ids, sent = {}, {}
for i, entry in ipairs(cmsgpack.unpack(ARGV[2])) do
  local sequence, stream, table, key, data = unpack(entry)
  local id = seen[sequence]
  if not id then
    if data then
      id = redis.call('XADD', stream, '*', 'k', key, 'd', data)
    else
      id = redis.call('XADD', stream, '*', 'k', key)
    end
    if table and data then
      redis.call('HSET', table, key, id .. ' ' .. data)
    elseif table then
      redis.call('HDEL', table, key)
    end
  end
  sent[sequence], ids[i] = id, id
end
redis.call('SET', KEYS[1], cjson.encode(sent), 'EX', 120)
return ids
"""

BURY = """
-- Move a record into the DLQ, once.
-- KEYS: stream, DLQ. ARGV: group, id, key, data (empty for a tombstone), reason, oldest id to keep.
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then
  redis.call('XADD', KEYS[2], 'MINID', '~', ARGV[6], '*', 'k', ARGV[3], 'd', ARGV[4], 'reason', ARGV[5],
    'group', ARGV[1], 'position', ARGV[2])
end
"""

EXPIRE = """
-- Drop keys of a table unless they have changed meanwhile. KEYS: table. ARGV: key, value, key, value, ...
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
"""
