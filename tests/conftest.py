"""For all tests: eight host devices, one compilation cache, a LUNA16 folder, DICOM series."""

import os
import pathlib
import sys
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Compiling takes most of the tests' time, an eighth of that without LLVM's optimisation and XLA's
# fusion emitters.
USERS_FLAGS = os.environ.get("XLA_FLAGS", "")


def xla_flags(devices: int, level: int = 0) -> str:
    return (
        f"{USERS_FLAGS} --xla_force_host_platform_device_count={devices} "
        f"--xla_backend_optimization_level={level} --xla_cpu_use_fusion_emitters=false"
    )


os.environ["XLA_FLAGS"] = xla_flags(8)
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # where there are GPUs too: meshes here are of eight
# XLA's threads, as many as cores otherwise: on two cores devices that wait for one another in a
# collective can hold them all, and wait for ever.
os.environ["NPROC"] = "16"
sys.path.insert(0, str(ROOT))

import importlib.util  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import SimpleITK as sitk  # noqa: E402
from absl import flags  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402

from lung_unet import workdir as runs  # noqa: E402
from lung_unet.data.manifest import SPLITS, Dataset  # noqa: E402
from lung_unet.data.phantom import write_metaimage  # noqa: E402
from lung_unet.data.preparation import prepare  # noqa: E402
from lung_unet.data.scan import Grid  # noqa: E402
from lung_unet.data.shard_reader import scan_records  # noqa: E402
from lung_unet.data.shards import Settings  # noqa: E402
from lung_unet.data.volume import make_labels  # noqa: E402
from lung_unet.model import unet  # noqa: E402
from lung_unet.parallel.mesh import make_mesh  # noqa: E402
from lung_unet.train.checkpoint import Checkpoints  # noqa: E402
from lung_unet.train.optimizer import make_optimizer  # noqa: E402
from lung_unet.train.step import init_state, make_apply  # noqa: E402

flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags, which pytest does not parse

SETTINGS = Settings(spacing_mm=4.0, margin_mm=8.0, block=(20, 20, 20), nodule_blocks=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first: at the end, one worker would be left with it."""
    first = ("tests/integration/", "tests/parallel/", "tests/train/")
    items.sort(key=lambda item: not item.nodeid.startswith(first))


@pytest.fixture(scope="session")
def environment() -> Callable[..., dict[str, str]]:
    """environment(devices, level of LLVM's optimisation) → that of a process of the tests.

    Level 1 is for what runs more than it compiles, None compiles as a user's command does.
    """

    def environment(devices: int, level: int | None = 0) -> dict[str, str]:
        xla = USERS_FLAGS if level is None else xla_flags(devices, level)
        return os.environ | {"XLA_FLAGS": xla}

    return environment


def smoke_config(name: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("smoke")


def shrunk_config() -> ConfigDict:
    config = smoke_config("unet3d")
    config.data.update(spacing_mm=4.0, margin_mm=8.0, block=(20, 20, 20), patch=(16, 16, 16))
    config.data.nodule_blocks = 2
    config.model.update(channels=(4, 8), convs=1)
    for name, change in config.augment.items():
        change.probability = 0.5 if name in ("flip", "noise") else 0.0
    config.train.update(steps=4, log_every=1, eval_every=2, checkpoint_every=2)
    config.train.validation_patches = 4
    config.optimizer.update(warmup_steps=0, schedule="constant")
    return config


@pytest.fixture
def config() -> ConfigDict:
    """The smoke configuration, shrunk to what compiles and runs in moments.

    It flips and adds noise only, and where training stops does not change its learning rate.
    """
    return shrunk_config()


@pytest.fixture
def augmented(config) -> ConfigDict:
    """The same with all that the smoke configuration augments with."""
    config.augment = smoke_config("unet3d").augment
    return config


@pytest.fixture
def quiet(config) -> ConfigDict:
    """The same without any change of a batch."""
    from lung_unet.benchmark.augment import without_augmentation

    return without_augmentation(config)


@pytest.fixture(scope="session")
def flips_alone() -> tuple[str, ...]:
    """Flags of a command that leave of all augmentation the flips."""
    names = smoke_config("unet3d").augment
    return tuple(f"--config.augment.{name}.probability=0" for name in names if name != "flip")


@pytest.fixture(scope="session", name="shrunk_config")
def shrunk_config_() -> Callable[[], ConfigDict]:
    return shrunk_config


@pytest.fixture
def second_config() -> ConfigDict:
    """The second stage's smoke configuration, shrunk in the same way."""
    config = smoke_config("classifier3d")
    config.data.update(patch=(8, 8, 8), fold=0)
    config.candidates.jitter = 1
    config.model.update(channels=(2, 4), norm="instance")
    config.train.update(steps=4, log_every=1, eval_every=2, checkpoint_every=2, batch_size=4)
    config.optimizer.update(warmup_steps=0, schedule="constant")
    config.evaluation.batch_size = 4
    return config


@pytest.fixture(scope="session")
def luna16(tmp_path_factory) -> pathlib.Path:
    """Four scans in LUNA16's layout, small and plain: a body, two lungs, a nodule in each."""
    root = tmp_path_factory.mktemp("luna16")
    annotations = ["seriesuid,coordX,coordY,coordZ,diameter_mm"]
    uids = []
    for number in range(4):
        uid = f"1.2.{number}"
        hu, lungs, grid, nodule = make_scan(number)
        for folder, array in ((f"subset{number}", hu), ("seg-lungs-LUNA16", lungs)):
            (root / folder).mkdir(exist_ok=True)
            write_metaimage(root / folder / f"{uid}.mhd", array, grid)
        z, y, x = nodule
        annotations.append(f"{uid},{x},{y},{z},20.0")
        uids.append(uid)
    (root / "annotations.csv").write_text("\n".join(annotations) + "\n")
    (root / "annotations_excluded.csv").write_text(annotations[0] + "\n")
    (root / "seriesuids.csv").write_text("\n".join(uids) + "\n")
    return root


def make_scan(seed: int) -> tuple[np.ndarray, np.ndarray, Grid, np.ndarray]:
    """(hu, lungs, grid, nodule centre mm z, y, x) of a plain chest of 150 × 192 × 192 mm."""
    rng = np.random.default_rng(seed)
    grid = Grid((30, 64, 64), np.array([5.0, 3.0, 3.0]), np.array([-200.0, -90.0 - seed, -95.0]))
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.shape), indexing="ij")
    hu = np.full(grid.shape, -1000.0)
    hu[y**2 / 0.7 + x**2 / 0.9 < 1] = 40
    lungs = np.zeros(grid.shape, np.uint8)
    for code, side in ((3, 1), (4, -1)):
        lungs[(x - 0.45 * side) ** 2 / 0.09 + y**2 / 0.3 + z**2 / 0.8 < 1] = code
    hu[lungs > 0] = -850
    centre = grid.to_world([15 + rng.integers(-4, 5), 32 + rng.integers(-6, 7), 46])
    where = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    hu[np.linalg.norm(grid.to_world(where) - centre, axis=-1) < 10] = 30
    hu += rng.normal(0, 20, hu.shape)
    return hu.astype(np.int16), lungs, grid, centre


@pytest.fixture(scope="session", name="make_scan")
def make_scan_() -> Callable:
    return make_scan


PERSONAL = {  # what must never leave a reader; the UIDs are tags too
    "0008|0020": "19991231",
    "0008|0050": "ACC5550123",
    "0008|0080": "Hospital Santa Planted",
    "0008|0090": "Referring^Planted",
    "0008|1030": "planted study description",
    "0008|103e": "planted series description",
    "0010|0010": "Quixote^Planted",
    "0010|0030": "19470605",
    "0010|1040": "12 Planted Street",
    "0020|0010": "STUDYNUMBER77",
    "0020|4000": "planted comment",
    "0018|1000": "DEVICESERIAL88",
    "0020|000d": "1.2.777.1",
    "0020|0052": "1.2.777.2",
}


def write_series(
    folder: pathlib.Path,
    uid: str = "1.2.3.4",
    hu: np.ndarray | None = None,
    grid: Grid | None = None,
    tags: dict[str, str] | None = None,
    compressor: str | None = None,
    name: str = "{}.dcm",
) -> pathlib.Path:
    """A CT series of int16 HU (z, y, x) on a grid; by default four slices of 16 × 16 pixels.

    `name` is that of a file, of the number of its slice; files are not named in the slices' order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if hu is None:
        hu = np.random.default_rng(0).integers(-1000, 400, (4, 16, 16)).astype(np.int16)
    if grid is None:
        grid = Grid(hu.shape, np.array([1.0, 0.5, 0.5]), np.array([5.0, -20.0, -10.0]))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    if compressor:
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
    along_column, along_row = grid.direction[::-1, 1], grid.direction[::-1, 2]
    for z, plane in enumerate(hu):
        image = sitk.GetImageFromArray(plane[None])
        image.SetSpacing([*(float(v) for v in grid.spacing_mm[:0:-1]), 1.0])
        position = grid.to_world([z, 0, 0])[::-1]
        both = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.{z + 1}",
            "0008|0060": "CT",
            "0010|0020": "MRN-774900",
            "0020|000d": "1.2.777.1",
            "0020|000e": uid,
            "0020|0032": "\\".join(f"{v:.9g}" for v in position),
            "0020|0037": "\\".join(f"{v:.9g}" for v in (*along_row, *along_column)),
            "0028|1052": "-1024",
            "0028|1053": "1",
        } | (tags or {})
        for tag, value in both.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / name.format((z * 7 + 3) % len(hu))))
        writer.Execute(image)
    return folder


@pytest.fixture(scope="session", name="write_series")
def write_series_() -> Callable:
    return write_series


@pytest.fixture(scope="session")
def personal() -> dict[str, str]:
    """Tags that name the patient or the study; the PatientID is MRN-774900."""
    return PERSONAL


def turned(axes: str, signs: tuple[int, int, int], degrees: float = 0.0) -> np.ndarray:
    """A direction: array axes along these world axes, with signs, then turned by some degrees."""
    direction = np.eye(3)[:, ["zyx".index(a) for a in axes]] * signs
    return (
        Rotation.from_rotvec(np.deg2rad(degrees) * np.array([0.6, 0, 0.8])).as_matrix() @ direction
    )


@pytest.fixture(
    params=[("zyx", (1, 1, 1)), ("zyx", (-1, -1, 1)), ("yxz", (1, -1, 1)), ("xzy", (-1, 1, -1), 7)],
    ids=["LPS", "flipped", "turned", "turned, flipped and oblique"],
)
def direction(request) -> np.ndarray:
    """Directions that the array axes of a scan can have."""
    return turned(*request.param)


@pytest.fixture(scope="session")
def settings() -> Settings:
    """What the folder `prepared` was prepared with."""
    return SETTINGS


@pytest.fixture(scope="session")
def prepared(luna16, tmp_path_factory) -> pathlib.Path:
    """The folder `luna16`, prepared at 4 mm with blocks of 20³."""
    out = tmp_path_factory.mktemp("prepared")
    prepare(luna16, out, SETTINGS, workers=2)
    return out


@pytest.fixture
def dataset(prepared) -> Dataset:
    return Dataset(prepared)


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real scans and outlines; tests that need it are skipped where it is missing."""
    folder = pathlib.Path(
        os.environ.get("LUNG_UNET_REAL_DATA", ROOT.parent / "shared" / "data")
    ).absolute()
    if not (folder / "chest_ct_dicom").is_dir():
        pytest.skip(f"no real data in {folder}; set LUNG_UNET_REAL_DATA")
    return folder


@pytest.fixture
def make_run(dataset, tmp_path, monkeypatch) -> Callable[[str, ConfigDict], pathlib.Path]:
    """The folder, of a name, of a run on `dataset`, with the checkpoint of an untrained network.

    Its probabilities lie around 0.5, so that it finds something.
    """
    monkeypatch.setattr(unet, "PRIOR", 0.5)

    def make(name: str, config: ConfigDict) -> pathlib.Path:
        folder = tmp_path / name
        config.evaluation.update(
            threshold=0.3, finding_threshold=0.3, candidate_threshold=0.1, min_diameter_mm=3.0
        )
        runs.claim(folder, config, dataset)
        state = init_state(config, make_apply(config)[1], make_optimizer(config), make_mesh(config))
        checkpoints = Checkpoints(folder / "checkpoints")
        checkpoints.save(state, {}, {"loss": 1.0, "dice": 0.5})
        checkpoints.wait()
        checkpoints.close()
        return folder

    return make


@pytest.fixture
def workdir(config, make_run) -> pathlib.Path:
    """The folder of a run of `config`."""
    return make_run("run", config)


class Oracle:
    """Predicts the truth, or a shifted truth, or nothing; counts its calls."""

    def __init__(self, dataset, shift=0, gain=0.9):
        self.calls = 0
        self._truth = {}
        for split in SPLITS:
            records = scan_records(dataset, split)
            for record in (records[i] for i in range(len(records))):
                truth = make_labels(record.findings, record.volume) == 4
                self._truth[record.volume.hu.tobytes()] = np.roll(truth, shift, 1) * np.float32(
                    gain
                )

    def __call__(self, hu, lungs):
        self.calls += 1
        return self._truth[hu.tobytes()].copy()


@pytest.fixture
def oracle(dataset) -> Callable[..., Oracle]:
    """Predictors that are known to be right, wrong, or silent."""
    return lambda of=dataset, **kwargs: Oracle(of, **kwargs)
