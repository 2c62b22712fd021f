"""The stages of a run: what is done, and how long the rest takes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Stage:
    """The jobs of a rule.

    Attributes:
        title: What the jobs do.
        expected: Number of jobs.
        running: Start of each running job in seconds, by job id.
        done, failed: Ids of finished and of failed jobs.
        seconds: Sum of the finished jobs' durations.
    """

    title: str = ""
    expected: int = 0
    running: dict[int, float] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    seconds: float = 0.0

    @property
    def jobs(self) -> int:
        """Number of jobs. It is at least the number of jobs that were seen."""
        return max(self.expected, len(self.running) + len(self.done) + len(self.failed))

    @property
    def left(self) -> int:
        """Number of jobs that have not ended."""
        return self.jobs - len(self.done) - len(self.failed)

    def __str__(self) -> str:
        if self.jobs == 1 and not self.failed:
            return self.title
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{self.title} ({len(self.done)} of {self.jobs}{failed})"


class RunProgress:
    """The stages of a run, by rule. Times are in seconds since the epoch."""

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}
        self._rules: dict[int, str] = {}  # by job id
        self._percentage: int | None = None
        self._is_complete = False  # whether all jobs are known
        self._time = self._elapsed = self._busy = 0.0  # since all jobs are known; busy is the sum over running jobs

    def expect(self, jobs: Mapping[str, int], more: bool) -> None:
        """Set the number of jobs of each rule. With `more`, a checkpoint may add jobs."""
        for rule in sorted(self.stages.keys() | jobs.keys()):
            self.stages.setdefault(rule, Stage()).expected = jobs.get(rule, 0)
        self._is_complete = not more

    def start(self, job: int, rule: str, title: str, now: float) -> None:
        """Count a job as running. A failed job may start again."""
        self._advance(now)
        self._rules[job] = rule
        stage = self.stages.setdefault(rule, Stage())
        stage.title = stage.title or title
        stage.failed.discard(job)
        stage.running[job] = now

    def end(self, job: int, failed: bool, now: float) -> Stage | None:
        """Count a job as finished or failed. Return its stage, or None if the job does not run."""
        self._advance(now)
        stage = self.stages.get(self._rules.get(job, ""))
        if stage is None or job not in stage.running:
            return None
        started = stage.running.pop(job)
        (stage.failed if failed else stage.done).add(job)
        stage.seconds += 0 if failed else now - started
        return stage

    def _advance(self, now: float) -> None:
        if self._is_complete and self._time:
            self._elapsed += now - self._time
            self._busy += (now - self._time) * sum(len(s.running) for s in self.stages.values())
        self._time = now

    def percentage(self) -> int | None:
        """Return the share of jobs that are done. It never falls, and is None until all jobs are known."""
        total = sum(s.jobs for s in self.stages.values())
        if self._is_complete and total:
            share = 100 * sum(len(s.done) for s in self.stages.values()) // total
            self._percentage = max(share, self._percentage or 0)
        return self._percentage

    def seconds_left(self) -> float | None:
        """Estimate the time left. A stage without a finished job is taken to need the mean time of all finished jobs.

        There is no estimate while such a stage has more jobs than all that are finished.
        """
        stages = self.stages.values()
        done = sum(len(s.done) for s in stages)
        if not self._is_complete or not self._busy or any(s.left > done for s in stages if not s.done):
            return None
        mean_s = sum(s.seconds for s in stages) / max(done, 1)
        work_s = 0.0
        for stage in stages:
            job_s = stage.seconds / len(stage.done) if stage.done else mean_s
            work_s += stage.left * job_s - sum(min(self._time - start, job_s) for start in stage.running.values())
        return work_s * self._elapsed / self._busy

    def line(self, *stages: Stage) -> str:
        """Return a line about some stages, with the percentage and the time left of the whole run."""
        percentage, seconds = self.percentage(), self.seconds_left()
        share = "?" if percentage is None else f"{percentage}%"
        left = "" if seconds is None or percentage == 100 else f", {time_left(seconds)}"
        return f"{share:>4}  {', '.join(map(str, stages))}{left}"


def time_left(seconds: float) -> str:
    """Return an estimated time in words, no more exact than it is known."""
    minutes = round(seconds / 60)
    if seconds < 55:
        return f"about {max(round(seconds, -1), 10):.0f} s left"
    return f"about {minutes} min left" if minutes < 60 else f"about {minutes // 60} h {minutes % 60:02d} min left"


def stage_title(rule: str, message: str | None, wildcards: Mapping[str, str]) -> str:
    """Return the message of a rule without the wildcards' values of one of its jobs, or the name of the rule."""
    if not message:
        return rule.replace("_", " ")
    for value in sorted(map(str, wildcards.values()), key=len, reverse=True):
        message = re.sub(rf"\s*(?<![\w-]){re.escape(value)}(?![\w-])", "", message)
    return message
