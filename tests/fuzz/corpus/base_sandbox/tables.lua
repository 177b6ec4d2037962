local t = {5, 3, 1}
table.sort(t, function(a, b) return a < b end) table.insert(t, 2, 9) table.remove(t, 1)
table.move(t, 1, #t, 3, {}) goto e
do local x <const> = 1 end ::e:: return select('#', table.unpack(t)), string.format('%5.2f %q', 1.5, 'x')