"""The command `kiln`: finds the subcommand and imports its module, and no other."""

import difflib
import importlib
import sys
from collections.abc import Iterable

from kiln.version import __version__

COMMANDS = {  # subcommand: module with `main(argv)`, one line for `kiln --help`
    "search": ("kiln.cli.search", "find chips that look like a chip, a place or examples"),
    "explore": ("kiln.cli.explore", "open the explorer, a map with search, in the browser"),
    "status": ("kiln.cli.status", "show how far a run is, and what failed"),
    "verify": ("kiln.cli.verify", "read every file of a run, and name the damaged ones"),
    "tune": ("kiln.cli.tune", "measure this machine, recommend precision and batch size"),
    "compare": ("kiln.cli.compare", "compare the vectors of two files of the same chips"),
    "export": ("kiln.cli.export", "write chips to GeoParquet, GeoPackage, GeoJSON, CSV or NumPy"),
    "aws up": ("kiln.cli.aws.up", "create or update the AWS stack that runs need"),
    "aws image": ("kiln.cli.aws.image", "build Kiln's image, push it, and set it in the stack"),
    "aws env": ("kiln.cli.aws.env", "print the stack's values as `export` lines"),
    "aws submit": ("kiln.cli.aws.submit", "submit a dataset's shards as an AWS Batch array job"),
    "aws down": ("kiln.cli.aws.down", "delete the AWS stack"),
}
HELP_FLAGS = ("-h", "--help")


def main(argv: list[str] | None = None) -> None:
    """Run the subcommand that the arguments begin with.

    Args:
        argv: The arguments, by default those of the process.

    Raises:
        SystemExit: 0 after --help; 2 without a subcommand or for an unknown one; or the subcommand's.
    """
    words = sys.argv[1:] if argv is None else argv
    group = "aws " if words[:1] == ["aws"] else ""
    length = 2 if group else 1  # words of a subcommand's name
    name = " ".join(words[:length])
    if name in COMMANDS:
        importlib.import_module(COMMANDS[name][0]).main(words[length:])
    elif len(words) < length:
        print(help_text(group), file=sys.stderr)
        raise SystemExit(2)
    elif words[length - 1] in HELP_FLAGS:
        print(help_text(group))
        raise SystemExit(0)
    elif words == ["--version"]:
        print(f"kiln {__version__}")
    else:
        print(f"error: {unknown_command(name, group)}", file=sys.stderr)
        raise SystemExit(2)


def help_text(group: str = "") -> str:
    """Return the list of subcommands: of `kiln`, or with `aws ` of `kiln aws`."""
    names = [name for name in COMMANDS if name.startswith(group)]
    width = max(map(len, names))
    lines = [f"  {name:{width}}  {COMMANDS[name][1]}" for name in names]
    return "\n".join(
        [
            f"usage: kiln {group}COMMAND ...",
            "",
            "Clay embeddings of Earth-observation archives.",
            "",
            *lines,
            "",
            f"`kiln {names[0]} --help` shows a command's options.",
        ]
    )


def unknown_command(name: str, group: str = "") -> str:
    """Return the error text for an unknown subcommand, with the nearest known one if there is any."""
    names = [known for known in COMMANDS if known.startswith(group)]
    near = difflib.get_close_matches(name, _with_last_words(names), n=1)
    known = next((n for n in names if near and near[0] in (n, n.split()[-1])), None)
    advice = f"Did you mean `kiln {known}`?" if known else "`kiln --help` shows what each does."
    return f"kiln: expected one of {', '.join(names)}, got {name!r}. {advice}"


def _with_last_words(names: Iterable[str]) -> list[str]:
    """Return the names, and `up` for `aws up` too, so that `kiln up` gets a suggestion."""
    return [word for name in names for word in dict.fromkeys((name, name.split()[-1]))]


if __name__ == "__main__":
    main()
