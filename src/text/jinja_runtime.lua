-- The run time of translated Jinja templates (jinja.h): Python's and Jinja's rules over Lua values.
--
-- Strings, integers, floats and booleans are Lua's. nil and U are "undefined", N is None. The others are
-- tables with a field t:
--   list, tuple  {t=, n=, [1..n]}          dict  {t="dict", k={keys in order}, m={key = value}}
--   namespace    {t="namespace", m=}        loop  {t="loop", m=}
--   markup       {t="markup", s=}: what |safe and |escape give; adding to it escapes
-- Functions take (kw, ...): keyword arguments as a table {names in order..., name = value} or nil, then
-- positional ones. Filters F and tests X take (value, kw, ...). P holds what is written in C: text by characters, JSON, numbers.
local P = ...
local R, F, X = {}, {}, {}
local U, N = {t = "undefined"}, {t = "none"}
local type, error, tostring, select, floor = type, error, tostring, select, math.floor
local is_integer = math.type
R.F, R.X, R.U, R.N = F, X, U, N
R.scope, R.join = P.scope, P.join

local function fail(...)
    P.fail(string.format(...))
end

setmetatable(F, {__index = function(_, name) fail("there is no filter '%s'", name) end})
setmetatable(X, {__index = function(_, name) fail("there is no test '%s'", name) end})

local function kind(v)
    local lua = type(v)
    if lua == "string" then return "str" end
    if lua == "number" then return is_integer(v) == "integer" and "int" or "float" end
    if lua == "boolean" then return "bool" end
    if lua == "nil" then return "undefined" end
    if lua == "table" then return v.t end
    return "function"
end

local function def(v)
    if v == nil then return U end
    return v
end
R.def = def

local function list_of(items, n, t)
    items.t, items.n = t or "list", n
    return items
end

local function is_list(v)
    return type(v) == "table" and (v.t == "list" or v.t == "tuple")
end

function R.dict(items, n)
    local keys, map, count = {}, {}, 0
    for i = 1, n, 2 do
        local key = items[i]
        if type(key) == "table" and key ~= N then fail("a %s cannot be a key", kind(key)) end
        if map[key] == nil then
            count = count + 1
            keys[count] = key
        end
        map[key] = items[i + 1]
    end
    return {t = "dict", k = list_of(keys, count), m = map}
end

-- str() and repr() ----------------------------------------------------------------------------------

local repr

local function repr_items(v)
    local out = {}
    for i = 1, v.n do out[i] = repr(v[i]) end
    return P.join(out, v.n, ", ")
end

local function repr_dict(v)
    local out, keys = {}, v.k
    for i = 1, keys.n do out[i] = repr(keys[i]) .. ": " .. repr(v.m[keys[i]]) end
    return "{" .. P.join(out, keys.n, ", ") .. "}"
end

local function str(v)
    local lua = type(v)
    if lua == "string" then return v end
    if lua == "number" then
        return is_integer(v) == "integer" and tostring(v) or P.float(v)
    end
    if lua == "boolean" then return v and "True" or "False" end
    if lua == "nil" or v == U then return "" end
    if lua == "function" then return "<function>" end
    local t = v.t
    if t == "none" then return "None" end
    if t == "markup" then return v.s end
    if t == "list" then return "[" .. repr_items(v) .. "]" end
    if t == "tuple" then
        return v.n == 1 and "(" .. repr(v[1]) .. ",)" or "(" .. repr_items(v) .. ")"
    end
    if t == "dict" then return repr_dict(v) end
    return "<" .. t .. ">"
end
R.str = str

function repr(v)
    if type(v) == "string" then return P.repr(v) end
    if v == U or v == nil then return "Undefined" end
    return str(v)
end

local function truth(v)
    local lua = type(v)
    if lua == "boolean" then return v end
    if lua == "nil" then return false end
    if lua == "string" then return v ~= "" end
    if lua == "number" then return v ~= 0 end
    if lua == "function" then return true end
    local t = v.t
    if t == "list" or t == "tuple" then return v.n > 0 end
    if t == "dict" then return v.k.n > 0 end
    if t == "markup" then return v.s ~= "" end
    return t ~= "none" and t ~= "undefined"
end
R.truth = truth

-- Operators -----------------------------------------------------------------------------------------

local function number(v)
    local lua = type(v)
    if lua == "number" then return v end
    if lua == "boolean" then return v and 1 or 0 end
    return nil
end

local function refuse(op, a, b)
    if a == nil or a == U or b == nil or b == U then
        fail("%s with a value that is undefined", op)
    end
    fail("%s cannot be applied to %s and %s", op, kind(a), kind(b))
end

local function both(op, a, b)
    local x, y = number(a), number(b)
    if not x or not y then refuse(op, a, b) end
    return x, y
end

local function concat_lists(a, b)
    local out, n = {}, a.n
    for i = 1, n do out[i] = a[i] end
    for i = 1, b.n do out[n + i] = b[i] end
    return list_of(out, n + b.n, a.t)
end

-- Markup is text everywhere but in additions.
local function plain(v)
    if type(v) == "table" and v.t == "markup" then return v.s end
    return v
end

local function escaped(v)
    if type(v) == "string" then return P.escape(v) end
    return type(v) == "table" and v.t == "markup" and v.s
end

local function add_markup(a, b)
    local x, y = escaped(a), escaped(b)
    if not x or not y then refuse("+", a, b) end
    return {t = "markup", s = x .. y}
end

function R.add(a, b)
    local lua = type(a)
    if lua == "string" and type(b) == "string" then return a .. b end
    if lua == "number" and type(b) == "number" then return a + b end
    if is_list(a) and is_list(b) and a.t == b.t then return concat_lists(a, b) end
    if plain(a) ~= a or plain(b) ~= b then return add_markup(a, b) end
    local x, y = both("+", a, b)
    return x + y
end

function R.sub(a, b)
    local x, y = both("-", a, b)
    return x - y
end

local function repeat_list(v, n)
    local out, count = {}, 0
    for _ = 1, n do
        for i = 1, v.n do
            count = count + 1
            out[count] = v[i]
        end
    end
    return list_of(out, count, v.t)
end

function R.mul(a, b)
    if is_integer(a) == "integer" then a, b = b, a end
    if is_integer(b) == "integer" then
        if type(a) == "string" then return string.rep(a, b) end
        if is_list(a) then return repeat_list(a, b) end
    end
    local x, y = both("*", a, b)
    return x * y
end

function R.div(a, b)
    local x, y = both("/", a, b)
    if y == 0 then fail("division by zero") end
    return x / y
end

function R.fdiv(a, b)
    local x, y = both("//", a, b)
    if y == 0 then fail("division by zero") end
    return x // y
end

function R.mod(a, b)
    if type(a) == "string" then
        if type(b) == "table" and b.t == "tuple" then return P.printf(a, table.unpack(b, 1, b.n)) end
        return P.printf(a, b)
    end
    local x, y = both("%", a, b)
    if y == 0 then fail("division by zero") end
    return x % y
end

function R.pow(a, b)
    local x, y = both("**", a, b)
    if is_integer(x) ~= "integer" or is_integer(y) ~= "integer" or y < 0 then return x ^ y end
    local result = 1
    while y > 0 do
        if y % 2 == 1 then result = result * x end
        x, y = x * x, y // 2
    end
    return result
end

function R.neg(a)
    return -(number(a) or refuse("-", a, a))
end

function R.pos(a)
    return number(a) or refuse("+", a, a)
end

local function eq(a, b)
    if a == b then return true end
    local x, y = type(a), type(b)
    if x ~= "table" or y ~= "table" then
        if x == "string" or y == "string" then return plain(a) == plain(b) end
        if x == "boolean" or y == "boolean" then
            local p, q = number(a), number(b)
            return p ~= nil and p == q
        end
        return (a == nil and b == U) or (b == nil and a == U)
    end
    if a.t ~= b.t then return false end
    if a.t == "list" or a.t == "tuple" then
        if a.n ~= b.n then return false end
        for i = 1, a.n do
            if not eq(a[i], b[i]) then return false end
        end
        return true
    end
    if a.t == "markup" then return a.s == b.s end
    if a.t ~= "dict" or a.k.n ~= b.k.n then return false end
    for i = 1, a.k.n do
        local key = a.k[i]
        if b.m[key] == nil or not eq(a.m[key], b.m[key]) then return false end
    end
    return true
end
R.eq = eq

-- -1, 0 or 1
local function compare(op, a, b)
    a, b = plain(a), plain(b)
    if type(a) == "string" and type(b) == "string" then return P.compare(a, b) end
    if is_list(a) and is_list(b) and a.t == b.t then
        for i = 1, math.min(a.n, b.n) do
            if not eq(a[i], b[i]) then return compare(op, a[i], b[i]) end
        end
        return a.n < b.n and -1 or a.n > b.n and 1 or 0
    end
    local x, y = both(op, a, b)
    return x < y and -1 or x > y and 1 or 0
end

function R.lt(a, b) return compare("<", a, b) < 0 end
function R.le(a, b) return compare("<=", a, b) <= 0 end
function R.gt(a, b) return compare(">", a, b) > 0 end
function R.ge(a, b) return compare(">=", a, b) >= 0 end

local function has(container, v)
    container, v = plain(container), plain(v)
    if type(container) == "string" then
        if type(v) ~= "string" then fail("'in' asks for a %s in a str", kind(v)) end
        return string.find(container, v, 1, true) ~= nil
    end
    if container == nil or container == U then return false end
    local t = type(container) == "table" and container.t
    if t == "dict" then return v ~= nil and container.m[v] ~= nil end
    if t ~= "list" and t ~= "tuple" then fail("'in' asks for an item of a %s", kind(container)) end
    for i = 1, container.n do
        if eq(container[i], v) then return true end
    end
    return false
end
R.has = has

-- Items and attributes ------------------------------------------------------------------------------

local methods = {str = {}, dict = {}, list = {}, tuple = {}}

local function bound(v, method)
    return function(kw, ...) return method(v, kw, ...) end
end

local function pairs_of(v)
    local out, keys = {}, v.k
    for i = 1, keys.n do out[i] = {t = "tuple", n = 2, keys[i], v.m[keys[i]]} end
    return list_of(out, keys.n)
end

local function get(v, name)
    v = plain(v)
    if v == nil or v == U then fail("attribute '%s' of a value that is undefined", name) end
    local t = kind(v)
    local of_kind = methods[t]
    local method = of_kind and of_kind[name]
    if method then return bound(v, method) end
    if t == "dict" or t == "namespace" or t == "loop" then return v.m[name] end
    return nil
end
R.get = get

local function item(v, key)
    v, key = plain(v), plain(key)
    if v == nil or v == U then
        fail("item %s of a value that is undefined", key == nil and "?" or repr(key))
    end
    if type(key) == "boolean" then key = key and 1 or 0 end
    local t = kind(v)
    if t == "dict" or t == "namespace" or t == "loop" then
        if key == nil then return nil end
        local found = v.m[key]
        if found == nil and type(key) == "string" then return get(v, key) end
        return found
    end
    if is_integer(key) == "integer" then
        if t == "list" or t == "tuple" then
            local i = key < 0 and key + v.n or key
            if i < 0 or i >= v.n then return nil end
            return v[i + 1]
        end
        if t == "str" then return P.character(v, key) end
    elseif type(key) == "string" then
        return get(v, key)
    end
    return nil
end
R.item = item

-- The first position, how many, and the step of v[from:to:step] of n items.
local function slice_range(n, from, to, step)
    step = (step == nil or step == N) and 1 or step
    if step == 0 then fail("a slice's step cannot be 0") end
    local low, high = step > 0 and 0 or -1, step > 0 and n or n - 1
    local function clamp(i, fallback)
        if i == nil or i == N then return fallback end
        if is_integer(i) ~= "integer" then fail("a slice takes integers, not %s", kind(i)) end
        if i < 0 then i = i + n end
        return i < low and low or i > high and high or i
    end
    from = clamp(from, step > 0 and low or high)
    to = clamp(to, step > 0 and high or low)
    local count = step > 0 and (to - from + step - 1) // step or (from - to - step - 1) // -step
    return from, count > 0 and count or 0, step
end

function R.slice(v, from, to, step)
    v = plain(v)
    if type(v) == "string" then
        local first, count, by = slice_range(P.length(v), from, to, step)
        return P.substring(v, first, count, by)
    end
    if v == nil or v == U then fail("a slice of a value that is undefined") end
    if not is_list(v) then fail("a slice of a %s", kind(v)) end
    local first, count, by = slice_range(v.n, from, to, step)
    local out = {}
    for i = 1, count do out[i] = v[first + (i - 1) * by + 1] end
    return list_of(out, count, v.t)
end

-- A list (or anything with 1..n) of what iteration gives, and n.
local function iter(v)
    v = plain(v)
    local lua = type(v)
    if lua == "string" then
        local out = P.characters(v)
        return out, out.n
    end
    if lua == "nil" then return {}, 0 end
    local t = lua == "table" and v.t
    if t == "list" or t == "tuple" then return v, v.n end
    if t == "dict" then return v.k, v.k.n end
    if t == "undefined" then return {}, 0 end
    fail("a %s cannot be iterated", kind(v))
end
R.iter = iter

function R.parts(v, n)
    local items, count = iter(v)
    if count ~= n then fail("expected %d values to unpack, found %d", n, count) end
    return table.unpack(items, 1, n)
end

function R.set_attribute(v, name, value)
    if type(v) ~= "table" or v.t ~= "namespace" then
        fail("cannot assign to attribute '%s': only a namespace has such", name)
    end
    v.m[name] = value
end

-- Macros that call one another without end would else run until the memory is full.
local depth

function R.begin()
    depth = 0
end

local function enter(f, kw, ...)
    depth = depth + 1
    if depth > 200 then fail("calls are nested more than 200 deep") end
    local v = f(kw, ...)
    depth = depth - 1
    return v
end

function R.call(f, code, kw, ...)
    if type(f) == "function" then return enter(f, kw, ...) end
    local name = string.match(code, '^s%d+%["([^"]*)"%]$') or code
    if f == nil or f == U then fail("'%s' is undefined and cannot be called", name) end
    fail("'%s' is a %s and cannot be called", name, kind(f))
end

function R.call_method(v, name, kw, ...)
    v = plain(v)
    local of_kind = methods[kind(v)]
    local method = of_kind and of_kind[name]
    if method then return method(v, kw, ...) end
    local f = get(v, name)
    if type(f) ~= "function" then fail("a %s has no method '%s'", kind(v), name) end
    return enter(f, kw, ...)
end

-- Binds a macro's arguments to its parameters in scope s; what is missing is U.
function R.bind(s, names, kw, ...)
    local n = select("#", ...)
    if n > #names then fail("a macro takes %d arguments, found %d", #names, n) end
    for i = 1, #names do
        local name = names[i]
        local v = kw and kw[name]
        if i <= n then v = (select(i, ...)) end
        s[name] = def(v)
    end
    s.caller = kw and kw.caller or U
end

function R.loop_object(items, i, n, state)
    local m = {index = i, index0 = i - 1, revindex = n - i + 1, revindex0 = n - i, first = i == 1,
               last = i == n, length = n, previtem = items[i - 1], nextitem = items[i + 1]}
    function m.cycle(_, ...)
        return (select((i - 1) % select("#", ...) + 1, ...))
    end
    function m.changed(_, ...)
        local now = list_of({...}, select("#", ...))
        local same = state.last and eq(state.last, now)
        state.last = now
        return not same
    end
    return {t = "loop", m = m}
end

-- Arguments -----------------------------------------------------------------------------------------

-- The value of an argument given by position or by name; nil when absent.
local function argument(kw, name, v)
    if v ~= nil then return v end
    return kw and kw[name]
end

local function as_string(v, what)
    v = plain(v)
    if type(v) ~= "string" then fail("%s takes a str, not %s", what, kind(v)) end
    return v
end

local function as_integer(v, what)
    local n = number(v)
    if not n then fail("%s takes an int, not %s", what, kind(v)) end
    return floor(n)
end

local function optional_integer(v, what, fallback)
    if v == nil or v == N then return fallback end
    return as_integer(v, what)
end

-- Methods -------------------------------------------------------------------------------------------

local S = methods.str

local function stripper(mode)
    return function(v, kw, characters)
        if characters == N then characters = nil end
        return P.strip(v, mode, characters and as_string(characters, "strip"))
    end
end
S.strip, S.lstrip, S.rstrip = stripper("both"), stripper("left"), stripper("right")

local function splitter(right)
    return function(v, kw, separator, count)
        separator, count = argument(kw, "sep", separator), argument(kw, "maxsplit", count)
        if separator == N then separator = nil end
        if separator == "" then fail("split: the separator is empty") end
        return P.split(v, separator and as_string(separator, "split"),
                       optional_integer(count, "split", -1), right)
    end
end
S.split, S.rsplit = splitter(false), splitter(true)

function S.splitlines(v, kw, keep)
    return P.splitlines(v, truth(argument(kw, "keepends", keep)))
end

local function affix(test)
    return function(v, kw, what)
        if is_list(what) then
            for i = 1, what.n do
                if test(v, as_string(what[i], "startswith")) then return true end
            end
            return false
        end
        return test(v, as_string(what, "startswith"))
    end
end
local function starts(v, prefix) return string.sub(v, 1, #prefix) == prefix end
local function ends(v, suffix) return #suffix <= #v and string.sub(v, #v - #suffix + 1) == suffix end
S.startswith, S.endswith = affix(starts), affix(ends)

function S.removeprefix(v, kw, prefix)
    return starts(v, as_string(prefix, "removeprefix")) and string.sub(v, #prefix + 1) or v
end

function S.removesuffix(v, kw, suffix)
    return ends(v, as_string(suffix, "removesuffix")) and string.sub(v, 1, #v - #suffix) or v
end

function S.replace(v, kw, old, new, count)
    return P.replace(v, as_string(old, "replace"), as_string(new, "replace"),
                     optional_integer(argument(kw, "count", count), "replace", -1))
end

for _, name in ipairs {"upper", "lower", "title", "capitalize", "swapcase", "casefold"} do
    S[name] = function(v) return P.case(v, name) end
end
for _, name in ipairs {"isdigit", "isalpha", "isalnum", "isspace", "isupper", "islower", "isdecimal",
                       "isnumeric"} do
    S[name] = function(v) return P.is(v, name) end
end

local function finder(right, strict)
    return function(v, kw, what, from, to)
        local n = P.length(v)
        local first, count = slice_range(n, from, to)
        local part = (first > 0 or count < n) and P.substring(v, first, count, 1) or v
        local at = P.find(part, as_string(what, "find"), right)
        if at < 0 and strict then fail("substring not found") end
        return at < 0 and -1 or at + first
    end
end
S.find, S.rfind, S.index, S.rindex = finder(false), finder(true), finder(false, true), finder(true, true)

function S.count(v, kw, what)
    return P.count(v, as_string(what, "count"))
end

function S.join(v, kw, items)
    local parts, n = iter(items)
    local out = {}
    for i = 1, n do out[i] = as_string(parts[i], "join") end
    return P.join(out, n, v)
end

local function partition(right)
    return function(v, kw, separator)
        local parts = P.split(v, as_string(separator, "partition"), 1, right)
        if parts.n == 2 then return list_of({parts[1], separator, parts[2]}, 3, "tuple") end
        return list_of(right and {"", "", v} or {v, "", ""}, 3, "tuple")
    end
end
S.partition, S.rpartition = partition(false), partition(true)

local function padder(place)
    return function(v, kw, width, fill)
        fill = fill or " "
        local missing = as_integer(width, "padding") - P.length(v)
        if missing <= 0 then return v end
        if P.length(as_string(fill, "padding")) ~= 1 then fail("padding takes one character") end
        local left = place == "left" and missing or place == "right" and 0 or
                     missing // 2 + (missing & as_integer(width, "padding") & 1)
        return string.rep(fill, left) .. v .. string.rep(fill, missing - left)
    end
end
S.rjust, S.ljust, S.center = padder("left"), padder("right"), padder("both")

function S.zfill(v, kw, width)
    local sign = string.match(v, "^[+-]") or ""
    local missing = as_integer(width, "zfill") - P.length(v)
    return sign .. string.rep("0", missing) .. string.sub(v, #sign + 1)
end

-- {}, {0}, {name} and {name:spec} with the printf-like specs of numbers
function S.format(v, kw, ...)
    local args, n, next_arg = {...}, select("#", ...), 0
    local text = string.gsub(v, "{{", "\1")
    text = string.gsub(text, "}}", "\2")
    text = string.gsub(text, "{([%w_]*):?([^{}]*)}", function(name, spec)
        local value
        if name == "" then
            next_arg = next_arg + 1
            name = tostring(next_arg - 1)
        end
        if string.find(name, "^%d+$") then
            local i = tonumber(name) + 1
            if i > n then fail("format: argument %s is missing", name) end
            value = args[i]
        else
            value = kw and kw[name]
            if value == nil then fail("format: argument '%s' is missing", name) end
        end
        if spec == "" then return str(value) end
        if not string.find(spec, "^0?%d*%.?%d*[dfeEgxXs]?$") then
            fail("format: '%s' is not supported", spec)
        end
        if not string.find(spec, "[dfeEgxXs]$") then
            spec = spec .. (is_integer(value) == "integer" and "d" or type(value) == "number" and "g" or "s")
        end
        if type(value) == "string" then spec = "-" .. spec end
        return P.printf("%" .. spec, value)
    end)
    text = string.gsub(text, "\1", "{")
    return (string.gsub(text, "\2", "}"))
end

local D = methods.dict
function D.items(v) return pairs_of(v) end
function D.keys(v) return v.k end
function D.copy(v) return v end

function D.values(v)
    local out = {}
    for i = 1, v.k.n do out[i] = v.m[v.k[i]] end
    return list_of(out, v.k.n)
end

function D.get(v, kw, key, fallback)
    local found = key ~= nil and v.m[key]
    if found == nil or key == nil then return fallback == nil and N or fallback end
    return found
end

local function list_index(v, kw, what)
    for i = 1, v.n do
        if eq(v[i], what) then return i - 1 end
    end
    fail("%s is not in the list", repr(what))
end

local function list_count(v, kw, what)
    local count = 0
    for i = 1, v.n do
        if eq(v[i], what) then count = count + 1 end
    end
    return count
end
methods.list.index, methods.tuple.index = list_index, list_index
methods.list.count, methods.tuple.count = list_count, list_count
function methods.list.copy(v) return v end
for _, name in ipairs {"append", "extend", "insert", "pop", "remove", "reverse", "sort", "clear"} do
    methods.list[name] = function() fail("a template cannot change a list (%s)", name) end
end
for _, name in ipairs {"update", "pop", "popitem", "setdefault", "clear"} do
    D[name] = function() fail("a template cannot change a dict (%s)", name) end
end

-- Tests ---------------------------------------------------------------------------------------------

function X.defined(v) return v ~= nil and v ~= U end
function X.undefined(v) return v == nil or v == U end
X["none"] = function(v) return v == N end
function X.string(v) return type(plain(v)) == "string" end
function X.number(v) return type(v) == "number" or type(v) == "boolean" end
function X.integer(v) return is_integer(v) == "integer" end
X["float"] = function(v) return is_integer(v) == "float" end
function X.boolean(v) return type(v) == "boolean" end
X["true"] = function(v) return v == true end
X["false"] = function(v) return v == false end
function X.mapping(v) return kind(v) == "dict" end
function X.callable(v) return type(v) == "function" end
function X.iterable(v)
    local t = kind(v)
    return t == "str" or t == "list" or t == "tuple" or t == "dict" or t == "undefined"
end
function X.sequence(v)
    local t = kind(v)
    return t == "str" or t == "list" or t == "tuple" or t == "dict" or t == "undefined"
end
function X.escaped(v) return plain(v) ~= v end
function X.odd(v) return R.mod(v, 2) == 1 end
function X.even(v) return R.mod(v, 2) == 0 end
function X.divisibleby(v, kw, n) return R.mod(v, n) == 0 end
function X.eq(v, kw, w) return eq(v, w) end
function X.ne(v, kw, w) return not eq(v, w) end
function X.lt(v, kw, w) return R.lt(v, w) end
function X.le(v, kw, w) return R.le(v, w) end
function X.gt(v, kw, w) return R.gt(v, w) end
function X.ge(v, kw, w) return R.ge(v, w) end
X["in"] = function(v, kw, container) return has(container, v) end
function X.sameas(v, kw, w) return rawequal(def(v), def(w)) end
function X.lower(v) return P.is(str(v), "islower") end
function X.upper(v) return P.is(str(v), "isupper") end
X.equalto, X["=="], X["!="] = X.eq, X.eq, X.ne
X.lessthan, X["<"], X["<="] = X.lt, X.lt, X.le
X.greaterthan, X[">"], X[">="] = X.gt, X.gt, X.ge
function X.filter(v) return rawget(F, v) ~= nil end
function X.test(v) return rawget(X, v) ~= nil end

-- Filters -------------------------------------------------------------------------------------------

function F.default(v, kw, fallback, boolean)
    fallback = argument(kw, "default_value", fallback)
    boolean = argument(kw, "boolean", boolean)
    if v == nil or v == U or (truth(boolean) and not truth(v)) then
        if fallback == nil then return "" end
        return fallback
    end
    return v
end
F.d = F.default

function F.length(v)
    v = plain(v)
    local lua = type(v)
    if lua == "string" then return P.length(v) end
    if lua == "nil" or v == U then return 0 end
    local t = lua == "table" and v.t
    if t == "list" or t == "tuple" then return v.n end
    if t == "dict" then return v.k.n end
    fail("a %s has no length", kind(v))
end
F.count = F.length

function F.string(v) return str(v) end
function F.safe(v) return {t = "markup", s = str(v)} end
function F.list(v)
    local items, n = iter(v)
    local out = {}
    for i = 1, n do out[i] = items[i] end
    return list_of(out, n)
end
function F.items(v)
    if v == nil or v == U then return list_of({}, 0) end
    if kind(v) ~= "dict" then fail("items takes a dict, not %s", kind(v)) end
    return pairs_of(v)
end

function F.trim(v, kw, characters)
    characters = argument(kw, "chars", characters)
    if characters == N then characters = nil end
    return P.strip(str(v), "both", characters and as_string(characters, "trim"))
end
for _, name in ipairs {"upper", "lower", "capitalize"} do
    F[name] = function(v) return P.case(str(v), name) end
end
function F.title(v) return P.case(str(v), "words") end
function F.escape(v)
    return {t = "markup", s = plain(v) ~= v and v.s or P.escape(str(v))}
end
function F.forceescape(v) return {t = "markup", s = P.escape(str(v))} end
F.e = F.escape
function F.replace(v, kw, old, new, count)
    return P.replace(str(v), str(old), str(new), optional_integer(argument(kw, "count", count), "replace", -1))
end
function F.format(v, kw, ...) return P.printf(str(v), ...) end
function F.center(v, kw, width) return S.center(str(v), nil, width or 80) end
function F.wordcount(v)
    local _, n = string.gsub(str(v), "[%w_\128-\255]+", "")
    return n
end

function F.indent(v, kw, width, first, blank)
    width = argument(kw, "width", width) or 4
    first, blank = truth(argument(kw, "first", first)), truth(argument(kw, "blank", blank))
    local prefix = type(width) == "string" and width or string.rep(" ", as_integer(width, "indent"))
    return P.indent(str(v), prefix, first, blank)
end

function F.truncate(v, kw, length, killwords, mark, leeway)
    v, length = str(v), argument(kw, "length", length) or 255
    mark, leeway = argument(kw, "end", mark) or "...", argument(kw, "leeway", leeway) or 5
    if P.length(v) <= length + leeway then return v end
    local cut = P.substring(v, 0, math.max(length - P.length(mark), 0), 1)
    if not truth(argument(kw, "killwords", killwords)) then
        local at = P.find(cut, " ", true)
        if at >= 0 then cut = P.substring(cut, 0, at, 1) end
    end
    return cut .. mark
end

function F.int(v, kw, fallback)
    local n
    if type(v) == "string" then
        n = tonumber((string.gsub(P.strip(v, "both"), "_", "")), 10) or P.number(v)
    else
        n = number(v)
    end
    if not n or n ~= n or n == math.huge or n == -math.huge then
        return argument(kw, "default", fallback) or 0
    end
    if is_integer(n) == "integer" then return n end
    return math.tointeger(n < 0 and -floor(-n) or floor(n)) or 0
end

F["float"] = function(v, kw, fallback)
    local n = type(v) == "string" and P.number(v) or number(v)
    if not n then return argument(kw, "default", fallback) or 0.0 end
    return n + 0.0
end

function F.abs(v) return math.abs(number(v) or refuse("abs", v, v)) end

function F.round(v, kw, precision, method)
    precision = argument(kw, "precision", precision) or 0
    method = argument(kw, "method", method) or "common"
    local n = number(v) or refuse("round", v, v)
    if method == "common" then return P.round(n + 0.0, precision) end
    local scale = 10.0 ^ precision
    return (method == "ceil" and math.ceil(n * scale) or floor(n * scale)) / scale
end

function F.first(v)
    local items, n = iter(v)
    if n > 0 then return items[1] end
end

function F.last(v)
    local items, n = iter(v)
    if n > 0 then return items[n] end
end

function F.reverse(v)
    local items, n = iter(v)
    local out = {}
    for i = 1, n do out[i] = items[n + 1 - i] end
    if type(v) == "string" then return P.join(out, n) end
    return list_of(out, n)
end

-- "a.b.0" or 0: a function that reads it
local function reader(path)
    if path == nil then return function(v) return v end end
    local keys = {}
    if type(path) == "string" then
        for part in string.gmatch(path, "[^.]+") do
            keys[#keys + 1] = math.tointeger(tonumber(part)) or part
        end
    else
        keys[1] = path
    end
    return function(v)
        for i = 1, #keys do v = item(v, keys[i]) end
        return v
    end
end

local function ignore_case(v)
    return type(v) == "string" and P.case(v, "lower") or v
end

-- A stable sort of list items by key(item).
local function sorted(items, n, key, descending)
    local order, keys = {}, {}
    for i = 1, n do order[i], keys[i] = i, def(key(items[i])) end
    local function merge(from, to)
        if from >= to then return end
        local middle = (from + to) // 2
        merge(from, middle)
        merge(middle + 1, to)
        local out, a, b = {}, from, middle + 1
        for i = 1, to - from + 1 do
            local takes_b = a > middle
            if not takes_b and b <= to then
                local c = compare("<", keys[order[b]], keys[order[a]])
                takes_b = descending and c > 0 or not descending and c < 0
            end
            if takes_b then
                out[i], b = order[b], b + 1
            else
                out[i], a = order[a], a + 1
            end
        end
        for i = 1, to - from + 1 do order[from + i - 1] = out[i] end
    end
    merge(1, n)
    local out = {}
    for i = 1, n do out[i] = items[order[i]] end
    return list_of(out, n)
end

local function sort_key(path, case_sensitive)
    local read = reader(path)
    if truth(case_sensitive) then return read end
    return function(v) return ignore_case(read(v)) end
end

function F.sort(v, kw, descending, case_sensitive, attribute)
    local items, n = iter(v)
    return sorted(items, n, sort_key(argument(kw, "attribute", attribute),
                                     argument(kw, "case_sensitive", case_sensitive)),
                  truth(argument(kw, "reverse", descending)))
end

function F.dictsort(v, kw, case_sensitive, by, descending)
    if kind(v) ~= "dict" then fail("dictsort takes a dict, not %s", kind(v)) end
    by = argument(kw, "by", by) or "key"
    local items = pairs_of(v)
    return sorted(items, items.n, sort_key(by == "value" and 1 or 0,
                                           argument(kw, "case_sensitive", case_sensitive)),
                  truth(argument(kw, "reverse", descending)))
end

function F.unique(v, kw, case_sensitive, attribute)
    local items, n = iter(v)
    local key = sort_key(argument(kw, "attribute", attribute),
                         argument(kw, "case_sensitive", case_sensitive))
    local out, seen, count = {}, list_of({}, 0), 0
    for i = 1, n do
        local k = key(items[i])
        if not has(seen, k) then
            count = count + 1
            out[count], seen[count], seen.n = items[i], k, count
        end
    end
    return list_of(out, count)
end

local function extreme(wanted)
    return function(v, kw, case_sensitive, attribute)
        local items, n = iter(v)
        local key = sort_key(argument(kw, "attribute", attribute),
                             argument(kw, "case_sensitive", case_sensitive))
        local best
        for i = 1, n do
            if best == nil or compare("<", key(items[i]), key(best)) == wanted then best = items[i] end
        end
        return best
    end
end
F.min, F.max = extreme(-1), extreme(1)

function F.sum(v, kw, attribute, start)
    local items, n = iter(v)
    local read, total = reader(argument(kw, "attribute", attribute)), argument(kw, "start", start) or 0
    for i = 1, n do total = R.add(total, read(items[i])) end
    return total
end

function F.join(v, kw, separator, attribute)
    local items, n = iter(v)
    local read, out = reader(argument(kw, "attribute", attribute)), {}
    for i = 1, n do out[i] = str(read(items[i])) end
    return P.join(out, n, str(argument(kw, "d", separator)))
end

function F.attr(v, kw, name)
    return get(v, as_string(name, "attr"))
end

function F.map(v, kw, name, ...)
    if not truth(v) then return list_of({}, 0) end
    local items, n = iter(v)
    local out = {}
    if name == nil then
        local read, fallback = reader(kw and kw.attribute), kw and kw.default
        for i = 1, n do
            local value = read(items[i])
            if value == nil then value = fallback end
            out[i] = def(value)
        end
    else
        local filter = F[name]
        for i = 1, n do out[i] = def(filter(items[i], kw, ...)) end
    end
    return list_of(out, n)
end

local function selector(wanted, by_attribute)
    return function(v, kw, ...)
        if not truth(v) then return list_of({}, 0) end
        local items, n = iter(v)
        local read, first = nil, 1
        if by_attribute then read, first = reader((...)), 2 end
        local name = (select(first, ...))
        local test = name == nil and truth or nil
        if name ~= nil then
            local named, from = X[name], first + 1
            local args = {select(from, ...)}
            local count = math.max(select("#", ...) - from + 1, 0)
            test = function(value) return named(value, kw, table.unpack(args, 1, count)) end
        end
        local out, kept = {}, 0
        for i = 1, n do
            local value = items[i]
            if read then value = read(value) end
            if test(value) == wanted then
                kept = kept + 1
                out[kept] = items[i]
            end
        end
        return list_of(out, kept)
    end
end
F.select, F.reject = selector(true, false), selector(false, false)
F.selectattr, F.rejectattr = selector(true, true), selector(false, true)

function F.groupby(v, kw, attribute, fallback, case_sensitive)
    local items, n = iter(v)
    local read = sort_key(argument(kw, "attribute", attribute),
                          argument(kw, "case_sensitive", case_sensitive))
    fallback = argument(kw, "default", fallback)
    local function key(value)
        local k = read(value)
        if k == nil then return fallback end
        return k
    end
    local all, groups = sorted(items, n, key), list_of({}, 0)
    for i = 1, all.n do
        local k, group = key(all[i]), groups[groups.n]
        if not group or not eq(group[1], k) then
            group = list_of({k, list_of({}, 0)}, 2, "tuple")
            groups.n = groups.n + 1
            groups[groups.n] = group
        end
        local members = group[2]
        members.n = members.n + 1
        members[members.n] = all[i]
    end
    return groups
end

function F.batch(v, kw, size, fill)
    local items, n = iter(v)
    size, fill = as_integer(argument(kw, "linecount", size), "batch"), argument(kw, "fill_with", fill)
    if size < 1 then fail("batch: the size is %d", size) end
    local out = list_of({}, 0)
    for from = 1, n, size do
        local row, count = {}, math.min(size, n - from + 1)
        for i = 1, count do row[i] = items[from + i - 1] end
        while fill ~= nil and count < size do
            count = count + 1
            row[count] = fill
        end
        out.n = out.n + 1
        out[out.n] = list_of(row, count)
    end
    return out
end

function F.tojson(v, kw, ascii, indent, separators, sort_keys)
    ascii, indent = argument(kw, "ensure_ascii", ascii), argument(kw, "indent", indent)
    separators, sort_keys = argument(kw, "separators", separators), argument(kw, "sort_keys", sort_keys)
    if indent == N then indent = nil end
    if type(indent) == "number" then indent = string.rep(" ", as_integer(indent, "tojson")) end
    local between, after_key = indent and "," or ", ", ": "
    if separators ~= nil and separators ~= N then
        between, after_key = R.parts(separators, 2)
    end
    return P.json(def(v), truth(ascii), indent, between, after_key, truth(sort_keys))
end

-- Global functions ----------------------------------------------------------------------------------

local G = {}
R.globals = G

function G.range(_, from, to, step)
    if to == nil then from, to = 0, from end
    step = step or 1
    from, to, step = as_integer(from, "range"), as_integer(to, "range"), as_integer(step, "range")
    if step == 0 then fail("range: the step is 0") end
    if (to - from) // step > 100000 then fail("range: more than 100000 items") end
    local out, n = {}, 0
    for i = from, to - (step > 0 and 1 or -1), step do
        n = n + 1
        out[n] = i
    end
    return list_of(out, n)
end

function G.namespace(kw, initial)
    local m = {}
    if type(initial) == "table" and initial.t == "dict" then
        for i = 1, initial.k.n do m[initial.k[i]] = initial.m[initial.k[i]] end
    end
    for _, name in ipairs(kw or {}) do m[name] = kw[name] end
    return {t = "namespace", m = m}
end

function G.dict(kw, initial)
    local items, n = {}, 0
    for _, pair in ipairs(initial and initial.t == "dict" and pairs_of(initial) or {}) do
        items[n + 1], items[n + 2] = pair[1], pair[2]
        n = n + 2
    end
    for _, name in ipairs(kw or {}) do
        items[n + 1], items[n + 2] = name, kw[name]
        n = n + 2
    end
    return R.dict(items, n)
end

function G.raise_exception(_, message)
    P.fail(str(message))
end

function G.strftime_now(_, format)
    return P.strftime(as_string(format, "strftime_now"))
end

function G.joiner(kw, separator)
    separator = argument(kw, "sep", separator) or ", "
    local used = false
    return function()
        if used then return separator end
        used = true
        return ""
    end
end

function G.cycler(_, ...)
    local values, n, at = {...}, select("#", ...), 1
    local m = {current = values[1]}
    function m.next()
        local value = values[at]
        at = at % n + 1
        m.current = values[at]
        return value
    end
    function m.reset()
        at, m.current = 1, values[1]
    end
    return {t = "namespace", m = m}
end

R.list_of = list_of
R.top = {__index = G}
return R
