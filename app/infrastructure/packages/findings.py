"""What is found while a package is read: faults, which end the import, and warnings, which do not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from app.domain.problem import Fault, ProblemError
from app.infrastructure.packages.files import WHAT, PackageFiles

_LARGEST_YAML = 64 * 1024


@dataclass(slots=True)
class Findings:
    """Collected, so that somebody who imports a package sees all at once."""

    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def fault(self, path: str, what: str) -> None:
        """Note what makes the import impossible."""
        self.faults.append(Fault(path, what))

    def warn(self, path: str, what: str) -> None:
        """Note what is imported otherwise than the package means it, or not at all."""
        self.warnings.append(f"{path}: {what}")

    def text(self, files: PackageFiles, path: str) -> str:
        """A file's text; what cannot be read is a fault, and empty."""
        try:
            return files.text(path)
        except ProblemError as error:
            self.faults.extend(error.faults)
            return ""

    def mapping(self, files: PackageFiles, path: str) -> dict[str, Any]:
        """A YAML file's mapping; what is none is a fault, and empty."""
        text = self.text(files, path)
        if len(text) > _LARGEST_YAML:
            self.fault(path, f"has more than {_LARGEST_YAML} characters")
            return {}
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
            self.fault(path, "is not YAML")
            return {}
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fault(path, "must be a mapping, such as `name: …`")
            return {}
        return {str(key): inner for key, inner in value.items()}

    def finish(self) -> None:
        """Raise `ProblemError` with all faults, if there are any."""
        if self.faults:
            raise ProblemError(WHAT, tuple(self.faults))
