"""Print a stack's values, which the profile aws-batch and `kiln aws submit` read, as `export` lines.

eval "$(kiln aws env)"          # jobs on CPUs
eval "$(kiln aws env --gpu)"    # jobs with a GPU each
"""

from kiln.aws import stack
from kiln.aws.environment import driver_environment, export_lines
from kiln.cli import command_line


def main(argv: list[str] | None = None) -> None:
    """Print the lines."""
    p = command_line.parser(__doc__, "kiln aws env")
    p.add_argument("--stack", default=stack.STACK, help="name of the stack that `kiln aws up` created")
    p.add_argument("--gpu", action="store_true", help="queue, image and job definition of jobs with a GPU")
    args = p.parse_args(argv)
    command_line.run(lambda: print(export_lines(driver_environment(stack.outputs(args.stack), args.gpu), args.gpu)))


if __name__ == "__main__":
    main()
