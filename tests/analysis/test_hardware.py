"""Hardware as data: published constants, files of a user's own, and this machine measured."""

import dataclasses
import itertools
import json
import math
import pickle
import re
import typing
from types import SimpleNamespace

import jax
import pytest

from jaxinfer import InputError
from jaxinfer.analysis import hardware
from jaxinfer.analysis.hardware import constants, measuring, reading, system

pytestmark = pytest.mark.quick

# LLM-Viewer (hardwares/hardware_params.py, commit 472f71f): bandwidth, FP16, INT8, onchip_buffer
LLM_VIEWER = {
    "a6000": (768e9, 154.8385e12, 309.7e12, 21504e3),
    "a100-40gb": (1555e9, 312e12, 624e12, 27648e3),
    "a100-80gb": (2039e9, 312e12, 624e12, 27648e3),
}
COMPLETE = """\
name: mine
title: A device of mine
kind: gpu
bandwidth: 1e12
flops: {float32: 2e13, bfloat16: 100000000000000}
memory: 8e9
on_chip: 2.5e7
link: null
host_link: 3.2e10
power: 250
"""


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", LLM_VIEWER)
def test_constants_are_those_of_llm_viewer_where_it_has_the_datasheets(name):
    found = hardware.get(name)
    assert (found.bandwidth, found.flops["bfloat16"], found.flops["int8"], found.on_chip) == LLM_VIEWER[name]
    assert (found.peak(16), found.peak(8)) == LLM_VIEWER[name][1:3]


def test_h100_has_the_memory_of_its_datasheet_and_the_arithmetic_of_llm_viewer():
    found = hardware.get("h100-sxm")
    assert (found.bandwidth, found.peak(16), found.peak(8), found.on_chip) == (3350e9, 989.5e12, 1979e12, 33792e3)


@pytest.mark.parametrize("name", hardware.NAMES)
def test_every_device_is_whole_and_cites_each_constant(name):
    found = hardware.get(name)
    assert found.name == name
    assert found.kind in typing.get_args(constants.Kind)
    assert set(found.sources) == set(found.constants())
    for constant, text in found.sources.items():
        assert len(text) > 20, constant
        assert not text.endswith(".yaml"), f"{constant}: none is given"
    none = {constant for constant, value in found.constants().items() if value is None}
    assert none == {constant for constant, text in found.sources.items() if text.startswith(("null: ", "none: "))}
    assert found.peak(32) < found.peak(16) <= found.peak(8) <= found.peak(4)
    assert found.peak(16) == found.flops["bfloat16"]
    # Two bytes of each weight for two operations: no device computes as slowly as that.
    assert found.peak(16) / found.bandwidth > 1


@pytest.mark.parametrize("name", [name for name in hardware.NAMES if hardware.get(name).kind == "gpu"])
def test_dense_rates_are_half_of_the_sparse_ones_that_are_cited(name):
    """A source that prints a sparse figure beside the dense one, or alone, gives twice the constant."""
    found = hardware.get(name)
    for constant, text in found.sources.items():
        if not constant.startswith("flops.") or "spars" not in text:
            continue
        printed = re.search(r"sparse ([\d,.]+)|half of the ([\d,.]+) (?:T|P)", text)
        figure = float((printed[1] or printed[2]).replace(",", "").rstrip("."))
        scale = 1e15 / 8 if "eight GPUs" in text else 1e12
        assert found.flops[constant.removeprefix("flops.")] == pytest.approx(figure * scale / 2, rel=0.02), constant


def test_register_files_are_256_kb_an_sm():
    for name in hardware.NAMES:
        found = hardware.get(name)
        if found.kind == "gpu":
            sms = int(re.search(r"(\d+) SMs", found.sources["on_chip"])[1])
            assert found.on_chip == 256e3 * sms, name


def test_peaks_fall_to_the_next_wider_type():
    found = hardware.get("rtx-4090")
    rates = {
        32: 82.6e12,
        16.5: 82.6e12,
        16: 165.2e12,
        9: 165.2e12,
        8: 660.6e12,
        6: 660.6e12,
        4: 1321.2e12,
        1.58: 1321.2e12,
    }
    assert {bits: found.peak(bits) for bits in rates} == rates
    assert hardware.get("h100").peak(4) == 1979e12  # no arithmetic of four bits
    assert hardware.get("tpu-v7").peak(8) == 4614e12  # fp8, and no int8
    slow = dataclasses.replace(found, flops={"float32": 3.0, "bfloat16": 1.0, "int8": 2.0})
    assert [slow.peak(bits) for bits in (32, 16, 8, 4)] == [3.0] * 4  # operands can be widened


@pytest.mark.parametrize("bits", [0, -8, 33, 64, math.nan, True, "16", None])
def test_bits_that_no_operand_has_are_an_error(bits):
    with pytest.raises(InputError, match=r"^bits=.* must be a number above 0, of at most 32$"):
        hardware.get("a100").peak(bits)


def test_a_device_can_be_hashed_pickled_and_does_not_change():
    one, other = reading.read_file(reading.DEVICES / "h200.yaml"), hardware.get("h200")
    assert one == other
    assert one is not other
    assert hash(one) == hash(other)
    assert one != dataclasses.replace(other, flops={**other.flops, "int8": 1.0})
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(TypeError):
        one.flops["int8"] = 1.0
    assert dict(one.flops) == one.flops


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("h100", "h100-sxm"),
        ("H100-PCIe", "h100-pcie"),
        ("a100", "a100-80gb"),
        ("nvidia_A100_80G", "a100-80gb"),
        ("nvidia_A6000", "a6000"),
        ("RTX 4090", "rtx-4090"),
        ("tpu_v5e", "tpu-v5e"),
        ("groq", "groq-lpu"),
    ],
)
def test_other_spellings(given, name):
    assert hardware.get(given) is hardware.get(name)
    assert set(hardware.ALIASES.values()) <= set(hardware.NAMES)
    assert not set(hardware.ALIASES) & set(hardware.NAMES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "h10O",
            r"^h10O: is no known hardware: a100-40gb, .*, or a .yaml file of your own; nearest: 'h100'$",
        ),
        ("tpu-v8", r"nearest: 'tpu-v"),
        ("thismachine", r"nearest: 'this-machine'$"),
        ("", r"^hardware='': must be a name, such as a100-40gb, or a .yaml file$"),
        (7, r"^hardware=7: must be a name"),
        ("nowhere.yaml", r"^hardware: nowhere.yaml: no such file$"),
        ("some/where", r"^hardware: some/where: no such file$"),
    ],
)
def test_unknown_hardware_is_one_line_with_the_nearest_name(given, message):
    with pytest.raises(InputError, match=message) as caught:
        hardware.get(given)
    assert "\n" not in str(caught.value)


def test_a_file_of_ones_own(tmp_path):
    path = written(tmp_path, COMPLETE + "sources: {bandwidth: my own measurement}\n")
    found = hardware.get(str(path))
    assert found == hardware.get(path)
    assert (found.name, found.bandwidth, found.memory, found.link, found.power) == ("mine", 1e12, 8e9, None, 250.0)
    assert dict(found.flops) == {"float32": 2e13, "bfloat16": 1e14}
    assert found.sources["bandwidth"] == "my own measurement"
    assert found.sources["flops.bfloat16"] == str(path)


@pytest.mark.parametrize("key", ["name", "title", "kind", "bandwidth", "flops", "memory", "on_chip", "link", "power"])
def test_a_missing_constant_is_named_with_its_file(tmp_path, key):
    path = written(tmp_path, "".join(line + "\n" for line in COMPLETE.splitlines() if not line.startswith(key)))
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: constant '{key}' is missing"):
        hardware.get(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bandwidth: 1e12", "bandwidth: 1 TB/s", "bandwidth: must be a positive finite number, not '1 TB/s'"),
        ("bandwidth: 1e12", "bandwidth: 0", "bandwidth: must be a positive finite number, not 0"),
        ("bandwidth: 1e12", "bandwidth: null", "bandwidth: must be a positive finite number, not None"),
        ("memory: 8e9", "memory: -8e9", "memory: must be a positive finite number, not -8000000000.0"),
        ("memory: 8e9", "memory: .inf", "memory: must be a positive finite number, not inf"),
        ("memory: 8e9", "memory: .nan", "memory: must be a positive finite number, not nan"),
        ("power: 250", "power: true", "power: must be a positive finite number or null, not True"),
        ("power: 250", "power: 250\npower: 300", "'power' is given twice"),
        ("power: 250", "power: 250\nbandwith: 1", "hardware has no constant 'bandwith'; nearest: 'bandwidth'"),
        ("kind: gpu", "kind: gqu", "kind: must be one of gpu, tpu, cpu, spatial, not 'gqu'; nearest: 'gpu'"),
        ("title: A device of mine", "title: 7", "title: must be a text, not 7"),
        ("float32: 2e13", "float23: 2e13", "flops: 'float23' is no type of operand: .*; nearest: 'float32'"),
        ("float32: 2e13, ", "", "constant 'flops.float32' is missing"),
        ("float32: 2e13", "float32: fast", "flops.float32: must be a positive finite number, not 'fast'"),
        (
            "power: 250",
            "power: 250\nsources: {bandwith: x}",
            "sources: there is no constant 'bandwith'; near",
        ),
        ("power: 250", "power: 250\nsources: {memory: 3}", "sources.memory: must be a text, not 3"),
        (COMPLETE, "- 1\n", "must be a mapping, not .*: hardware is a mapping that starts with 'name: ...'"),
        (COMPLETE, "", "must be a mapping, not nothing: hardware is a mapping"),
        (COMPLETE, "a: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(tmp_path, old, new, message):
    assert old in COMPLETE
    path = written(tmp_path, COMPLETE.replace(old, new))
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}(:\d+)?: .*{message}") as caught:
        hardware.get(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Count what is measured: a small machine, whose caches lie in a folder of the test's own."""
    calls = []
    monkeypatch.setenv("JAXINFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "SIZES", (16, 32))
    monkeypatch.setattr(measuring.measure, "read_bandwidth", lambda: calls.append(1) or 1e10 + len(calls))
    return calls


def test_this_machine_is_measured_once_and_kept(measured, tmp_path):
    said = []
    first = hardware.get("this-machine", say=said.append)
    assert (first.name, first.kind, first.bandwidth) == ("this-machine", "cpu", 1e10 + 1)
    assert "seconds" in said[0]
    assert set(first.flops) == {"float32", "bfloat16", "int8"}
    assert all(text.startswith("measured on 2") for name, text in first.sources.items() if "flops" in name)
    assert (first.link, first.host_link, first.power) == (None, None, None)
    assert hardware.get("this_machine", say=said.append) == first
    assert (len(measured), len(said)) == (1, 4)
    again = hardware.get("this-machine", fresh=True)
    assert again.bandwidth == 1e10 + 2
    assert hardware.get("this-machine") == again
    (kept,) = (tmp_path / "cache" / "hardware").iterdir()
    assert json.loads(kept.read_text())["bandwidth"] == again.bandwidth


@pytest.mark.parametrize("damage", ["", "{", '{"name": "this-machine"}', '{"bandwidth": -1}', "\x00"])
def test_a_damaged_cache_is_measured_again(measured, tmp_path, damage):
    hardware.get("this-machine")
    (kept,) = (tmp_path / "cache" / "hardware").iterdir()
    kept.write_text(damage)
    assert hardware.get("this-machine").bandwidth == 1e10 + 2
    assert hardware.get("this-machine").bandwidth == 1e10 + 2


def test_another_jax_other_cores_and_other_flags_are_another_machine(measured, monkeypatch):
    hardware.get("this-machine")
    for change in (
        lambda: monkeypatch.setattr(system, "cores", lambda: 77),
        lambda: monkeypatch.setattr(jax, "__version__", "99.0"),
        lambda: monkeypatch.setenv("XLA_FLAGS", "--another"),
    ):
        change()
        count = len(measured)
        hardware.get("this-machine")
        hardware.get("this-machine")
        assert len(measured) == count + 1


def test_without_a_cache_it_is_measured_each_time(measured, monkeypatch):
    monkeypatch.setenv("JAXINFER_CACHE", "off")
    assert hardware.get("this-machine").bandwidth < hardware.get("this-machine").bandwidth


def test_peaks_count_two_operations_a_multiply_add(monkeypatch):
    """A clock that ticks a millisecond at each look: a product takes one, whatever it is."""
    ticks = itertools.count()
    monkeypatch.setattr(measuring, "SIZES", (8, 24))
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: 1e-3 * next(ticks)))
    assert measuring.peak_of_products("int8") == (pytest.approx(2 * 24**3 / 1e-3), 24)
    assert measuring.peak_of_products("bfloat16", 3) == (pytest.approx(3 * 2 * 24**3 / 1e-3), 24)
    monkeypatch.setattr(measuring, "LONGEST", 5e-3)  # the second size would take 8 ms
    assert measuring.peak_of_products("float32")[1] == 8


def test_what_cannot_be_measured_of_a_known_accelerator_is_read_in_its_datasheet(measured, monkeypatch):
    gpu = SimpleNamespace(platform="gpu", device_kind="NVIDIA H200", memory_stats=lambda: {"bytes_limit": 7 << 30})
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    found, sheet = hardware.get("this-machine"), hardware.get("h200")
    assert (found.kind, found.title, found.memory) == ("gpu", "NVIDIA H200", float(7 << 30))
    assert (found.on_chip, found.link, found.host_link, found.power) == (33792e3, 450e9, 64e9, 700.0)
    assert found.sources["link"] == sheet.sources["link"]
    assert found.bandwidth != sheet.bandwidth
    assert set(measuring.DATASHEETS.values()) <= set(hardware.NAMES)


def test_caches_of_the_last_level_count_once_each(monkeypatch, tmp_path):
    def cache(cpu, index, level, kind, size, shared):
        folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
            (folder / name).write_text(f"{text}\n")

    for cpu in range(4):
        cache(cpu, 0, 1, "Data", "32K", cpu)
        cache(cpu, 1, 1, "Instruction", "64K", cpu)
        cache(cpu, 2, 2, "Unified", "512K", cpu)
    monkeypatch.setattr(system, "CACHES", tmp_path)
    assert system.last_cache() == (4 * 512 * 1024.0, f"caches of level 2, {tmp_path}")
    for cpu in range(4):
        cache(cpu, 3, 3, "Unified", "16M", "0-1" if cpu < 2 else "2-3")
    assert system.last_cache()[0] == 2 * 16 * 2**20
    monkeypatch.setattr(system, "CACHES", tmp_path / "nowhere")
    assert system.last_cache() == (32 * 2**20, "assumed: 32 MiB; the system does not tell")


def test_memory_is_that_of_the_container_where_it_is_limited(monkeypatch, tmp_path):
    physical = system.os.sysconf("SC_PAGE_SIZE") * system.os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(system, "LIMIT", tmp_path / "max")
    assert system.memory() == (physical, "physical memory, sysconf")
    for text, bytes_ in (("max", physical), ("1000000", 1e6), (str(4 * physical), physical)):
        (tmp_path / "max").write_text(f"{text}\n")
        assert system.memory()[0] == bytes_
