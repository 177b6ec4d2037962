"""Write the checkpoint, the media and the golden files. See ../README.md."""

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from transformers.utils import logging  # noqa: E402

from . import checkpoint, config, media, mutate, sizes, speech, texts, thinker  # noqa: E402

PARTS = ("media", "checkpoint", "thinker", "speech", "texts", "sizes", "mutations")


def main():
    out = Path(__file__).resolve().parents[3] / "tests" / "golden" / "qwen2_5_omni"
    parser = argparse.ArgumentParser(prog="tools/reference/make qwen2_5_omni", description=__doc__)
    parser.add_argument(
        "--seed",
        type=int,
        default=config.SEED,
        help="of the thinker's weights (default %(default)s)",
    )
    parser.add_argument(
        "--speech-seed",
        type=int,
        default=config.SPEECH_SEED,
        help="of the others (default %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=out,
        help="directory to write (default tests/golden/qwen2_5_omni)",
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, of " + ",".join(PARTS))
    parser.add_argument(
        "--find-seed",
        action="store_true",
        help="try seeds from the given ones on until they are fit",
    )
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if set(parts) - set(PARTS):
        parser.error("unknown part: " + ", ".join(sorted(set(parts) - set(PARTS))))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)  # sums in one order on every machine
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = arguments.out / "qwen2.5-omni-tiny"
    if "media" in parts:
        media.write(arguments.out / "media")
    seeds = {"thinker": arguments.seed, "speech": arguments.speech_seed}
    if "checkpoint" in parts:
        checkpoint.write(model, **seeds)
    for part, module in (("thinker", thinker), ("speech", speech)):
        while part in parts:
            reason = module.write(arguments.out, model, arguments.out / "media")
            if reason is None:
                break
            print(f"{part} seed {seeds[part]}: {reason}", flush=True)
            if not arguments.find_seed:
                raise SystemExit("take another seed (--find-seed)")
            seeds[part] += 1
            checkpoint.write(model, **seeds)
    if "texts" in parts:
        texts.write(arguments.out, model)
    if "sizes" in parts:
        sizes.write(arguments.out, arguments.out / "media")
    if "mutations" in parts:
        mutate.write(arguments.out, model, arguments.out / "media")
    print(seeds)


main()
