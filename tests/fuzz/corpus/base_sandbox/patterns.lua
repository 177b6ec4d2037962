local s = ('ab1 '):rep(20)
for w, n in s:gmatch('(%a+)(%d?)') do s = s:gsub('^.-%f[%w]%w+', '%0%0', 1) end
return s:find('[^%s]-b', 3), s:match('%b()'), table.concat({s, 1, 2.5}, ','), utf8.len(s)
