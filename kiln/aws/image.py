"""Kiln's container image: built from the checkout's commit, and pushed to the stack's registry."""

import base64
import shutil
import subprocess
from collections.abc import Sequence

from kiln.aws.client import aws_errors, client
from kiln.aws.code_bundle import ROOT
from kiln.errors import AccountError, ConfigError

ENGINES = ("docker", "podman")
ERROR_LINES = 5  # of a failed command's output that its error shows


def find_engine(name: str | None) -> str:
    """Return the program that builds images: `name`, or the first installed of ENGINES.

    Raises:
        ConfigError: None is installed.
    """
    for engine in [name] if name else ENGINES:
        if shutil.which(engine):
            return engine
    raise ConfigError(f"--engine: expected {name or ' or '.join(ENGINES)} on this machine, got none. Install it.")


def current_commit() -> str:
    """Return the commit that is checked out.

    Raises:
        ConfigError: Files differ from the commit, which the image would name.
        AccountError: Kiln's code is no git checkout.
    """
    commit = run_command(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    if changes := run_command(["git", "-C", str(ROOT), "status", "--porcelain"]):
        first = changes.splitlines()[0].strip()
        raise ConfigError(
            f"{ROOT}: expected the files of commit {commit[:12]}, got changes ({first}, ...). Commit them."
        )
    return commit


def run_command(command: Sequence[str], stdin: str | None = None) -> str:
    """Run a command, and return what it prints.

    Raises:
        AccountError: It fails; the message ends with its last lines.
    """
    done = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-ERROR_LINES:]
        raise AccountError(f"{' '.join(command[:3])} ended with {done.returncode}:\n" + "\n".join(lines))
    return done.stdout.strip()


def run_visibly(command: Sequence[str]) -> None:
    """Run a command that takes minutes, and let its output through.

    Raises:
        AccountError: It fails.
    """
    print("$ " + " ".join(command), flush=True)
    if code := subprocess.run(command, check=False).returncode:
        raise AccountError(f"{' '.join(command[:2])} ended with {code}. Its output is above.")


def build(engine: str, image: str, arguments: Sequence[str]) -> None:
    """Build the image with envs/Dockerfile.

    Args:
        engine: The program that builds.
        image: Its name.
        arguments: Build arguments, KEY=VALUE.
    """
    flags = [word for argument in arguments for word in ("--build-arg", argument)]
    run_visibly([engine, "build", "--file", str(ROOT / "envs/Dockerfile"), "--tag", image, *flags, str(ROOT)])


def is_pushed(registry: str, tag: str) -> bool:
    """Return whether the registry has the tag."""
    host, _, name = registry.partition("/")
    ecr = client("ecr")
    with aws_errors(f"{registry}:{tag}"):
        try:
            ecr.describe_images(registryId=host.partition(".")[0], repositoryName=name, imageIds=[{"imageTag": tag}])
        except ecr.exceptions.ImageNotFoundException:
            return False
    return True


def push(engine: str, image: str) -> None:
    """Push an image. The registry's password goes by standard input, and is forgotten afterwards."""
    host = image.partition("/")[0]
    with aws_errors(host):
        token = client("ecr").get_authorization_token()["authorizationData"][0]["authorizationToken"]
    user, _, password = base64.b64decode(token).decode().partition(":")
    run_command([engine, "login", "--username", user, "--password-stdin", host], stdin=password)
    run_visibly([engine, "push", image])
    run_command([engine, "logout", host])
