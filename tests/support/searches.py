"""`kiln search` over small databases: run it, and compute its results with NumPy."""

import numpy as np
import pytest

from kiln.archives.worldcover.lattice import Column
from kiln.cli import search
from kiln.explorer.build import Select, build
from tests.support.products import WORLD, chip_at, random_vectors

SIDE = 512 / 12000
COLUMNS = [Column(k, 0, 10) for k in range(10)]
PLACE = f"{-125 + 4.5 * SIDE},{50 - 3.5 * SIDE}"  # in column 4, row 3
CHIP = chip_at(WORLD, 2021, 4, 3).chip_id


def build_database(folder, *products):
    """Index the products in `folder`; return the path of the database."""
    build([m.record_file for m in products], [m.uri for m in products], str(folder / "db"), Select())
    return str(folder / "db")


def search_output(capsys, db, *args):
    """Return what the command prints."""
    capsys.readouterr()
    search.main(["--db", db, *args])
    return capsys.readouterr().out


def search_error(capsys, db, *args):
    """Return the exit status and the message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        search.main(["--db", db, *args])
    return e.value.code, capsys.readouterr().err


def nearest_chips(k, keep=lambda chip: True):
    """Return the k nearest chips of CHIP without itself, computed by NumPy: ids and cosines."""
    chips = [chip_at(WORLD, y, c, r) for y in (2020, 2021) for c in range(10) for r in range(10)]
    unit = random_vectors(chips).astype(np.float16).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    likes = unit @ unit[[c.chip_id for c in chips].index(CHIP)]
    order = sorted((i for i, c in enumerate(chips) if keep(c) and c.chip_id != CHIP), key=lambda i: -likes[i])[:k]
    return [chips[i].chip_id for i in order], [likes[i] for i in order]
