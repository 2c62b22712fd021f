"""Profiles are linked in the user's Snakemake folder and never replace another file."""

from pathlib import Path

from envs import link_profiles


def test_every_profile_but_default_is_linked_and_other_files_are_kept(tmp_path: Path):
    profiles, user = tmp_path / "project/profiles", tmp_path / "user/snakemake"
    for name in ("default", "cloud", "cluster"):
        (profiles / name).mkdir(parents=True)
    assert link_profiles.link(profiles, user) == []
    assert sorted(p.name for p in user.iterdir()) == ["cloud", "cluster"]
    assert (user / "cloud").resolve() == profiles / "cloud"
    assert link_profiles.link(profiles, user) == [], "a second run has nothing to link"

    (user / "cloud").unlink()
    (user / "cloud").mkdir()
    (user / "cloud/config.yaml").write_text("own settings")
    (user / "cluster").unlink()
    (user / "cluster").symlink_to(tmp_path / "gone")
    warnings = link_profiles.link(profiles, user)
    assert len(warnings) == 1
    assert "--workflow-profile profiles/cloud" in warnings[0]
    assert (user / "cloud/config.yaml").read_text() == "own settings"
    assert (user / "cluster").resolve() == profiles / "cluster"
