"""An object store on loopback with latency and limited bandwidth. It serves a folder through S3's GET and HEAD.

    python -m tests.bench.store FOLDER SECONDS BYTES

The server prints its port. It delays each response by SECONDS, and all responses together get at most BYTES per second.
`bench` is its only bucket. `/counted` returns the numbers of requests and of sent bytes since the last request for it.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

from kiln.io import storage

BUCKET = "bench"


async def serve(folder: Path, latency_s: float, rate: float) -> None:
    """Serve until the process ends."""
    counted = {"requests": 0, "sent": 0}
    line = {"free": 0.0}  # the time at which all data on the line has arrived

    @web.middleware
    async def answer(request: web.Request, handler: web.RequestHandler) -> web.StreamResponse:
        if request.path == "/counted":
            content = json.dumps(counted)
            counted.update(requests=0, sent=0)
            return web.Response(text=content)
        await asyncio.sleep(latency_s)
        counted["requests"] += 1
        return await handler(request)

    async def send(request: web.Request, response: web.StreamResponse) -> None:
        if request.method == "GET" and request.path != "/counted":
            size = int(response.headers.get("Content-Length", 0))
            counted["sent"] += size
            now = time.monotonic()
            line["free"] = max(now, line["free"]) + size / rate
            await asyncio.sleep(line["free"] - now)

    app = web.Application(middlewares=[answer])
    app.router.add_static(f"/{BUCKET}", folder)
    app.on_response_prepare.append(send)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


class Store:
    """A client of the running store."""

    def __init__(self, url: str) -> None:
        self.url = url

    def counted(self) -> tuple[int, int]:
        """Return the numbers of requests and of sent bytes since the last call."""
        with urllib.request.urlopen(f"{self.url}/counted") as response:
            counts = json.load(response)
        return counts["requests"], counts["sent"]


@contextmanager
def serving(folder: Path, latency_s: float, rate: float = float("inf")) -> Iterator[Store]:
    """Serve a folder with a latency and `rate` bytes/s; point all AWS clients of this process at the store."""
    command = [sys.executable, "-m", "tests.bench.store", str(folder), str(latency_s), str(rate)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    store = Store(f"http://127.0.0.1:{int(process.stdout.readline())}")
    variables = {"AWS_ENDPOINT_URL": store.url, "AWS_DEFAULT_REGION": "us-east-1"}
    variables |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    storage.s3_client.cache_clear()
    try:
        yield store
    finally:
        process.kill()
        process.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        storage.s3_client.cache_clear()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
