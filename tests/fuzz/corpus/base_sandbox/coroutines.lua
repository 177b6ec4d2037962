local co = coroutine.wrap(function(a) for i = 1, 3 do a = a + coroutine.yield(i) end error({a}) end)
co(1) co(2) print = pcall(co, 3)
local t = setmetatable({}, {__index = function(t, k) return k .. 'x' end, __close = function() end})
do local c <close> = t end
return xpcall(string.rep, tostring, t.k, 3)