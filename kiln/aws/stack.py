"""The CloudFormation stack that holds what Kiln needs in an AWS account: its template, and its life from up to down.

The template is stack.yaml. The stack's outputs become environment variables (kiln.aws.environment), which
profiles/aws-batch and `kiln aws submit` read.
"""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from kiln.aws.client import aws_errors, client
from kiln.errors import AccountError, ConfigError, TransientError

TEMPLATE = Path(__file__).parent / "stack.yaml"
STACK = "kiln"
NAME = re.compile(r"[a-z][a-z0-9-]{1,40}")  # of a stack; the names of its registry and bucket are derived from it
POLL_S = 5.0  # between two looks at a stack that is changing
WAIT_S = 1800.0  # for a stack to be created, changed or deleted
FAILED_STATES = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED")


def template() -> dict[str, Any]:
    """Return the parsed template; CloudFormation's tags become {tag: value}."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def construct_tag(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> dict[str, Any]:
        if isinstance(node, yaml.SequenceNode):
            return {tag: loader.construct_sequence(node, deep=True)}
        return {tag: loader.construct_scalar(cast(yaml.ScalarNode, node))}

    Loader.add_multi_constructor("!", construct_tag)
    return cast(dict[str, Any], yaml.load(TEMPLATE.read_text(), Loader))


def find(stack: str) -> dict[str, Any] | None:
    """Return the stack's description from AWS, or None if there is no such stack.

    Raises:
        ConfigError: The name is invalid.
    """
    if not NAME.fullmatch(stack):
        raise ConfigError(
            f"stack {stack!r}: expected lower-case letters, digits and dashes. Choose another name, as {STACK}."
        )
    try:
        with aws_errors(f"stack {stack}"):
            return cast(dict[str, Any], client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0])
    except AccountError as e:
        if "does not exist" in str(e):
            return None
        raise


def outputs(stack: str) -> dict[str, str]:
    """Return the stack's outputs by name.

    Raises:
        ConfigError: The stack does not exist, or has no outputs yet.
    """
    description = find(stack)
    if description is None:
        raise ConfigError(f"stack {stack}: expected one in this account and region, got none. Run `make aws-up`.")
    values = {o["OutputKey"]: o["OutputValue"] for o in description.get("Outputs", [])}
    if not values:
        raise ConfigError(
            f"stack {stack}: expected outputs, got none ({description['StackStatus']}). Run `make aws-up` again."
        )
    return values


def parameters(description: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the parameters in a description from `find`; none for None."""
    return {p["ParameterKey"]: p["ParameterValue"] for p in (description or {}).get("Parameters", [])}


def planned_parameters(stack: str, changes: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters that `deploy` would use: the template's defaults, the stack's values, the changes."""
    defaults = {name: str(p.get("Default", "")) for name, p in template()["Parameters"].items()}
    return {**defaults, **parameters(find(stack)), **changes}


def check_bucket(name: str) -> None:
    """Raise ConfigError unless the bucket exists, is accessible, and lies in the region of the clients."""
    s3 = client("s3")
    try:
        with aws_errors(f"s3://{name}"):
            region = s3.head_bucket(Bucket=name).get("BucketRegion", s3.meta.region_name)
    except AccountError as e:
        raise ConfigError(f"{e}. Expected a bucket that these credentials may use. Check its name.") from e
    if region != s3.meta.region_name:
        raise ConfigError(
            f"s3://{name}: expected a bucket in {s3.meta.region_name}, the region of the machines, got one in {region}."
            " Take another bucket or region: traffic between regions is billed."
        )


def deploy(stack: str, changes: Mapping[str, str], wait_s: float = WAIT_S) -> str:
    """Create or update the stack, and wait until AWS has finished.

    Args:
        stack: The stack's name.
        changes: Parameters to set; the others keep their values.
        wait_s: Seconds to wait at most.

    Returns:
        `created`, `changed` or `as it was`.

    Raises:
        ConfigError: The template has no such parameter.
        AccountError: AWS could not create or update the stack; the message has AWS's reasons.
        TransientError: It takes longer than `wait_s`.
    """
    known = template()["Parameters"]
    if unknown := set(changes) - set(known):
        raise ConfigError(f"--set: expected parameters among {', '.join(known)}, got {', '.join(sorted(unknown))}.")
    before = find(stack)
    if before and before["StackStatus"] in FAILED_STATES:
        remove(stack, wait_s)  # a failed first attempt can only be deleted
        before = None
    values = {**parameters(before), **changes}
    request = {
        "StackName": stack,
        "TemplateBody": TEMPLATE.read_text(),
        "Parameters": [{"ParameterKey": name, "ParameterValue": values[name]} for name in known if name in values],
        "Capabilities": ["CAPABILITY_IAM"],
    }
    cloudformation = client("cloudformation")
    with aws_errors(f"stack {stack}"):
        if before is None:
            cloudformation.create_stack(**request)
        else:
            try:
                cloudformation.update_stack(**request)
            except cloudformation.exceptions.ClientError as e:
                if "No updates are to be performed" in str(e):
                    return "as it was"
                raise
    wait_until_settled(stack, wait_s)
    return "created" if before is None else "changed"


def remove(stack: str, wait_s: float = WAIT_S) -> None:
    """Delete the stack, and wait until it is gone. Its bucket stays."""
    with aws_errors(f"stack {stack}"):
        client("cloudformation").delete_stack(StackName=stack)
    wait_until_settled(stack, wait_s)


def wait_until_settled(stack: str, wait_s: float) -> None:
    """Wait until AWS has finished with the stack.

    Raises:
        AccountError: It failed; the message has AWS's reasons.
        TransientError: It takes longer than `wait_s` seconds.
    """
    end = time.monotonic() + wait_s
    while (description := find(stack)) and description["StackStatus"].endswith("_IN_PROGRESS"):
        if time.monotonic() > end:
            raise TransientError(
                f"stack {stack}: still {description['StackStatus']} after {wait_s:g} s. Run the same command again to "
                "wait on."
            )
        time.sleep(POLL_S)
    if description and re.search("ROLLBACK|FAILED", description["StackStatus"]):
        raise AccountError(f"stack {stack}: {description['StackStatus']}\n{failure_reasons(stack)}")


def failure_reasons(stack: str) -> str:
    """Return a line for each resource that failed, in the order of time."""
    with aws_errors(f"stack {stack}"):
        events = client("cloudformation").describe_stack_events(StackName=stack)["StackEvents"]
    failed = [e for e in reversed(events) if "FAILED" in e["ResourceStatus"]]
    return "\n".join(f"  {e['LogicalResourceId']}: {e.get('ResourceStatusReason', '')}" for e in failed)
