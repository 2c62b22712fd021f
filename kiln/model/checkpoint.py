"""Fetch Clay's checkpoint, verify it, and extract the encoder once into memory-mappable safetensors.

With --sha256 the checkpoint must have that digest. Without, the file is fetched, its digest is printed as the line to
paste into the config, and nothing else is made: vectors must be traceable to weights. An interrupted download goes on
where it stopped. `--checkpoint untrained` makes a small encoder of seeded random weights, for demonstrations.
"""

import json
import logging
from pathlib import Path
from typing import Any

from kiln.cli import command_line
from kiln.errors import ConfigError, SourceError, WeightsError
from kiln.io import storage
from kiln.model.identity import PRECISIONS, UNTRAINED, check_untrained, weights_digest

log = logging.getLogger(__name__)


def fetch_checkpoint(checkpoint: str, scratch: Path) -> Path:
    """The checkpoint on this machine: itself if local, else a download in `scratch`, gone on with if interrupted."""
    if not storage.is_remote(checkpoint):
        if not Path(checkpoint).is_file():
            raise ConfigError(f"model.checkpoint {checkpoint}: no such file")
        return Path(checkpoint)
    path = scratch / Path(checkpoint.partition("?")[0]).name
    done = path.with_name(path.name + ".done")
    if done.exists() and path.exists() and done.read_text() == checkpoint:
        return path
    log.info("fetching %s", checkpoint)
    try:
        storage.fetch(checkpoint, path)
    except SourceError as e:
        raise ConfigError(f"model.checkpoint {e}") from e
    done.write_text(checkpoint)
    return path


def verify(path: Path, sha256: str) -> None:
    """Raise WeightsError unless the file has that digest."""
    found = storage.sha256(path)
    if found != sha256.lower():
        raise WeightsError(
            f"{path}: sha256 is {found}, but model.sha256 says {sha256}: the file is damaged or another version. "
            "Delete it to fetch it again, or correct model.sha256"
        )


def extract(path: Path, sha256: str, checkpoint: str, precision: str, output: Path) -> None:
    """Write the encoder of a verified checkpoint as safetensors in `precision`, with its digest in the metadata."""
    from kiln.model import weights

    encoder = weights.load_encoder(path, precision=precision)  # type: ignore[arg-type]
    about = {"sha256": sha256, "checkpoint": Path(checkpoint).name, "precision": precision, "untrained": False}
    weights.save_encoder(encoder, output, about)


def make_untrained(settings: dict[str, Any], precision: str, output: Path) -> None:
    """Write an encoder of seeded random weights; `settings` are `model.untrained` of the config."""
    from kiln.model import clay, weights

    check_untrained(settings)
    dim, heads = settings["dim"], settings["heads"]
    geometry = clay.Geometry(
        dim=dim,
        depth=settings["depth"],
        heads=heads,
        dim_head=dim // heads,
        mlp=dim * settings["mlp_ratio"],
    )
    encoder = weights.in_precision(weights.untrained_encoder(geometry, settings["seed"]), precision)  # type: ignore[arg-type]
    digest = weights_digest({"checkpoint": UNTRAINED, "untrained": settings})
    about = {"sha256": digest, "checkpoint": UNTRAINED, "precision": precision, "untrained": True}
    weights.save_encoder(encoder, output, about)


def main(argv: list[str] | None = None) -> None:
    """Make the encoder's weights."""
    p = command_line.parser(__doc__, "kiln.model.checkpoint")
    p.add_argument("--checkpoint", required=True, help="https://, s3:// or path of clay-v1.5.ckpt, or `untrained`")
    p.add_argument("--sha256", default="", help="digest the checkpoint must have; without it the digest is printed")
    p.add_argument("--untrained", type=json.loads, default={}, help="JSON of seed, dim, depth, heads, mlp_ratio")
    p.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the extracted weights")
    p.add_argument("--scratch", type=Path, default=Path("downloads"), help="folder where downloads are kept")
    p.add_argument("--output", required=True, help="safetensors to make; without --sha256 a JSON with the digest")
    args = p.parse_args(argv)

    def work() -> None:
        if args.checkpoint == UNTRAINED:
            with storage.atomic(args.output) as partial:
                make_untrained(args.untrained, args.precision, partial)
            log.warning("%s: UNTRAINED weights, for demonstrations; their vectors mean nothing", args.output)
            return
        path = fetch_checkpoint(args.checkpoint, args.scratch)
        if not args.sha256:
            found = storage.sha256(path)
            print(f"\nPaste the checkpoint's digest into your config and run again:\n\nmodel:\n  sha256: {found}\n")
            about = {"checkpoint": args.checkpoint, "sha256": found, "size": path.stat().st_size}
            storage.write_bytes(args.output, (json.dumps(about, indent=1) + "\n").encode())
            return
        verify(path, args.sha256)
        with storage.atomic(args.output) as partial:
            extract(path, args.sha256.lower(), args.checkpoint, args.precision, partial)
        log.info(
            "%s: encoder extracted, %.0f MB", args.output, (storage.stat(args.output) or storage.Stat(0)).size / 1e6
        )

    command_line.run(work)


if __name__ == "__main__":
    main()
