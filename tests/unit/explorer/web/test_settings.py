"""The base map of the settings."""

import pytest

from kiln.errors import ConfigError
from kiln.explorer.web.guard import content_security_policy
from kiln.explorer.web.settings import parse_base_map


def test_a_base_map_is_a_source_for_the_page_and_may_be_reached():
    xyz = parse_base_map({"url": "https://tiles.example/{z}/{x}/{y}.png", "attribution": "<b>a</b>", "max_zoom": 12})
    assert xyz == {
        "type": "raster", "tiles": ["https://tiles.example/{z}/{x}/{y}.png"], "tileSize": 256, "maxzoom": 12,
        "attribution": "&lt;b&gt;a&lt;/b&gt;",
    }  # fmt: skip
    assert "img-src 'self' data: blob: https://tiles.example;" in content_security_policy(xyz)
    wms = parse_base_map({"wms": {"url": "http://maps.example:81/wms", "version": "1.1.1", "layers": "rgb"}})
    (url,) = wms["tiles"]
    assert url.startswith(
        "http://maps.example:81/wms?SERVICE=WMS&REQUEST=GetMap&VERSION=1.1.1&LAYERS=rgb&STYLES=&SRS=EPSG"
    )
    assert url.endswith("&BBOX={bbox-epsg-3857}")
    assert "connect-src 'self' http://maps.example:81;" in content_security_policy(wms)
    assert parse_base_map(None) is None


@pytest.mark.parametrize(
    "value",
    [
        {"url": "https://tiles.example/a.png"}, {"url": "file:///etc/{z}{x}{y}"}, {"url": 3}, [1], {"colour": "red"},
        {"url": "https://a.example;script-src *//{z}/{x}/{y}"}, {"wms": {"layers": "a"}},
    ],
)  # fmt: skip
def test_wrong_base_maps_are_refused(value):
    with pytest.raises(ConfigError, match="base map"):
        parse_base_map(value)
