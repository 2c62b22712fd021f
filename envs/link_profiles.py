"""Link the project's profiles into the user's Snakemake folder, where `snakemake --profile NAME` looks for them.

Snakemake finds the profile `default` in the project without a link. An existing file, folder or link to another project
is not replaced, and the script reports it. A link whose target no longer exists is replaced.
"""

from pathlib import Path

from snakemake.common import get_appdirs

PROFILES = Path(__file__).resolve().parent.parent / "profiles"


def link(profiles: Path, folder: Path) -> list[str]:
    """Link every profile except `default`. Return a message for each name that something else has already."""
    conflicts = []
    for profile in sorted(p for p in profiles.iterdir() if p.is_dir() and p.name != "default"):
        target = folder / profile.name
        if target.is_symlink() and not target.exists():  # its project was moved or deleted
            target.unlink()
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            target.symlink_to(profile)
        elif target.resolve() != profile:
            conflicts.append(
                f"{target}: expected no file or a link to {profile}, got another one. It was not replaced. "
                f"To use this project's profile, run snakemake with --workflow-profile profiles/{profile.name}."
            )
    return conflicts


if __name__ == "__main__":
    for line in link(PROFILES, Path(get_appdirs().user_config_dir)):
        print(line)
