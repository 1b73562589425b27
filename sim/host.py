"""Host stages: the parts of a model that onnxruntime runs between accelerator stages."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError, SimulationError
from gossamer.arch.program import HostStage

__all__ = ["HostRunner"]

Array = NDArray[np.generic]


class HostRunner:
    """Runs host stages, each through a session that is made once. onnxruntime is imported by the first."""

    def __init__(self) -> None:
        self._sessions: dict[int, Any] = {}

    def run(self, stage: HostStage, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of a stage by name. Raises SimulationError when onnxruntime refuses its model or its inputs."""
        session = self._session(stage)
        try:
            results = session.run(list(stage.outputs), {n: np.asarray(feeds[n], order="C") for n in stage.inputs})
        except Exception as error:  # onnxruntime raises classes of its own, derived from Exception
            raise SimulationError(f"host stage {stage.name!r}: onnxruntime: {error}") from error
        return dict(zip(stage.outputs, results, strict=True))

    def _session(self, stage: HostStage) -> Any:
        if id(stage) not in self._sessions:
            try:
                import onnxruntime  # takes a fraction of a second: only a Program with host stages pays for it
            except ImportError as error:
                raise ModelError(f"host stage {stage.name!r} needs onnxruntime: {error}") from error
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            try:
                session = onnxruntime.InferenceSession(stage.model, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # as above
                raise SimulationError(f"host stage {stage.name!r}: onnxruntime: {error}") from error
            self._sessions[id(stage)] = session
        return self._sessions[id(stage)]
