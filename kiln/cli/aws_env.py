"""Print what the profile aws-batch and kiln.aws.submit want to know of the account, as `export` lines.

eval "$(python -m kiln.cli.aws_env)"          # jobs on CPUs
eval "$(python -m kiln.cli.aws_env --gpu)"    # jobs with a GPU each
"""

import shlex
from collections.abc import Mapping

from kiln.aws import stack
from kiln.cli import command_line
from kiln.errors import ConfigError

NO_IMAGE = ":none"  # ends the address of an image that was not pushed yet


def environment(outputs: Mapping[str, str], gpu: bool = False) -> dict[str, str]:
    """The variables by name, from the stack's outputs. Raises ConfigError for outputs of an older stack."""
    kind = "Gpu" if gpu else "Cpu"
    try:
        found = {
            "AWS_DEFAULT_REGION": outputs["Region"],
            "SNAKEMAKE_AWS_BATCH_JOB_QUEUE": outputs[f"{kind}Queue"],
            "SNAKEMAKE_AWS_BATCH_JOB_ROLE": outputs["JobRole"],
            "KILN_BUCKET": outputs["Bucket"],
            "KILN_JOB_DEFINITION": outputs[f"{kind}Job"],
            "KILN_IMAGE": outputs[f"{kind}Image"],
        }
    except KeyError as e:
        raise ConfigError(f"the stack has no output {e}: `make aws-up` brings it up to date") from e
    if found["KILN_IMAGE"].endswith(NO_IMAGE):
        del found["KILN_IMAGE"]
    return found


def exports(variables: Mapping[str, str], gpu: bool = False) -> str:
    """As a shell reads them; what is missing is a comment."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    if "KILN_IMAGE" not in variables:
        lines.append(f"# no image yet: make aws-image{' DEVICE=cuda' if gpu else ''}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Print them."""
    p = command_line.parser(__doc__, "kiln.cli.aws_env")
    p.add_argument("--stack", default=stack.STACK, help="name of the stack that aws_up made")
    p.add_argument("--gpu", action="store_true", help="queue, image and job definition of jobs with a GPU")
    args = p.parse_args(argv)
    command_line.run(lambda: print(exports(environment(stack.outputs(args.stack), args.gpu), args.gpu)))


if __name__ == "__main__":
    main()
