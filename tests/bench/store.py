"""An object store on loopback, in a process of its own, that is far away: what S3 says to GET and HEAD, of a folder.

python -m tests.bench.store FOLDER SECONDS BYTES prints its port. Every answer comes so many seconds late, and all that
is sent shares a line of so many bytes a second. `bench` is its one bucket; `/counted` tells requests and bytes sent
since it was asked last.
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


async def serve(folder: Path, late: float, rate: float) -> None:
    """Answer until the process ends."""
    counted = {"requests": 0, "sent": 0}
    line = {"free": 0.0}  # when what is on its way has arrived

    @web.middleware
    async def answer(request: web.Request, handler: web.RequestHandler) -> web.StreamResponse:
        if request.path == "/counted":
            told = json.dumps(counted)
            counted.update(requests=0, sent=0)
            return web.Response(text=told)
        await asyncio.sleep(late)
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
    """The running store, as its reader sees it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def counted(self) -> tuple[int, int]:
        """Requests and bytes sent since this was asked last."""
        with urllib.request.urlopen(f"{self.url}/counted") as answer:
            told = json.load(answer)
        return told["requests"], told["sent"]


@contextmanager
def serving(folder: Path, late: float, rate: float = float("inf")) -> Iterator[Store]:
    """A folder, `late` seconds away on a line of `rate` bytes/s, with all AWS clients of this process pointed at it."""
    told = [sys.executable, "-m", "tests.bench.store", str(folder), str(late), str(rate)]
    process = subprocess.Popen(told, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    store = Store(f"http://127.0.0.1:{int(process.stdout.readline())}")
    pointed = {"AWS_ENDPOINT_URL": store.url, "AWS_DEFAULT_REGION": "us-east-1"}
    pointed |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    before = {name: os.environ.get(name) for name in pointed}
    os.environ |= pointed
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
