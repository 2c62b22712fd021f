"""Energy: the counters of processor and GPU, this process' part of them, and estimates without them."""

import threading
from types import SimpleNamespace

import pynvml
import pytest

from kiln.io import energy
from kiln.io.energy import WATTS_PER_CORE, WATTS_PER_GPU, Energy, EnergyMeter, RaplSum

GPU = "GPU-11111111-2222-3333-4444-555555555555"
MAX_J = 262_143.0  # where the fake counters begin again
BUSY_S, CPU_S, HELD_S = 20, 5.0, 8.0  # between `start` and `read`: of all cores, of this process, of the clock


class Machine:
    """Fake counters of a machine: energy in joules by zone, and seconds that its cores were busy."""

    def __init__(self, folder, monkeypatch):
        self.powercap, self.cpu_times = folder / "powercap", folder / "stat"
        self.powercap.mkdir()
        self.clock = SimpleNamespace(process_time=lambda: 100.0 + CPU_S, monotonic=lambda: 700.0 + HELD_S)
        monkeypatch.setattr(energy, "RAPL", self.powercap)
        monkeypatch.setattr(energy, "CPU_TIMES", self.cpu_times)
        monkeypatch.setattr(energy, "time", self.clock)
        self.set_busy(1000)

    def set_joules(self, zone, name, joules):
        folder = self.powercap / zone
        folder.mkdir(exist_ok=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
        (folder / "max_energy_range_uj").write_text(f"{round(MAX_J * 1e6)}\n")

    def set_busy(self, seconds):
        """Write a first line whose user, nice and system time together are so many seconds, and two cores."""
        user, nice, system = (round(part * seconds) for part in (50, 20, 30))  # hundredths
        self.cpu_times.write_text(f"cpu  {user} {nice} {system} 88888 999 0 77 0 0 0\ncpu0 1 2 3 4\ncpu1 1 2 3 4\n")

    def threads(self):
        """Return the threads that still read counters, after a moment for one that ends."""
        for thread in (t for t in threading.enumerate() if t.name == "energy"):
            thread.join(5)
        return [t for t in threading.enumerate() if t.name == "energy"]

    def start(self, gpu=""):
        return EnergyMeter(gpu, _start=700.0, _cpu_s=100.0)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def package(machine):
    """The machine with one processor package."""
    machine.set_joules("intel-rapl:0", "package-0", 500)
    return machine


@pytest.fixture
def nvml(monkeypatch):
    """A fake NVML; the test sets the joules of its GPU, or the error that it answers."""
    state = SimpleNamespace(joules=0.0, error=None, opened=[])

    def total_energy(handle):
        assert handle == f"handle of {GPU}"
        if state.error:
            raise pynvml.NVMLError(state.error)
        return round(state.joules * 1000)  # NVML counts millijoules

    def handle_of(uuid):
        state.opened.append(uuid)
        return f"handle of {uuid}"

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle_of)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", total_energy)
    return state


def is_estimated(measured):
    return measured == Energy(pytest.approx(CPU_S * WATTS_PER_CORE), 0.0, is_measured=False)


# ------------------------------------------------------------------------------------------------------------ processor


def test_energy_is_this_process_part_of_packages_and_memory(machine):
    zones = {
        "intel-rapl:0": ("package-0", 40),
        "intel-rapl:0:0": ("core", 30),  # a part of the package
        "intel-rapl:0:1": ("dram", 8),
        "intel-rapl:1": ("package-1", 12),
        "intel-rapl:2": ("psys", 500),  # the machine in all
    }
    for zone, (name, _) in zones.items():
        machine.set_joules(zone, name, 1000)
    meter = machine.start()
    for zone, (name, joules) in zones.items():
        machine.set_joules(zone, name, 1000 + joules)
    machine.set_busy(1000 + BUSY_S)
    assert meter.stop() == Energy(pytest.approx((40 + 8 + 12) * CPU_S / BUSY_S), 0.0, is_measured=True)


def test_a_counter_that_began_again_goes_on(machine):
    machine.set_joules("intel-rapl:0", "package-0", MAX_J - 30)
    meter = machine.start()
    machine.set_joules("intel-rapl:0", "package-0", 10)
    machine.set_busy(1000 + BUSY_S)
    assert meter.stop() == Energy(pytest.approx(40 * CPU_S / BUSY_S), 0.0, is_measured=True)


def test_a_counter_that_begins_again_several_times_is_read_often_enough(machine):
    machine.set_joules("intel-rapl:0", "package-0", 0)
    total = RaplSum(interval_s=3600)
    for _ in range(5):  # as the thread does
        machine.set_joules("intel-rapl:0", "package-0", MAX_J * 0.6)
        total.read()
        machine.set_joules("intel-rapl:0", "package-0", MAX_J * 0.2)
        total.read()
    assert total.stop() == pytest.approx(MAX_J * (0.6 + 4 * 0.4 + 5 * 0.6))


def test_a_thread_reads_the_counters_until_the_end(package):
    total = RaplSum(interval_s=0.001)
    package.set_joules("intel-rapl:0", "package-0", 600)
    for _ in range(1000):
        if total._joules:
            break
        threading.Event().wait(0.01)
    assert total._joules == pytest.approx(100)
    assert total.stop() == pytest.approx(100)
    assert package.threads() == []


def test_a_process_has_at_most_all_energy(package):
    meter = package.start()
    package.set_joules("intel-rapl:0", "package-0", 560)
    package.set_busy(1000 + CPU_S / 2)  # hundredths are coarse
    assert meter.stop().cpu_j == pytest.approx(60)


def test_without_counters_energy_is_estimated_from_processor_time(machine):
    meter = machine.start()
    machine.set_busy(1000 + BUSY_S)
    assert is_estimated(meter.stop())


@pytest.mark.parametrize("when", ["at the beginning", "at the end"])
def test_an_unreadable_counter_gives_an_estimate(package, when):
    package.set_joules("intel-rapl:1", "package-1", 500)
    unreadable = package.powercap / "intel-rapl:1" / "energy_uj"
    meter = package.start() if when == "at the end" else None
    unreadable.unlink()
    unreadable.mkdir()  # root may read every file, but no folder
    meter = meter or package.start()
    package.set_joules("intel-rapl:0", "package-0", 560)
    package.set_busy(1000 + BUSY_S)
    assert is_estimated(meter.stop())


def test_a_counter_without_a_number_gives_an_estimate(package):
    meter = package.start()
    (package.powercap / "intel-rapl:0" / "energy_uj").write_text("")
    package.set_busy(1000 + BUSY_S)
    assert is_estimated(meter.stop())


def test_a_counter_that_appears_later_gives_an_estimate(package):
    meter = package.start()
    package.set_joules("intel-rapl:0", "package-0", 560)
    package.set_joules("intel-rapl:1", "package-1", 900)
    package.set_busy(1000 + BUSY_S)
    assert is_estimated(meter.stop())


@pytest.mark.parametrize("text", [None, "", "cpu\n", "cpu  0 0 0 0\n"], ids=["no file", "empty", "no times", "zeros"])
def test_without_the_busy_time_of_the_machine_energy_is_estimated(package, text):
    package.cpu_times.unlink()
    if text is not None:
        package.cpu_times.write_text(text)
    meter = package.start()
    package.set_joules("intel-rapl:0", "package-0", 560)
    assert is_estimated(meter.stop())


# ------------------------------------------------------------------------------------------------------------------ GPU


def test_the_energy_of_a_gpu_is_that_of_its_counter(package, nvml):
    nvml.joules = 1_000_000
    meter = package.start(GPU)
    package.set_joules("intel-rapl:0", "package-0", 560)
    package.set_busy(1000 + BUSY_S)
    nvml.joules += 1234.5
    assert meter.stop() == Energy(pytest.approx(60 * CPU_S / BUSY_S), pytest.approx(1234.5), is_measured=True)
    assert set(nvml.opened) == {GPU}


@pytest.mark.parametrize("when", ["at the beginning", "at the end"])
def test_a_gpu_that_does_not_count_is_estimated_from_the_time_it_is_held(package, nvml, when):
    nvml.error = pynvml.NVML_ERROR_NOT_SUPPORTED if when == "at the beginning" else None
    meter = package.start(GPU)
    nvml.error = pynvml.NVML_ERROR_NOT_SUPPORTED if when == "at the end" else None
    package.set_joules("intel-rapl:0", "package-0", 560)
    package.set_busy(1000 + BUSY_S)
    measured_cpu = pytest.approx(60 * CPU_S / BUSY_S)
    assert meter.stop() == Energy(measured_cpu, pytest.approx(HELD_S * WATTS_PER_GPU), is_measured=False)


def test_without_its_library_a_gpu_is_estimated(machine, monkeypatch):
    def missing():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    read = machine.start(GPU).stop()
    assert (read.gpu_j, read.is_measured) == (pytest.approx(HELD_S * WATTS_PER_GPU), False)


def test_a_measured_gpu_does_not_make_an_estimated_processor_measured(machine, nvml):
    meter = machine.start(GPU)
    nvml.joules += 50
    assert meter.stop() == Energy(pytest.approx(CPU_S * WATTS_PER_CORE), pytest.approx(50), is_measured=False)


def test_a_job_without_a_gpu_has_no_gpu_energy_and_asks_for_none(package, nvml):
    meter = package.start()
    nvml.joules += 50
    package.set_joules("intel-rapl:0", "package-0", 560)
    package.set_busy(1000 + BUSY_S)
    assert meter.stop() == Energy(pytest.approx(60 * CPU_S / BUSY_S), 0.0, is_measured=True)
    assert nvml.opened == []


# ----------------------------------------------------------------------------------------------------------- this Linux


def test_the_meter_of_a_real_process_grows_with_its_processor_time():
    meter = EnergyMeter()
    end = energy.time.process_time() + 0.05
    while energy.time.process_time() < end:
        pass
    first = meter.stop()
    assert first.cpu_j > 0
    assert first.gpu_j == 0
    if not first.is_measured:
        assert first.cpu_j >= 0.05 * WATTS_PER_CORE
