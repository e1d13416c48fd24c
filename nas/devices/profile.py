"""A device's profile: the measured shapes that a predictor is fitted to, as a file.

One JSON file for a device, conditions and space; it says what it was measured on, so that it can be carried elsewhere.
"""

import hashlib
import json
import re
import stat
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from analysis.latency import Conditions
from nas.devices.fingerprint import Fingerprint
from nas.devices.predictor import LatencyPredictor, Prior, Sample
from nas.devices.target import Level
from nas.errors import InvalidInputError
from search_spaces.architecture import TextSpec
from search_spaces.spaces import Space, space_from_dict

SCHEMA_VERSION = 2
MAX_FILE_BYTES = 20_000_000
MAX_TEXT = 500


@dataclass(frozen=True, slots=True)
class Profile:
    """What is on disk.

    Attributes:
        conditions: What the samples were measured for.
        fingerprint: The facts of the device.
        description: The device in words.
        hidden_act: The activation of the encoders, which has its price too.
        space: The space they come from, in its JSON form.
        samples: The measured shapes.
        anchor_reference_s: The anchor's level when they were measured.
        level_interval: Between which multiples of it the level moved.
        measured_at: When the last sample was taken, as ISO 8601 in UTC.
        levels: What was seen of the machine's level lately.
        prior: The known device that the predictor starts from, where that helped.
    """

    conditions: Conditions
    fingerprint: Fingerprint
    description: str
    hidden_act: str
    space: dict[str, Any]
    samples: tuple[Sample, ...]
    anchor_reference_s: float
    level_interval: tuple[float, float]
    measured_at: str
    levels: tuple[Level, ...] = ()
    prior: Prior | None = None

    def predictor(self) -> LatencyPredictor:
        """Fits the predictor of these samples."""
        priors = () if self.prior is None else (self.prior,)
        return LatencyPredictor(self.samples, self.conditions, self.anchor_reference_s, self.level_interval, priors)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form: the predictor's own, with the device, the space and the time beside it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "description": self.description,
            "fingerprint": self.fingerprint.to_dict(),
            "hidden_act": self.hidden_act,
            "space": self.space,
            "measured_at": self.measured_at,
            "predictor": self.predictor().to_dict(),
            "levels": [[level.at_s, level.time_s] for level in self.levels],
        }

    @classmethod
    def from_dict(cls, data: object) -> "Profile":
        """Reads :meth:`to_dict`'s form.

        Raises:
            InvalidInputError: It is of another schema or breaks a bound.
        """
        names = {"schema_version", "description", "fingerprint", "hidden_act", "space", "measured_at"}
        names |= {"predictor", "levels"}
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
            raise InvalidInputError(f"a profile must be an object of schema {SCHEMA_VERSION}")
        if set(data) != names:
            raise InvalidInputError(f"a profile must hold exactly {', '.join(sorted(names))}")
        for name in ("description", "hidden_act"):
            value = data[name]
            if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT or not value.isprintable():
                raise InvalidInputError(f"a profile's {name} must be a short printable text, got {value!r:.80}")
        try:
            measured_at = datetime.fromisoformat(data["measured_at"]).isoformat()
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"a profile's measured_at must be a date and time: {error}") from error
        pairs = data["levels"]
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise InvalidInputError("a profile's levels must be a list of pairs")
        predictor = LatencyPredictor.from_dict(data["predictor"])
        return cls(
            conditions=predictor.conditions,
            fingerprint=Fingerprint.from_facts(data["fingerprint"]),
            description=data["description"],
            hidden_act=data["hidden_act"],
            space=space_from_dict(data["space"]).to_dict(),
            samples=predictor.samples,
            anchor_reference_s=predictor.anchor_reference_s,
            level_interval=predictor.level_interval,
            measured_at=measured_at,
            levels=tuple(Level(*pair) for pair in pairs),
            prior=predictor.prior,
        )

    def to_json(self) -> str:
        """The file's content: :meth:`to_dict`."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Profile":
        """Reads :meth:`to_json`'s form.

        Raises:
            InvalidInputError: It is not JSON, of another schema, or breaks a bound.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"a profile must be JSON: {error}") from error
        return cls.from_dict(data)

    @classmethod
    def read(cls, path: Path) -> "Profile":
        """Reads a profile's file.

        Raises:
            InvalidInputError: It cannot be read, is too large, or is no profile.
        """
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
                raise InvalidInputError("cannot read it: it is no regular file")
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise InvalidInputError(f"a profile holds at most {MAX_FILE_BYTES} bytes")
            return cls.from_json(content.decode())
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"cannot read it: {getattr(error, 'strerror', None) or error}") from error


def profile_path(
    cache_dir: Path, conditions: Conditions, space: Space, text: TextSpec, folder: str = "profiles"
) -> Path:
    """Where the profile of a space under these conditions is kept, below a folder of the cache."""
    choices = {name: value for name, value in space.to_dict().items() if name != "name"}
    facts = {"conditions": asdict(conditions), "space": choices, "hidden_act": text.hidden_act}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", conditions.device)[:60]
    return cache_dir / folder / f"{name}-{digest}.json"
