"""Build Kiln's image, push it to the account's registry, and tell the stack, whose array jobs then run in it.

The image is that of the commit that is checked out, and its tag says so; a tag that is in the registry is not built
again. Which machine builds it does not matter, but it needs docker or podman, some gigabytes of disk, and pip's index.
A changed line of Kiln's own code needs no new image: Snakemake ships its sources, and array jobs fetch theirs.
"""

import base64
import shutil
import subprocess
from collections.abc import Sequence

from kiln import __version__
from kiln.aws import code_bundle, stack
from kiln.cli import aws_env, command_line
from kiln.errors import AccountError, ConfigError

ROOT = code_bundle.CODE.parent
ENGINES = ("docker", "podman")
PARAMETER = {"cpu": "CpuImageTag", "cuda": "GpuImageTag"}


def engine(asked: str | None) -> str:
    """The program that builds: the one asked for, or the first that is there. Raises ConfigError for none."""
    if found := next((e for e in ([asked] if asked else ENGINES) if shutil.which(e)), None):
        return found
    raise ConfigError(f"{asked or ' or '.join(ENGINES)}: not on this machine; images are built by it")


def revision() -> str:
    """The commit that is checked out. Raises ConfigError where there is none, or files differ from it."""
    head = run(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    if changed := run(["git", "-C", str(ROOT), "status", "--porcelain"]):
        first = changed.splitlines()[0].strip()
        raise ConfigError(f"files differ from the commit that the image would name ({first}, ...): commit them first")
    return head


def run(command: Sequence[str], stdin: str | None = None) -> str:
    """What a command prints. Raises AccountError with what it said where it fails."""
    done = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise AccountError(f"{' '.join(command[:3])} ended with {done.returncode}:\n" + "\n".join(said))
    return done.stdout.strip()


def shown(command: Sequence[str]) -> None:
    """A command that takes minutes: a person sees it work. Raises AccountError where it fails."""
    print("$ " + " ".join(command), flush=True)
    if code := subprocess.run(command, check=False).returncode:
        raise AccountError(f"{' '.join(command[:2])} ended with {code}; what it said is above")


def pushed(registry: str, tag: str) -> bool:
    """Whether the registry holds the tag."""
    host, _, name = registry.partition("/")
    service = stack.client("ecr")
    with stack.asking(f"{registry}:{tag}"):
        try:
            service.describe_images(
                registryId=host.partition(".")[0], repositoryName=name, imageIds=[{"imageTag": tag}]
            )
        except service.exceptions.ImageNotFoundException:
            return False
    return True


def push(program: str, image: str) -> None:
    """Push an image, signed in for the moment; the password goes by standard input."""
    host = image.partition("/")[0]
    with stack.asking(host):
        token = stack.client("ecr").get_authorization_token()["authorizationData"][0]["authorizationToken"]
    user, _, password = base64.b64decode(token).decode().partition(":")
    run([program, "login", "--username", user, "--password-stdin", host], stdin=password)
    shown([program, "push", image])
    run([program, "logout", host])


def main(argv: list[str] | None = None) -> None:
    """Build, push, tell the stack."""
    p = command_line.parser(__doc__, "kiln.cli.aws_image")
    p.add_argument("--stack", default=stack.STACK, help="name of the stack that aws_up made")
    p.add_argument("--device", choices=tuple(PARAMETER), default="cpu", help="build of torch")
    p.add_argument("--engine", choices=ENGINES, help="that builds and pushes; the first that is there")
    p.add_argument(
        "--build-arg", action="append", default=[], metavar="KEY=VALUE", help="of envs/Dockerfile: BASE, TORCH_INDEX"
    )
    p.add_argument("--image", metavar="NAME", help="push this one, built before by the same Dockerfile")
    args = p.parse_args(argv)

    def work() -> None:
        program, commit = engine(args.engine), revision()
        registry = stack.outputs(args.stack)["Registry"]
        tag = f"{__version__}-{commit[:12]}-{args.device}"
        image = f"{registry}:{tag}"
        if pushed(registry, tag):
            print(f"{image} is in the registry already.")
        else:
            if args.image:
                run([program, "tag", args.image, image])
            else:
                told = [f"DEVICE={args.device}", f"VERSION={__version__}", f"REVISION={commit}", *args.build_arg]
                arguments = [a for pair in told for a in ("--build-arg", pair)]
                shown(
                    [program, "build", "--file", str(ROOT / "envs/Dockerfile"), "--tag", image, *arguments, str(ROOT)]
                )
            push(program, image)
        print(f"Stack {args.stack}: its jobs run in {tag}: {stack.deploy(args.stack, {PARAMETER[args.device]: tag})}\n")
        gpu = args.device == "cuda"
        print(aws_env.exports(aws_env.environment(stack.outputs(args.stack), gpu), gpu))

    command_line.run(work)


if __name__ == "__main__":
    main()
