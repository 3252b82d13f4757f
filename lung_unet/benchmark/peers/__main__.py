"""lung_unet, nnU-Net and MONAI side by side: same scans, same minutes, same cores, same scoring.

    python -m lung_unet.benchmark.peers --patients=DIR,DIR,DIR[,DIR…] | --luna16=DIR
        [--lidc_xml=DIR] --out=DIR --minutes=30
        --peers_python=PYTHON [--config=configs/unet3d.py:peer_cpu] [--config.key=value]
        [--classifier=configs/classifier3d.py:smoke --classifier_share=0.35]

After --patients, each LUNA16 folder is of other patients, and config.data.fold says which is tested
on: fold k tests on folder k, validates on the next and trains on the others. --train, --validation
and --test in its place give each folder its split. With --luna16 the folder's own subsets are.
PYTHON is that of an environment made with requirements-peers.txt; launch/side_by_side.sh makes it.
Ours trains where JAX does, on a GPU if there is one, and then the peers on that GPU.
The scans of the training split train each system, by its own recipe, for so many minutes by the
clock; planning, preprocessing and caching come before and are told apart. Each system then predicts
validation and test scans by its own means (--nomirrors spares the peers' eight mirrors, which take
long on a CPU; --plan_gb has nnU-Net plan for less memory than a GPU's 8 GB). With --classifier, a
share of our minutes goes to a second stage, and both stages are a system too. All are scored by
lung_unet.evaluate's code on the scans' own grids, each at the operating point that is best for it
on the validation split.

What was done is kept in OUT, and a system that is done is not run again (give another OUT for other
settings or scans); one that was interrupted starts anew. OUT/ours, OUT/ours/two_stages,
OUT/nnunet and OUT/monai hold metrics.json and can be given to lung_unet.evaluate --compare. The
table is printed, and written as comparison.md and .json.
"""

import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from lung_unet import command, split_flags
from lung_unet.child import run_logged
from lung_unet.errors import InputError, Stopped
from lung_unet.files import alone_in, make_anew, write_text

PACKAGE = "lung_unet.benchmark.peers"


def run(out: pathlib.Path, arguments: list[str], scans: dict[str, Any]) -> None:
    """Runs a system into its folder unless it is done; what it prints goes to run.log there.

    Raises:
      InputError: it failed, was stopped, was run with other arguments or on other `scans`, as
        convert.py:truth_of says them, or the folder is not of an earlier call.
    """
    from lung_unet.benchmark.peers.exchange import SYSTEM

    given = json.dumps({"arguments": arguments[1:], "scans": scans}, indent=1)
    path, log = out / "command.json", out / "run.log"
    if (out / SYSTEM).exists():
        if not path.exists() or path.read_text(encoding="utf-8") != given:
            raise InputError(
                f"{out}: was run with other settings or on other scans, see {path}; choose another "
                "--out"
            )
        return
    make_anew(out)
    write_text(path, given)
    print(f"{out.name}: running, see {log}")
    run_logged([*arguments, f"--out={out}"], log)
    if not (out / SYSTEM).exists():
        raise Stopped(f"{out}: was stopped; run the same command again")


def main() -> None:
    out = pathlib.Path(command.required("out")).absolute()
    with alone_in(out, "another process works in it", "choose another --out"):
        run_all(out)


def run_all(out: pathlib.Path) -> None:
    """Runs and scores what is not done yet, and prints the table."""
    from lung_unet.benchmark.peers.convert import convert, truth_of
    from lung_unet.benchmark.peers.exchange import read_system
    from lung_unet.benchmark.peers.score import score
    from lung_unet.benchmark.peers.second_stage import BOTH
    from lung_unet.benchmark.peers.table import side_by_side, write_table
    from lung_unet.data.datasets import settings_of
    from lung_unet.data.manifest import Dataset
    from lung_unet.data.preparation import prepare
    from lung_unet.data.source import open_source
    from lung_unet.model.levels import strides_of

    python = command.required("peers_python")
    minutes, config = flags.FLAGS.minutes, flags.FLAGS.config
    scans, lidc_xml = given_scans(out, config)
    strides = strides_of(config.model)
    if len(strides) < 2:
        raise InputError("config.model.channels: MONAI's DynUNet takes three or more")
    settings = settings_of(config.data)
    prepare(scans, out / "data", settings, lidc_xml)
    dataset = Dataset(out / "data", config.data.fold)
    source = open_source(scans, lidc_xml, settings.min_readers, settings.outlines)
    convert(source, dataset, config.data, out / "raw")
    truth = truth_of(dataset, config.data)

    ours = [sys.executable, "-m", f"{PACKAGE}.ours", *_config_flags(sys.argv[1:])]
    ours += [f"--config.data.dir={out / 'data'}"]
    ours += [f"--minutes={minutes}", f"--classifier={flags.FLAGS.classifier}"]
    run(out / "ours", [*ours, f"--classifier_share={flags.FLAGS.classifier_share}"], truth)
    device = "cuda" if read_system(out / "ours").get("device") == "gpu" else "cpu"
    shared = [f"--raw={out / 'raw'}", f"--minutes={minutes}", f"--device={device}"]
    shared += [f"--mirrors={int(flags.FLAGS.mirrors)}"]
    nnunet = [python, "-m", f"{PACKAGE}.nnunet", *shared, f"--plan_gb={flags.FLAGS.plan_gb}"]
    run(out / "nnunet", nnunet, truth)
    monai = [python, "-m", f"{PACKAGE}.monai_dynunet", *shared]
    monai += ["--channels", *map(str, config.model.channels)]
    monai += ["--strides", *(str(n) for stride in strides for n in stride)]
    monai += ["--patch", *map(str, config.data.patch)]
    monai += ["--window", *map(str, config.evaluation.window or config.data.patch)]
    monai += [f"--spacing_mm={dataset.spacing_mm}", f"--batch={config.train.batch_size}"]
    run(out / "monai", monai, truth)

    peers = [out / "nnunet", out / "monai"]
    for peer in peers:
        score(peer, source, dataset, config)
    first, others = out / "ours", peers
    if flags.FLAGS.classifier:
        first, others = out / "ours" / BOTH, [out / "ours", *peers]
    print(write_table(side_by_side(first, others), minutes, out))


def given_scans(out: pathlib.Path, config: ConfigDict) -> tuple[str, str | None]:
    """The folder of scans, and that of their XML: the one given, or one made of several by patient.

    Raises:
      InputError: none or two are given, or a patient is in two splits.
    """
    given = split_flags.given()
    if given is None:
        lidc_xml = flags.FLAGS.lidc_xml or config.data.lidc_xml or None
        return command.required("luna16"), lidc_xml
    if flags.FLAGS.luna16:
        raise InputError("--luna16: is not used with --patients or --train; leave it out")
    if config.data.fold and not given.patients:
        raise InputError(
            f"config.data.fold = {config.data.fold}: --train, --validation and --test are one "
            "fold; leave it out"
        )
    given.combine(out / "luna16")
    return str(out / "luna16"), None


def _config_flags(arguments: Sequence[str]) -> list[str]:
    """Those of --config and its fields, each with its value."""
    found = []
    for flag, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        if re.match("--?config[.=]|--?config$", flag):
            apart = "=" not in flag and not following.startswith("-")
            found.append(f"{flag}={following}" if apart else flag)
    return found


if __name__ == "__main__":
    flags.DEFINE_string("luna16", None, "Folder of scans, as lung_unet.prepare takes it.")
    split_flags.define()
    flags.DEFINE_string("lidc_xml", None, "Folder of LIDC-IDRI's XML files.")
    flags.DEFINE_string("out", None, "Folder to write to.")
    flags.DEFINE_float("minutes", 30.0, "To train, by the clock, each.", lower_bound=0)
    flags.DEFINE_string("peers_python", None, "Python with nnunetv2 and monai.")
    flags.DEFINE_string("classifier", "", "Configuration of our second stage; empty: none.")
    flags.DEFINE_float("classifier_share", 0.35, "Of our minutes, for the second stage.")
    flags.DEFINE_bool("mirrors", True, "Whether the peers average eight mirrors, as they do.")
    flags.DEFINE_float("plan_gb", 8.0, "GPU memory that nnU-Net plans for; 8 is its own default.")
    command.define_config("configs/unet3d.py")
    command.run(main)
