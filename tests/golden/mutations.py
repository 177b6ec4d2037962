"""Planted bugs must fail the golden bars: usage: mutations.py GOLDEN_DIR PROGRAM GOLDEN_THINKER GOLDEN_SPEECH

A bug in the program is stood in for by the same bug in the checkpoint: a field of config.json with the value that a careless reader
would use, or a bias that is zero. Each must push the tensor that mutations.json names over the bar by a wide margin, and not by much
less than it pushed the reference implementation (tools/reference made those figures, over all rows; golden files keep some). The
checkpoint without a bug must stay under the bar. Bugs that no checkpoint can stand in for are counted as not planted."""

import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from serving import Tap

MARGIN = 10  # times the bar
SHARE = 0.1  # of the reference's error


def plant_config(directory, changes):
    fields = json.loads((directory / "config.json").read_text())
    for path, value in changes.items():
        *parents, last = path.split(".")
        section = fields
        for parent in parents:
            section = section[parent]
        assert section[last] != value, path
        section[last] = value
    (directory / "config.json").unlink()
    (directory / "config.json").write_text(json.dumps(fields))


def plant_zeros(directory, tensor):
    shard = directory / json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"][tensor]
    data = bytearray(shard.read_bytes())
    header_bytes = struct.unpack_from("<Q", data)[0]
    begin, end = json.loads(data[8 : 8 + header_bytes])[tensor]["data_offsets"]
    assert any(data[8 + header_bytes + begin : 8 + header_bytes + end]), tensor
    data[8 + header_bytes + begin : 8 + header_bytes + end] = bytes(end - begin)
    shard.unlink()
    shard.write_bytes(data)


def measure(golden, program, thinker, speech, directory, mutation):
    """The error at the boundary, or what the program said instead."""
    command = [thinker, golden, program] if mutation["boundary"] not in ("mel", "waveform") else [speech, golden]
    run = subprocess.run([*command, str(directory), mutation["item"]], capture_output=True, text=True)
    errors = dict(line.rsplit(" ", 1) for line in run.stdout.splitlines() if line.count(" ") == 1)
    if run.returncode != 0 or mutation["boundary"] not in errors:
        return None, run.stdout + run.stderr
    return float(errors[mutation["boundary"]]), ""


def measure_planted(golden, programs, mutation):
    with tempfile.TemporaryDirectory() as parent:
        directory = pathlib.Path(parent) / "checkpoint"
        shutil.copytree(pathlib.Path(golden) / "qwen2.5-omni-tiny", directory)
        if "config" in mutation:
            plant_config(directory, mutation["config"])
        if "zero" in mutation:
            plant_zeros(directory, mutation["zero"])
        return measure(golden, *programs, directory, mutation)


def main():
    golden, programs = sys.argv[1], sys.argv[2:5]
    mutations = json.loads((pathlib.Path(golden) / "mutations.json").read_text())["mutations"]
    planted = [m for m in mutations if "config" in m or "zero" in m]
    tap = Tap()
    for item, boundary in sorted({(m["item"], m["boundary"]) for m in planted}):
        error, said = measure_planted(golden, programs, {"item": item, "boundary": boundary})
        tap.check(error is not None and error <= planted[0]["bar"], f"without a bug: {item} {boundary}, {error}", said)
    for mutation in planted:
        error, said = measure_planted(golden, programs, mutation)
        least = max(MARGIN * mutation["bar"], SHARE * mutation["error"])
        name = f"{mutation['name']}, {mutation['what']}: {mutation['item']} {mutation['boundary']}"
        tap.check(error is not None and error >= least, f"{name}, {error}, at least {least:.2g}", said)
    print(f"# {len(mutations) - len(planted)} of {len(mutations)} are in code and not planted here")
    tap.end()


main()
