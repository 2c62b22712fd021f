"""Fetch Clay's checkpoint, verify it, and extract the encoder once into memory-mappable safetensors.

With --sha256 the checkpoint must have that digest. Without it the checkpoint is fetched and its digest is printed as
the line to paste into the config. An interrupted download is resumed. `--checkpoint untrained` makes a small encoder of
seeded random weights, for demonstrations.
"""

import json
from pathlib import Path

from kiln.cli import command_line
from kiln.model.checkpoint import make_weights
from kiln.model.identity import PRECISIONS, UNTRAINED


def main(argv: list[str] | None = None) -> None:
    """Run the script."""
    p = command_line.parser(__doc__, "scripts.encoder_weights")
    p.add_argument("--checkpoint", required=True, help="https://, s3:// or path of clay-v1.5.ckpt, or `untrained`")
    p.add_argument("--sha256", default="", help="digest that the checkpoint must have")
    p.add_argument("--untrained", type=json.loads, default={}, help="JSON of seed, dim, depth, heads, mlp_ratio")
    p.add_argument("--precision", choices=PRECISIONS, default="float32", help="precision of the extracted weights")
    p.add_argument("--scratch", type=Path, default=Path("downloads"), help="folder for downloads")
    p.add_argument("--output", required=True, help="safetensors file; without --sha256 a JSON file with the digest")
    args = p.parse_args(argv)

    def work() -> None:
        digest = make_weights(
            args.checkpoint,
            args.output,
            sha256=args.sha256,
            precision=args.precision,
            untrained=args.untrained,
            scratch=args.scratch,
        )
        if args.checkpoint != UNTRAINED and not args.sha256:
            print(f"\nPaste the checkpoint's digest into your config and run again:\n\nmodel:\n  sha256: {digest}\n")

    command_line.run(work)


if __name__ == "__main__":
    main()
