"""A linear classifier over an embedding, words and letter groups: its file, and the scores that it gives. Only numpy.

The file is a zip of arrays and one `about.json`, written by `nodes.fitting`: data alone, without a word of what it was
fitted on. Equal contents are equal bytes.
"""

import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import orjson

from mesh.errors import ConfigError
from nodes import weights
from nodes.grams import Reader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT: Final = "mesh.intents/1"
FILE_BYTES_MAX: Final = 256 * 1024 * 1024
UNPACKED_BYTES_MAX: Final = 1024 * 1024 * 1024
LARGEST: Final = 1e6  # of a figure: far beyond any that was fitted, and sums of products stay finite
ABOUT: Final = "about.json"
ARRAYS: Final = ("hashes", "idf", "table", "dense", "centres", "probe")
EMBEDDING_WEIGHT: Final = 1.5  # against 1 for the words and 1 for the letter groups
PROBE: Final = "What is the balance of my account, and when is the next bill due?"
ALIKE: Final = 0.999  # the cosine from which two releases of the embedding are the same
TINY: Final = 1e-9
FAR: Final = 60.0  # of a logit: as good as certain
UNREADABLE: Final = (
    zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError, OSError, EOFError, RuntimeError, MemoryError,
)  # fmt: skip
"""What the readers of zip files and arrays raise at bytes that are none, or that claim to be far longer."""
EVIDENCE: Final = ("certainty", "lead", "likeness", "own_likeness", "unknown")


@dataclass(frozen=True, slots=True)
class About:
    """What a file says of itself. `weights` and `bias` make the score of `EVIDENCE`; `floor` is what was fitted."""

    labels: tuple[str, ...]
    temperature: float
    weights: tuple[float, ...]
    bias: float
    floor: float
    fitted: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """The likeliest label, how far it is ahead of the second (of the probabilities), and the score in [0, 1]."""

    label: str
    margin: float
    score: float


class Linear:
    """The arrays, ready to score. What it gives does not depend on what it remembers.

    F grams, L labels: `hashes` uint32[F]; `idf` float32[F]; `table` [F, L], each row times its idf; `dense`
    float32[257, L], the last row the constant; `centres` float32[L, 256], of length 1; `probe` float32[256].

    Raises:
        ConfigError: it was fitted on another embedding than is installed.
    """

    def __init__(self, about: About, arrays: Mapping[str, "NDArray[Any]"], name: str) -> None:
        import numpy as np  # noqa: PLC0415 -- graphs are read without it

        self._np = np
        self.about = about
        self._reader = Reader(arrays["hashes"].tolist(), arrays["idf"].tolist())
        self._table = arrays["table"].astype(np.float32)
        self._dense = arrays["dense"].astype(np.float32)
        self._centres = arrays["centres"].astype(np.float32)
        if float(weights.vector(PROBE) @ arrays["probe"].astype(np.float32)) < ALIKE:
            raise ConfigError(name, "was fitted on another release of the embedding than is installed.", "Fit it anew.")

    def finding(self, text: str) -> Finding:
        """The label of a text. 70 us for a sentence."""
        first, second, evidence = self.read(text)
        score = self.about.bias + sum(w * e for w, e in zip(self.about.weights, evidence, strict=True))
        clear = max(-FAR, min(FAR, score))
        return Finding(self.about.labels[first[0]], first[1] - second[1], 1 / (1 + math.exp(-clear)))

    def read(self, text: str) -> tuple[tuple[int, float], tuple[int, float], tuple[float, ...]]:
        """The likeliest label and the second, each with its probability; and the `EVIDENCE` that the first fits."""
        np = self._np
        vector = weights.vector(text)
        scores, unknown = self.scores(text, vector)
        second, first = (int(place) for place in scores.argsort()[-2:])
        lead = float(scores[first] - scores[second])
        powers = np.exp((scores - scores[first]) * self.about.temperature)
        sure = 1 / float(powers.sum())
        next_sure = sure * math.exp(-lead * self.about.temperature)
        certainty = math.log(max(sure, TINY) / max(1 - sure, TINY))
        alike = self._centres @ vector
        return (first, sure), (second, next_sure), (certainty, lead, float(alike.max()), float(alike[first]), unknown)

    def scores(self, text: str, vector: "NDArray[np.float32]") -> "tuple[NDArray[np.float32], float]":
        """float32[labels], above 0 on a label's own side; and the share of letter groups that were never seen."""
        found = self._reader.read(text)
        scores = cast("NDArray[np.float32]", EMBEDDING_WEIGHT * (vector @ self._dense[:-1]) + self._dense[-1])
        for rows, length in ((found.words, found.words_length), (found.groups, found.groups_length)):
            if rows:
                scores += self._np.add.reduce(self._table.take(rows, 0), 0) / length
        return scores, found.unknown


def about(path: Path) -> tuple[About, str]:
    """What a file says of itself, and its digest. Reads no array.

    Raises:
        ConfigError: it cannot be read, or is no such file; says what.
    """
    return _told(_read(path), path.name)


def _told(raw: bytes, name: str) -> tuple[About, str]:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as packed:
            unpacked = sum(part.file_size for part in packed.infolist())  # no part gives more than it says
            if unpacked > UNPACKED_BYTES_MAX:
                raise ConfigError(name, f"has {unpacked} bytes when unpacked; at most {UNPACKED_BYTES_MAX}.")
            found = orjson.loads(packed.read(ABOUT))
    except (*UNREADABLE, orjson.JSONDecodeError) as error:
        raise ConfigError(name, "is no file of a fitted classifier.", "Write it by nodes.fitting.") from error
    return _about(found, name), hashlib.sha256(raw).hexdigest()[:16]


def loaded(path: Path, expected: str) -> Linear:
    """The classifier; `expected` is the digest that the file had when the node was made.

    Raises:
        ConfigError: it has changed since, or its arrays do not fit one another.
    """
    import numpy as np  # noqa: PLC0415

    raw = _read(path)
    said, found = _told(raw, path.name)
    if found != expected:
        raise ConfigError(path.name, "has changed since its graph was read.", "Restart, so that its version is right.")
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as packed:
            arrays = {name: packed[name] for name in ARRAYS}
    except UNREADABLE as error:
        raise ConfigError(path.name, f"has no arrays that can be read: {error}") from error
    _must_fit(arrays, len(said.labels), path.name)
    return Linear(said, arrays, path.name)


def _must_fit(arrays: Mapping[str, Any], labels: int, name: str) -> None:
    count = getattr(arrays["hashes"], "size", 0)
    shapes = {
        "hashes": (count,), "idf": (count,), "table": (count, labels), "dense": (weights.DIMENSIONS + 1, labels),
        "centres": (labels, weights.DIMENSIONS), "probe": (weights.DIMENSIONS,),
    }  # fmt: skip
    for array, shape in shapes.items():
        found = getattr(arrays[array], "shape", None)
        if found != shape or arrays[array].dtype.kind not in "uf" or not _moderate(arrays[array], array):
            raise ConfigError(name, f"its array {array} is {found}, not {shape} of finite numbers.", "Fit it anew.")
    if not (arrays["idf"] > 0).all():
        raise ConfigError(name, "its array idf has weights that are not above 0.", "Fit it anew.")


def _moderate(array: "NDArray[Any]", name: str) -> bool:
    """Whether its figures are finite, and of a size that was ever fitted."""
    return float(abs(array).max(initial=0)) <= (2**32 if name == "hashes" else LARGEST)  # false of a NaN


def write(path: Path, said: About, arrays: Mapping[str, "NDArray[Any]"]) -> None:
    """Write a file; there is never half of one. Equal contents are equal bytes."""
    import numpy as np  # noqa: PLC0415

    meta = {
        "format": FORMAT, "labels": list(said.labels), "temperature": said.temperature, "evidence": list(EVIDENCE),
        "weights": list(said.weights), "bias": said.bias, "floor": said.floor, "fitted": dict(said.fitted),
    }  # fmt: skip
    part = path.with_name(f"{path.name}.new")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(zipfile.ZipInfo(ABOUT), orjson.dumps(meta, option=orjson.OPT_INDENT_2))
        for name in ARRAYS:
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            packed.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())
    part.replace(path)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(path.name, f"has {path.stat().st_size} bytes; at most {FILE_BYTES_MAX}.")
        return path.read_bytes()
    except OSError as error:
        remedy = "Put it beside the graph's module, or give its full path."
        raise ConfigError(f"classifier {str(path)!r}", "cannot be read.", remedy) from error


def _about(found: Any, where: str) -> About:
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ConfigError(where, f"is not of the format {FORMAT!r}.", "Write it by this release's nodes.fitting.")
    if tuple(found.get("evidence", ())) != EVIDENCE:
        raise ConfigError(where, f"weighs other evidence than {', '.join(EVIDENCE)}.", "Fit it anew.")
    try:
        labels, own = tuple(map(str, found["labels"])), tuple(map(float, found["weights"]))
        said = About(
            labels, float(found["temperature"]), own, float(found["bias"]), float(found["floor"]), found["fitted"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(where, f"its {ABOUT} cannot be used: {error}") from error
    figures = (said.temperature, *said.weights, said.bias, said.floor)
    usable = all(abs(figure) <= LARGEST for figure in figures) and said.temperature > 0
    if len(set(labels)) < max(2, len(labels)) or len(own) != len(EVIDENCE) or not usable:
        raise ConfigError(where, f"its {ABOUT} names fewer than two labels, one twice, or figures that are none.")
    return said
