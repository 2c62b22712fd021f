"""Profiles in the user's Snakemake folder: linked, and never over something else."""

from pathlib import Path

from envs import link_profiles


def test_links_every_profile_but_default_and_leaves_others_alone(tmp_path: Path):
    profiles, user = tmp_path / "project/profiles", tmp_path / "user/snakemake"
    for name in ("default", "cloud", "cluster"):
        (profiles / name).mkdir(parents=True)
    assert link_profiles.link(profiles, user) == []
    assert sorted(p.name for p in user.iterdir()) == ["cloud", "cluster"]
    assert (user / "cloud").resolve() == profiles / "cloud"
    assert link_profiles.link(profiles, user) == [], "again"

    (user / "cloud").unlink()
    (user / "cloud").mkdir()
    (user / "cloud/config.yaml").write_text("mine")
    (user / "cluster").unlink()
    (user / "cluster").symlink_to(tmp_path / "gone")
    said = link_profiles.link(profiles, user)
    assert len(said) == 1
    assert "--workflow-profile profiles/cloud" in said[0]
    assert (user / "cloud/config.yaml").read_text() == "mine"
    assert (user / "cluster").resolve() == profiles / "cluster"
