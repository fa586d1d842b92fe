"""The twin of `limits.states` in Lua, for one atomic step in Redis.

Numbers are doubles there: whole ones are exact up to 2 to the 53rd, so products are taken apart,
and what Python can count in larger numbers (the cost of a pace's units) comes as an argument.

Numbers go in, out and into records as doubles of eight bytes, which is a quarter of what it takes
to write and read them as text. A record is its kind, the greatest time that it has seen, the
limit's amount and its window (of a pace what one unit takes), for who looks at it, and its state.
"""

from __future__ import annotations

SCRIPT = r"""
local what = ARGV[1]
local clock = redis.call('TIME')
local wall = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local SLOTS, LEASE, SECOND = 60, 30000000, 1000000

local function slot_of(now, window)
  local whole = math.floor(now / window)
  return whole * SLOTS + math.floor((now - whole * window) * SLOTS / window)
end

local function gone_at(slot, window)
  local after = slot + SLOTS + 1
  local whole = math.floor(after / SLOTS)
  return whole * window + math.ceil((after - whole * SLOTS) * window / SLOTS)
end

-- Each kind: expire, fits, take, settle, outcome, expires; s is the state. Made when it is needed.
local function make_window()
local window = {}
function window.expire(s, d)
  if #s < 2 then return end
  local oldest = slot_of(d.now, d.window) - SLOTS
  local kept, position = {s[1]}, 2
  while position <= #s and s[position] < oldest do
    kept[1] = kept[1] - s[position + 1]
    position = position + 3
  end
  if position == 2 then return end
  for i = position, #s do kept[#kept + 1] = s[i] end
  for i = 1, math.max(#s, #kept) do s[i] = kept[i] end
end
function window.fits(s, d) return (s[1] or 0) + d.units <= d.amount end
function window.add(s, d, units)
  local slot = slot_of(d.now, d.window)
  if #s > 3 and s[#s - 2] >= slot then
    slot = s[#s - 2]
    s[#s - 1] = s[#s - 1] + units
  else
    if #s == 0 then s[1] = 0 end
    local last = #s
    s[last + 1], s[last + 2], s[last + 3] = slot, units, 0
  end
  s[1] = s[1] + units
  return slot
end
function window.take(s, d)
  local slot = window.add(s, d, d.units)
  s[#s] = s[#s] + d.units
  return slot
end
function window.settle(s, d)
  local more, known = d.used - d.units, 0
  for i = 2, #s, 3 do
    if s[i] == d.mark then
      known = 1
      s[i + 2] = s[i + 2] - math.min(d.units, s[i + 2])
      if more < 0 then
        local back = math.min(-more, s[i + 1])
        s[i + 1] = s[i + 1] - back
        s[1] = s[1] - back
      end
      break
    end
  end
  if more > 0 then
    window.add(s, d, more)
    return 1
  end
  return known
end
function window.outcome(s, d, units)
  local total, wait, reset = s[1] or 0, 0, 0
  if #s > 1 then reset = math.max(0, gone_at(s[2], d.window) - d.now) end
  if units > 0 then
    local excess = total + units - d.amount
    for i = 2, #s, 3 do
      if excess <= 0 then break end
      excess = excess - s[i + 1]
      wait = gone_at(s[i], d.window) - d.now
    end
  end
  return d.amount - total, reset, math.max(0, wait)
end
function window.expires(s, d)
  if #s > 1 then return gone_at(s[#s - 2], d.window) end
  return 0
end
return window
end

local function make_pace()
local pace = {}
function pace.expire(s, d) if s[1] and s[1] <= d.now then s[1] = nil; s[2] = nil end end
function pace.ahead(s, d) return s[1] and s[1] - d.now or 0 end
function pace.fits(s, d) return pace.ahead(s, d) + d.cost <= d.amount end
function pace.add(s, d, time)
  if not s[1] then s[1] = d.now; s[2] = 0 end
  s[1] = s[1] + time
end
function pace.take(s, d)
  pace.add(s, d, d.cost)
  s[2] = s[2] + d.cost
  return 0
end
function pace.settle(s, d)
  if s[1] then s[2] = s[2] - math.min(d.cost, s[2]) end
  if d.used > d.units then
    pace.add(s, d, d.cost_used)
  elseif s[1] then
    s[1] = s[1] - math.min(d.cost - d.cost_used, s[1] - d.now)
  end
  return s[1] and 1 or 0
end
function pace.outcome(s, d, units)
  local ahead = pace.ahead(s, d)
  local wait = units > 0 and ahead + d.cost - d.amount or 0
  return math.floor((d.amount - ahead) / d.one), math.min(ahead, d.one), math.max(0, wait)
end
function pace.expires(s, d) return s[1] or 0 end
return pace
end

local function make_period()
local period = {}
function period.expire(s, d)
  if s[1] and d.begins > s[1] then for i = 1, 4 do s[i] = nil end end
end
function period.fits(s, d) return (s[2] or 0) + d.units <= d.amount end
function period.add(s, d, units)
  if not s[1] then s[1], s[2], s[3], s[4] = d.begins, 0, d.now + d.ends, 0 end
  s[2] = s[2] + units
end
function period.take(s, d)
  period.add(s, d, d.units)
  s[4] = s[4] + d.units
  return s[1]
end
function period.settle(s, d)
  if s[1] and s[1] == d.mark then
    s[4] = s[4] - math.min(d.units, s[4])
    s[2] = s[2] - math.min(math.max(0, d.units - d.used), s[2])
  end
  if d.used > d.units then period.add(s, d, d.used - d.units) end
  return s[1] and 1 or 0
end
function period.outcome(s, d, units)
  local used = s[2] or 0
  local wait = 0
  if units > 0 and used + units > d.amount then wait = d.ends end
  return d.amount - used, used > 0 and d.ends or 0, wait
end
function period.expires(s, d) return s[3] or 0 end
return period
end

local function make_leases()
local leases = {}
function leases.expire(s, d)
  local kept = {}
  for i = 1, #s, 2 do
    if s[i + 1] > d.now then
      kept[#kept + 1] = s[i]
      kept[#kept + 1] = s[i + 1]
    end
  end
  for i = 1, #s do s[i] = kept[i] end
end
function leases.fits(s, d) return #s / 2 + d.units <= d.amount end
function leases.take(s, d)
  s[#s + 1] = d.mark
  s[#s + 1] = d.now + LEASE
  return d.mark
end
function leases.settle(s, d)
  for i = 1, #s, 2 do
    if s[i] == d.mark then
      if d.used == d.units then
        s[i + 1] = d.now + LEASE
      else
        table.remove(s, i)
        table.remove(s, i)
      end
      return 1
    end
  end
  return 0
end
function leases.outcome(s, d, units)
  local held = #s / 2
  return d.amount - held, 0, units > 0 and held + units > d.amount and SECOND or 0
end
function leases.expires(s, d)
  local last = 0
  for i = 2, #s, 2 do last = math.max(last, s[i]) end
  return last
end

return leases
end

local makers = {[0] = make_window, [1] = make_pace, [2] = make_period, [3] = make_leases}
local kinds = {}

local forms = {}
local function form(count)
  forms[count] = forms[count] or '>' .. string.rep('d', count)
  return forms[count]
end
-- In pieces where it must be: Lua's stack takes 8,000 values.
local MOST = 500
local function packed(numbers)
  if #numbers <= MOST then return struct.pack(form(#numbers), unpack(numbers)) end
  local pieces = {}
  for first = 1, #numbers, MOST do
    local last = math.min(first + MOST - 1, #numbers)
    pieces[#pieces + 1] = struct.pack(form(last - first + 1), unpack(numbers, first, last))
  end
  return table.concat(pieces)
end
local function unpacked(text)
  local count = #text / 8
  if count <= MOST then return {struct.unpack(form(count), text)} end
  local numbers = {}
  for before = 0, count - 1, MOST do
    local few = math.min(MOST, count - before)
    local some = {struct.unpack(form(few), text, before * 8 + 1)}
    for i = 1, few do numbers[before + i] = some[i] end
  end
  return numbers
end

local function load(key)
  local text = redis.call('GET', key)
  if not text then return 0, {} end
  local numbers, state = unpacked(text), {}
  for position = 5, #text / 8 do state[position - 4] = numbers[position] end
  return numbers[2], state
end

local given = unpacked(ARGV[2])
local loaded = {}
local demands = {}
for i, key in ipairs(KEYS) do
  local at = (i - 1) * 13
  local d = {
    key = key, kind = given[at + 1], amount = given[at + 2], window = given[at + 3],
    units = given[at + 4], mark = given[at + 5], used = given[at + 6], begins = given[at + 7],
    cost = given[at + 10], one = given[at + 11], cost_used = given[at + 12],
  }
  kinds[d.kind] = kinds[d.kind] or makers[d.kind]()
  local record = loaded[key]
  if not record then
    local seen, state = load(key)
    record = {now = math.max(seen, wall), state = state}
    loaded[key] = record
  end
  d.now, d.state = record.now, record.state
  -- The client's period, the one after it or the one before, by the server's clock.
  local ends = given[at + 8]
  if d.now >= ends then
    d.begins = ends
    ends = given[at + 9]
  elseif d.now < d.begins then
    ends = d.begins
    d.begins = given[at + 13]
  end
  d.ends = ends - d.now
  kinds[d.kind].expire(d.state, d)
  demands[i] = d
end

local function keep(d)
  if #d.state == 0 then
    redis.call('DEL', d.key)
    return
  end
  local length = d.kind == 1 and d.one or d.window
  local record = {d.kind, d.now, d.amount, length}
  for position, number in ipairs(d.state) do record[position + 4] = number end
  local left = kinds[d.kind].expires(d.state, d) - d.now
  local milliseconds = math.max(1, math.ceil(left / 1000)) + 1000
  redis.call('SET', d.key, packed(record), 'PX', milliseconds)
end

if what == 'settle' then
  local answer = {}
  for i, d in ipairs(demands) do
    answer[i] = kinds[d.kind].settle(d.state, d)
    keep(d)
  end
  return packed(answer)
end

local admitted = 1
for _, d in ipairs(demands) do
  if not kinds[d.kind].fits(d.state, d) then admitted = 0 end
end
local answer = {admitted}
for _, d in ipairs(demands) do
  local mark, units = 0, d.units
  if what == 'reserve' and admitted == 1 then
    mark = kinds[d.kind].take(d.state, d)
    units = 0
    keep(d)
  end
  local remaining, reset, wait = kinds[d.kind].outcome(d.state, d, units)
  answer[#answer + 1] = remaining
  answer[#answer + 1] = reset
  answer[#answer + 1] = wait
  answer[#answer + 1] = mark
end
return packed(answer)
"""
