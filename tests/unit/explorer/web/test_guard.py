"""Host names, headers and rates."""

import time

from kiln.explorer.web.settings import Rate
from tests.support.explorers_server import error_text
from tests.support.products import WORLD, chip_at

CHIP = chip_at(WORLD, 2021, 4, 3)


def test_too_many_requests_are_refused_with_a_waiting_time(run, other):
    server = other(str(run / "db"), rate=Rate(5.0, 8.0), search_rate=Rate(1.0, 2.0))
    codes = [server.get("/api/version").status_code for _ in range(20)]
    assert codes[:8] == [200] * 8
    assert 429 in codes
    searches = [server.post("/api/search", {"likes": [CHIP.chip_id]}) for _ in range(4)]
    assert [a.status_code for a in searches[:2]] == [200, 200]
    assert "too many requests: wait 1 s" in error_text(searches[3], 429)
    assert searches[3].headers["retry-after"] == "1"
    time.sleep(1.1)
    assert server.post("/api/search", {"likes": [CHIP.chip_id]}).status_code == 200
