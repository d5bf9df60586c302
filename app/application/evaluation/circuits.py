"""Which judges are asked at all: one that nobody can reach is asked by a single run at a time, not by all that wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from app.core.errors import ErrorCode, ModelError
from app.domain.circuit import Circuit, CircuitState

_PAUSES_S: Final = (1.0, 2.0, 5.0, 15.0)
_NOBODY_THERE: Final = frozenset({ErrorCode.LLM_UNAVAILABLE, ErrorCode.LLM_TIMEOUT})


class JudgeCircuits:
    """A circuit breaker for each judge of this process, by its model.

    What `Circuit` calls a session is a run here: several of them have to find nobody, so that a single prompt which
    no judge can digest is no dead judge.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._circuits: dict[str, Circuit] = {}
        self._ahead: dict[str, int] = {}

    def closed_to(self) -> list[str]:
        """Judges whose runs have to wait."""
        return [model for model, circuit in self._circuits.items() if circuit.state is not CircuitState.CLOSED]

    def to_try(self) -> list[str]:
        """Those of them to which one run may go now, to see whether somebody is there again."""
        now = self._clock()
        return [
            model
            for model, circuit in self._circuits.items()
            if circuit.state is CircuitState.OPEN and not circuit.wait_s(now)
        ]

    def go_ahead(self, model: str, run_id: int) -> None:
        """This run goes, once its claim is sure; nobody else until it tells what it found, or has `ended`."""
        if model in self.to_try():  # it may have been answered meanwhile
            self._circuits[model].go_ahead(self._clock())
            self._ahead[model] = run_id

    def begin(self) -> float:
        """When a run's try begins, for `failed`."""
        return self._clock()

    def answered(self, model: str, *, new: bool) -> None:
        """The judge answered a run; ``new``: the run had not been tried before."""
        if model in self._circuits:
            self._circuits[model].answered(self._clock(), new=new)

    def failed(self, model: str, run_id: int, begun: float, error: ModelError, *, new: bool) -> None:
        """A run could not be judged; whether that is since nobody is there, the error says."""
        if error.code not in _NOBODY_THERE:
            self.answered(model, new=new)
            return
        circuit = self._circuits.setdefault(model, Circuit(_PAUSES_S))
        circuit.silent(run_id, begun, self._clock(), new=new, asked_s=error.retry_after_s)

    def ended(self, run_id: int) -> None:
        """A run's try is over, however it went: where it went ahead and told nothing of its judge, another may go.

        A run that ended without asking while another was ahead says nothing of that one.
        """
        for model in [model for model, ahead in self._ahead.items() if ahead == run_id]:
            del self._ahead[model]
            self._circuits[model].turned_back()
