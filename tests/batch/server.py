"""The server of the lab's simulated AWS: moto's server, with a record of every request and credentials for jobs.

    python -m tests.batch.server --requests FILE [--refuse KEY]

The server prints its port and runs until it is terminated. It writes one line of JSON per request. `GET /job-role`
returns credentials of the job role, as AWS does for containers. Requests signed with the access key KEY are rejected
with the error of AWS for an unknown key.
"""

import argparse
import json
import os
import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROLE_KEY = "ASIAROLE"  # the access key that only containers have
ROLE = "/job-role"
SIGNED = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/")
REFUSED = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>InvalidAccessKeyId</Code>'
    b"<Message>The AWS Access Key Id you provided does not exist in our records.</Message></Error>"
)


class Counted:
    """A WSGI application that records each request: method, path, query, service, region, access key and status."""

    def __init__(self, app: Any, requests: Path, refuse: str) -> None:
        self.app, self.refuse = app, refuse
        self.file = requests.open("a", buffering=1)
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == ROLE:
            start_response("200 OK", [("Content-Type", "application/json")])
            return [role_credentials()]
        key, region, service = signed_by(environ.get("HTTP_AUTHORIZATION", ""))

        def answered(status: str, *rest: Any) -> Any:
            line = {"method": environ["REQUEST_METHOD"], "path": path, "query": environ.get("QUERY_STRING", ""),
                    "service": service, "region": region, "key": key, "status": int(status[:3])}  # fmt: skip
            with self.lock:
                self.file.write(json.dumps(line) + "\n")
            return start_response(status, *rest)

        if key and key == self.refuse:
            answered("403 Forbidden", [("Content-Type", "application/xml")])
            return [REFUSED]
        return self.app(environ, answered)


def signed_by(authorization: str) -> tuple[str, str, str]:
    """Return access key, region and service of a request; empty strings if it is not signed."""
    found = SIGNED.search(authorization)
    return (found[1], found[2], found[3]) if found else ("", "", "")


def role_credentials() -> bytes:
    """Return credentials of the job role that are valid for six hours."""
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 6 * 3600))
    credentials = {"AccessKeyId": ROLE_KEY, "SecretAccessKey": "role", "Token": "role", "Expiration": until}
    return json.dumps(credentials).encode()


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m tests.batch.server", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--requests", type=Path, required=True, help="file for requests, one line of JSON each")
    p.add_argument("--refuse", default="", help="an access key to reject")
    args = p.parse_args(argv)

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    app = Counted(DomainDispatcherApplication(create_backend_app), args.requests, args.refuse)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    os.environ["MOTO_PORT"] = str(server.port)  # moto passes it to the containers
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
