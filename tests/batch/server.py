"""The lab's AWS: moto's server with a line of JSON for every request, and the credentials of the job role.

    python -m tests.batch.server --requests FILE [--refuse KEY]

Prints its port, and serves until it is ended. `GET /job-role` answers as the address does from which AWS gives a
container its role's credentials; a request signed with the key that is refused is refused as AWS refuses it.
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

ROLE_KEY = "ASIAROLE"  # the access key that only containers get
ROLE = "/job-role"
SIGNED = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/")
REFUSED = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>InvalidAccessKeyId</Code>'
    b"<Message>The AWS Access Key Id you provided does not exist in our records.</Message></Error>"
)


class Counted:
    """A WSGI application that writes down what it was asked: method, path, query, service, access key and status."""

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
    """Access key, region and service of a request; empty where it is not signed."""
    found = SIGNED.search(authorization)
    return (found[1], found[2], found[3]) if found else ("", "", "")


def role_credentials() -> bytes:
    """Of the job role, for six hours."""
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 6 * 3600))
    given = {"AccessKeyId": ROLE_KEY, "SecretAccessKey": "role", "Token": "role", "Expiration": until}
    return json.dumps(given).encode()


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m tests.batch.server", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--requests", type=Path, required=True, help="file of what was asked, a line of JSON each")
    p.add_argument("--refuse", default="", help="an access key that AWS does not know")
    args = p.parse_args(argv)

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    app = Counted(DomainDispatcherApplication(create_backend_app), args.requests, args.refuse)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    os.environ["MOTO_PORT"] = str(server.port)  # told to the containers
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
