# What the Ruby programs check with.

def same(expected, found)
  raise "expected #{expected.inspect}, found #{found.inspect}" unless expected == found
end

def fails(kind)
  yield
rescue kind
  nil
else
  raise "no #{kind}"
end
