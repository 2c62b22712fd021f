"""Debian's MapServer as a local WMS. It is as strict as the services of the archives."""

import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

CGI = "/usr/lib/cgi-bin/mapserv"  # of Debian's cgi-mapserver
MAP = """MAP
  NAME "kiln"
  EXTENT {extent}
  SIZE 256 256
  UNITS DD
  PROJECTION "init=epsg:4326" END
  WEB
    METADATA
      "wms_title" "tiles of a sample"
      "wms_enable_request" "*"
      "wms_srs" "EPSG:4326 EPSG:3857"
      "wms_onlineresource" "http://127.0.0.1/"
    END
  END
  OUTPUTFORMAT NAME "png" DRIVER "AGG/PNG" MIMETYPE "image/png" IMAGEMODE RGB END
  LAYER
    NAME "tiles"
    TYPE RASTER
    STATUS ON
    DATA "{tile}"
    PROCESSING "BANDS=1,2,3"
    PROCESSING "SCALE=0,4000"
    PROJECTION "init=epsg:4326" END
    METADATA "wms_title" "tiles" "wms_extent" "{extent}" END
  END
END
"""


class MapServer:
    """A WMS at `url` with the layer `tiles` of one file. `queries` has every query string that it got."""

    def __init__(self, program: str, folder: Path, tile: Path, extent: tuple[float, float, float, float]) -> None:
        (folder / "kiln.map").write_text(MAP.format(tile=tile, extent=" ".join(map(str, extent))))
        (folder / "mapserver.conf").write_text('CONFIG\n  ENV\n    MS_MAP_PATTERN "."\n  END\nEND\n')
        here = {"MS_MAPFILE": str(folder / "kiln.map"), "MAPSERVER_CONFIG_FILE": str(folder / "mapserver.conf")}
        queries: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                query = urlsplit(self.path).query
                queries.append(query)
                cgi = {"REQUEST_METHOD": "GET", "QUERY_STRING": query, "SCRIPT_NAME": "/", "SERVER_NAME": "127.0.0.1"}
                answer = subprocess.run(
                    [program], env={**os.environ, **here, **cgi}, stdin=subprocess.DEVNULL, capture_output=True,
                    timeout=30, check=False,
                ).stdout  # fmt: skip
                head, _, body = answer.partition(b"\r\n\r\n")
                headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
                self.send_response(int(headers.pop("Status", "200").split()[0]))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.queries = queries
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Stop the server; requests to `url` then fail."""
        self._server.shutdown()
        self._server.server_close()
