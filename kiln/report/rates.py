"""The rate of one job's encoder, before any job of a run is finished: configured, or measured by `kiln tune`."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from kiln.io.text_table import format_rate
from kiln.model.tuning_file import EncoderSetting, read_rates, tuning_file


@dataclass(frozen=True)
class EncoderRate:
    """A rate and how it is known.

    Attributes:
        chips_per_second: Chips that one job's encoder embeds in a second.
        is_configured: Whether a person states it in the config.
    """

    chips_per_second: float
    is_configured: bool

    @property
    def text(self) -> str:
        """The rate in words."""
        source = "plan.chips_per_second" if self.is_configured else "kiln tune on this machine"
        return f"{format_rate(self.chips_per_second)} chips/s of the encoder alone ({source}); jobs also start and read"


@dataclass(frozen=True)
class EncoderUse:
    """How a run uses the encoder.

    Attributes:
        untrained: Sizes of an untrained encoder; None for the published one.
        precision: Precision of weights and arithmetic.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: Threads of one job's encoder.
        batch: Chips encoded together.
    """

    untrained: Mapping[str, int] | None
    precision: str
    device: str
    threads: int
    batch: int

    def setting(self, chip_px: int) -> EncoderSetting:
        """Return the setting for chips of a size."""
        return EncoderSetting.of(
            self.untrained,
            precision=self.precision,
            device=self.device,
            threads=self.threads,
            batch=self.batch,
            chip_px=chip_px,
        )

    def tune_command(self, chip_px: int) -> str:
        """Return the command that measures the rate for chips of a size, as a person types it."""
        words = ["kiln", "tune", "--device", self.device.partition(":")[0]]
        if self.device == "cpu":
            words += ["--threads", str(self.threads)]
        words += ["--precisions", self.precision, "--batches", str(self.batch), "--chip-size", str(chip_px)]
        if self.untrained:
            sizes = {key: self.untrained[key] for key in ("dim", "depth", "heads", "mlp_ratio")}
            words += ["--untrained", json.dumps(sizes)]
        return shlex.join(words)

    def measured(self, chip_px: int, folder: str) -> EncoderRate | None:
        """Return the rate that `kiln tune` measured on this kind of machine, or None. Raises ConfigError."""
        path = tuning_file(self.device, folder)
        rate = read_rates(path).get(self.setting(chip_px)) if path.exists() else None
        return None if rate is None else EncoderRate(rate, is_configured=False)
