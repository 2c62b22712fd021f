"""Build Kiln's image, push it to the account's registry, and set it in the stack, whose array jobs then run in it.

The image is built from the commit that is checked out, and its tag names the commit. A tag that is in the registry is
not built again. Any machine can build it that has docker or podman, some gigabytes of disk, and access to pip's index.
A change of Kiln's own code needs no new image: Snakemake ships its sources, and array jobs fetch theirs.
"""

from kiln.aws import image as images
from kiln.aws import stack
from kiln.aws.environment import driver_environment, export_lines
from kiln.cli import command_line
from kiln.version import __version__

PARAMETERS = {"cpu": "CpuImageTag", "cuda": "GpuImageTag"}  # of the stack, by device


def main(argv: list[str] | None = None) -> None:
    """Build and push the image, and set it in the stack."""
    p = command_line.parser(__doc__, "kiln aws image")
    p.add_argument("--stack", default=stack.STACK, help="name of the stack that `kiln aws up` created")
    p.add_argument("--device", choices=tuple(PARAMETERS), default="cpu", help="build of torch")
    p.add_argument("--engine", choices=images.ENGINES, help="program that builds and pushes; the first installed")
    p.add_argument(
        "--build-arg", action="append", default=[], metavar="KEY=VALUE", help="of envs/Dockerfile: BASE, TORCH_INDEX"
    )
    p.add_argument("--image", metavar="NAME", help="push this image, built before by the same Dockerfile")
    args = p.parse_args(argv)

    def work() -> None:
        engine, commit = images.find_engine(args.engine), images.current_commit()
        registry = stack.outputs(args.stack)["Registry"]
        tag = f"{__version__}-{commit[:12]}-{args.device}"
        image = f"{registry}:{tag}"
        if images.is_pushed(registry, tag):
            print(f"{image} is in the registry already.")
        else:
            if args.image:
                images.run_command([engine, "tag", args.image, image])
            else:
                labels = [f"DEVICE={args.device}", f"VERSION={__version__}", f"REVISION={commit}"]
                images.build(engine, image, [*labels, *args.build_arg])
            images.push(engine, image)
        result = stack.deploy(args.stack, {PARAMETERS[args.device]: tag})
        print(f"Stack {args.stack}: its jobs run in {tag}: {result}\n")
        gpu = args.device == "cuda"
        print(export_lines(driver_environment(stack.outputs(args.stack), gpu), gpu))

    command_line.run(work)


if __name__ == "__main__":
    main()
