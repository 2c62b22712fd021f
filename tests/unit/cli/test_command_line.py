"""How scripts end: exit codes, signals, and when the workflow that started them dies."""

import os
import subprocess
import sys

import pytest

from kiln import errors
from kiln.cli import command_line
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("a wrong setting"), 2),
        (errors.SourceError("a bad file"), 1),
        (errors.TransientError("throttled"), 1),
        (errors.StorageError("full"), 1),
        (errors.WeightsError("truncated"), 1),
        (errors.TooManyFailuresError("half"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_expected_errors_are_one_line_and_an_exit_code(capsys, error, code):
    def work() -> None:
        raise error

    with pytest.raises(SystemExit) as e:
        command_line.run(work)
    assert e.value.code == code
    text = capsys.readouterr().err
    assert text == (f"error: {error}\n" if code != 130 else "interrupted; nothing partial is left\n")


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        command_line.run(lambda: 1 / 0)


WAIT = (
    "import time; from kiln.cli import command_line as cli; cli.run(lambda: (print('up', flush=True), time.sleep(30)))"
)


def start(**env: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT],
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    return process


def test_a_script_ends_when_its_driver_was_killed():
    driver = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    script = start(KILN_DRIVER_PID=str(driver.pid))
    assert script.poll() is None
    driver.kill()  # it stays a zombie until it is waited for: that counts as gone
    text = script.communicate(timeout=60)[1]
    driver.wait()
    assert script.returncode == 143
    assert "the workflow that started this script is gone" in text


@pytest.mark.parametrize("pid", ["", "nonsense", "99999999"])
def test_without_a_driver_a_script_goes_on_until_sigterm(pid):
    script = start(KILN_DRIVER_PID=pid)
    with pytest.raises(subprocess.TimeoutExpired):
        script.wait(timeout=0.1)
    script.terminate()
    text = script.communicate(timeout=60)[1]
    assert script.returncode == 143
    assert text == "terminated; nothing partial is left\n"


def test_negative_coordinates_are_not_read_as_options():
    p = command_line.parser("A script.", "kiln any")
    p.add_argument("--at")
    p.add_argument("--bbox")
    args = p.parse_args(["--at", "-98,47", "--bbox", "-.5,40,9,50"])
    assert (args.at, args.bbox) == ("-98,47", "-.5,40,9,50")
