"""An AWS account: its clients, what it says in words a person can act on, and the stack that holds what Kiln needs.

The stack is envs/aws/kiln.yaml. Its outputs, as variables of the environment, are what profiles/aws-batch and
kiln.aws.submit are told of the account.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kiln.errors import AccountError, ConfigError, TransientError

TEMPLATE = Path(__file__).parents[2] / "envs/aws/kiln.yaml"
STACK = "kiln"
NAME = re.compile(r"[a-z][a-z0-9-]{1,40}")  # of a stack: names of a registry and of a bucket are made of it
POLL = 5.0  # seconds between looks at a stack that is changing
REFUSED = {  # what AWS calls keys that it does not know
    *("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    *("AuthFailure", "ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidToken"),
}
DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403"}
BUSY = {"Throttling", "ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded", "ServiceUnavailable"}


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Turn what AWS answers into ConfigError, AccountError or TransientError; `what` is what was asked of it."""
    from botocore import exceptions as aws

    try:
        yield
    except aws.NoRegionError as e:
        raise ConfigError(
            f"{what}: no AWS region; set AWS_DEFAULT_REGION. NAIP and Sentinel-2 lie in us-west-2, WorldCover in "
            "eu-central-1: where the pixels are, reading them costs nothing"
        ) from e
    except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound, aws.TokenRetrievalError) as e:
        raise ConfigError(f"{what}: no AWS credentials ({e}); set AWS_PROFILE or AWS_ACCESS_KEY_ID") from e
    except aws.ClientError as e:
        code, said = e.response["Error"].get("Code", ""), e.response["Error"].get("Message", "")
        if code in REFUSED:
            raise ConfigError(f"{what}: AWS does not accept these credentials ({code}); check or renew them") from e
        if code in DENIED:
            raise AccountError(f"{what}: access denied. {said}") from e
        if code in BUSY:
            raise TransientError(f"{what}: AWS is busy ({code}); try again later") from e
        raise AccountError(f"{what}: {said or code}") from e
    except aws.ParamValidationError as e:
        raise ConfigError(f"{what}: {e}") from e
    except (aws.ConnectionError, aws.HTTPClientError) as e:
        raise TransientError(f"{what}: the connection to AWS broke, or there was none: {e}") from e


def client(service: str, region: str | None = None) -> Any:
    """A boto3 client, retrying as AWS advises. Raises ConfigError where no region is set."""
    import boto3
    from botocore.config import Config

    with asking(service):
        return boto3.client(service, region_name=region, config=Config(retries={"mode": "standard", "max_attempts": 8}))


def check_bucket(name: str) -> None:
    """Raise ConfigError for a bucket that is not there, is not ours, or lies in another region."""
    s3 = client("s3")
    try:
        with asking(f"s3://{name}"):
            found = s3.head_bucket(Bucket=name).get("BucketRegion", s3.meta.region_name)
    except AccountError as e:
        raise ConfigError(f"{e}; not a bucket that these credentials may use") from e
    if found != s3.meta.region_name:
        raise ConfigError(
            f"s3://{name}: lies in {found}, and the machines are in {s3.meta.region_name}: every byte between costs"
        )


def find(stack: str) -> dict[str, Any] | None:
    """The stack as AWS describes it; None where there is none."""
    if not NAME.fullmatch(stack):
        raise ConfigError(f"stack {stack!r}: want lower-case letters, digits and dashes, as {STACK}")
    try:
        with asking(f"stack {stack}"):
            return client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
    except AccountError as e:
        if "does not exist" in str(e):
            return None
        raise


def template() -> dict[str, Any]:
    """The stack as it is to be; CloudFormation's tags are kept as {tag: value}."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def tagged(loader: Any, tag: str, node: Any) -> dict[str, Any]:
        if isinstance(node, yaml.SequenceNode):
            return {tag: loader.construct_sequence(node, deep=True)}
        return {tag: loader.construct_scalar(node)}

    Loader.add_multi_constructor("!", tagged)
    return yaml.load(TEMPLATE.read_text(), Loader)


def outputs(stack: str) -> dict[str, str]:
    """What the stack tells of itself. Raises ConfigError where it is not there, or not whole."""
    found = find(stack)
    if found is None:
        raise ConfigError(f"stack {stack}: there is none in this account and region; `make aws-up` creates it")
    if not (told := {o["OutputKey"]: o["OutputValue"] for o in found.get("Outputs", [])}):
        raise ConfigError(f"stack {stack}: {found['StackStatus']}, and nothing to read from it yet")
    return told


def parameters(stack: Mapping[str, Any] | None) -> dict[str, str]:
    """What the stack was made with."""
    return {p["ParameterKey"]: p["ParameterValue"] for p in (stack or {}).get("Parameters", [])}


def deploy(stack: str, given: Mapping[str, str], wait: float = 1800) -> str:
    """Create or change the stack, and wait until it is whole; what is not given stays as it was.

    Returns `created`, `changed` or `as it was`. Raises ConfigError for a parameter that the template has not, and
    AccountError with AWS's reasons where the stack cannot be made.
    """
    known = template()["Parameters"]
    if strange := set(given) - set(known):
        raise ConfigError(f"{', '.join(sorted(strange))}: not among the stack's parameters {', '.join(known)}")
    before = find(stack)
    if before and before["StackStatus"] in ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED"):
        remove(stack, wait)  # of a try that failed nothing is worth keeping
        before = None
    values = parameters(before) | given
    wanted = [{"ParameterKey": k, "ParameterValue": values[k]} for k in known if k in values]
    order = {
        "StackName": stack,
        "TemplateBody": TEMPLATE.read_text(),
        "Parameters": wanted,
        "Capabilities": ["CAPABILITY_IAM"],
    }
    with asking(f"stack {stack}"):
        if before is None:
            client("cloudformation").create_stack(**order)
        else:
            try:
                client("cloudformation").update_stack(**order)
            except client("cloudformation").exceptions.ClientError as e:
                if "No updates are to be performed" in str(e):
                    return "as it was"
                raise
    settled(stack, wait)
    return "created" if before is None else "changed"


def settled(stack: str, wait: float) -> dict[str, Any] | None:
    """The stack when AWS has done with it, None when it is gone.

    Raises AccountError with AWS's reasons if it failed, TransientError if it takes longer than `wait` seconds.
    """
    end = time.monotonic() + wait
    while (found := find(stack)) and found["StackStatus"].endswith("_IN_PROGRESS"):
        if time.monotonic() > end:
            raise TransientError(f"stack {stack}: still {found['StackStatus']}; run the same command again to wait on")
        time.sleep(POLL)
    if found and re.search("ROLLBACK|FAILED", found["StackStatus"]):
        raise AccountError(f"stack {stack}: {found['StackStatus']}\n{reasons(stack)}")
    return found


def remove(stack: str, wait: float = 1800) -> None:
    """Delete the stack, and wait until it is gone; its bucket stays."""
    with asking(f"stack {stack}"):
        client("cloudformation").delete_stack(StackName=stack)
    settled(stack, wait)


def reasons(stack: str) -> str:
    """Why resources of a stack could not be made, the first first."""
    with asking(f"stack {stack}"):
        events = client("cloudformation").describe_stack_events(StackName=stack)["StackEvents"]
    failed = [e for e in reversed(events) if "FAILED" in e["ResourceStatus"]]
    return "\n".join(f"  {e['LogicalResourceId']}: {e.get('ResourceStatusReason', '')}" for e in failed)
