"""Link the project's profiles into the user's Snakemake folder, where `snakemake --profile NAME` looks for them.

`default` is taken from the project by itself. What already lies there under a name, other than a link to this
project or to nothing, is left alone, and said.
"""

from pathlib import Path

from snakemake.common import get_appdirs

PROFILES = Path(__file__).resolve().parent.parent / "profiles"


def link(profiles: Path, folder: Path) -> list[str]:
    """Link every profile but default; returns what is in the way."""
    left = []
    for profile in sorted(p for p in profiles.iterdir() if p.is_dir() and p.name != "default"):
        there = folder / profile.name
        if there.is_symlink() and not there.exists():  # of a project that is gone
            there.unlink()
        if not there.exists():
            folder.mkdir(parents=True, exist_ok=True)
            there.symlink_to(profile)
        elif there.resolve() != profile:
            left.append(f"{there} is there already: for this project's, say --workflow-profile profiles/{profile.name}")
    return left


if __name__ == "__main__":
    for line in link(PROFILES, Path(get_appdirs().user_config_dir)):
        print(line)
