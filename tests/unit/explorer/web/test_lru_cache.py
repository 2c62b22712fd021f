"""The cache of the values used last."""

from kiln.explorer.web.lru_cache import LruCache


def test_the_values_used_last_stay():
    computed = []

    def get(cache, key):
        return cache.get(key, lambda: computed.append(key) or key.upper())

    cache = LruCache(2)
    assert [get(cache, key) for key in "abab"] == ["A", "B", "A", "B"]
    assert computed == ["a", "b"]
    get(cache, "a")
    get(cache, "c")  # replaces b
    get(cache, "a")
    assert computed == ["a", "b", "c"]
    get(cache, "b")
    assert computed == ["a", "b", "c", "b"]
