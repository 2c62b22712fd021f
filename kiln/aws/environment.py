"""The environment variables of a driver, from the outputs of its stack."""

import shlex
from collections.abc import Mapping

from kiln.errors import ConfigError

NO_IMAGE = ":none"  # ends the address of an image that was not pushed yet


def driver_environment(outputs: Mapping[str, str], gpu: bool = False) -> dict[str, str]:
    """Return the variables that profiles/aws-batch and `kiln aws submit` read.

    Args:
        outputs: The stack's outputs.
        gpu: Whether jobs get a GPU each.

    Raises:
        ConfigError: An output is missing, because the stack is older than this version.
    """
    kind = "Gpu" if gpu else "Cpu"
    try:
        variables = {
            "AWS_DEFAULT_REGION": outputs["Region"],
            "SNAKEMAKE_AWS_BATCH_JOB_QUEUE": outputs[f"{kind}Queue"],
            "SNAKEMAKE_AWS_BATCH_JOB_ROLE": outputs["JobRole"],
            "KILN_BUCKET": outputs["Bucket"],
            "KILN_JOB_DEFINITION": outputs[f"{kind}Job"],
            "KILN_IMAGE": outputs[f"{kind}Image"],
        }
    except KeyError as e:
        raise ConfigError(f"stack: expected an output {e}, got none. Run `make aws-up` to update the stack.") from e
    if variables["KILN_IMAGE"].endswith(NO_IMAGE):
        del variables["KILN_IMAGE"]
    return variables


def export_lines(variables: Mapping[str, str], gpu: bool = False) -> str:
    """Return `export` lines for a shell; a missing image is a comment."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    if "KILN_IMAGE" not in variables:
        lines.append(f"# no image yet: make aws-image{' DEVICE=cuda' if gpu else ''}")
    return "\n".join(lines)
