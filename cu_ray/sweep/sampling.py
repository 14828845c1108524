"""The next point of a study: a pure function of (sampling key, index, points so far and the results it may know).

So points depend neither on the number of workers, nor on the order in which trials end, nor on other studies, and a study
rebuilt from the ledger goes on exactly as it would have.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from cu_ray.config import Options, Space
from cu_ray.errors import SearchFailed, in_one_line
from cu_ray.identity import seed_for
from cu_ray.plugins import name_of
from cu_ray.sweep.plan import Hyperparameters, StudySpec

optuna.logging.set_verbosity(optuna.logging.ERROR)

Result = float | tuple[float, float] | None  # a score, or two objectives, or a failure

POPULATION = 16  # of a generation of nsga2
GENERATION = "NSGAIISampler:generation"
# TPE learns to keep away from pruned points; told as failed they are forgotten, and it returns to where they were
FAILED = {"tpe": TrialState.PRUNED, "gp": TrialState.FAIL, "nsga2": TrialState.FAIL}


class Memory:
    """An Optuna study from one point to the next: what it holds need not be told again. It changes no point."""

    def __init__(self) -> None:
        self._study: optuna.Study | None = None
        self._num_told = 0

    def told(
        self,
        study: StudySpec,
        sampler: optuna.samplers.BaseSampler,
        earlier: Sequence[Hyperparameters],
        results: Sequence[Result],
    ) -> optuna.Study:
        """The Optuna study in which all earlier points are, the first ones with their results, the others running."""
        if self._study is None or study.method.sampler != "tpe":  # nsga2 keeps to itself what it made of half a generation
            self._study, self._num_told = optuna.create_study(sampler=sampler, directions=["maximize"] * study.num_objectives), 0
        self._study.sampler = sampler
        spaces, generations = study.method.space, _generations(results, study.search.lag) if study.num_objectives == 2 else ()
        for number in range(len(self._study.get_trials(deepcopy=False)), len(earlier)):
            self._study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params={name: _encoded(space, earlier[number][name]) for name, space in spaces.items()},
                    distributions={name: _distribution(space) for name, space in spaces.items()},
                    system_attrs={GENERATION: generations[number]} if number < len(generations) else None,
                )
            )
        for number in range(self._num_told, len(results)):
            result = results[number]
            self._study.tell(number, result, None if result is not None else FAILED[study.method.sampler])
        self._num_told = len(results)
        return self._study


def point(
    study: StudySpec,
    index: int,
    earlier: Sequence[Hyperparameters],
    results: Sequence[Result],
    memory: Memory | None = None,
) -> dict[str, Any]:
    """The hyperparameters of point `index` (from 0).

    earlier: those of points 0 to index - 1. results: of points 0 to index - lag, None for a failed one; samplers that learn
    are told these, in this order, and see the other points as still running. memory: of this study's earlier points.
    Raises SearchFailed where the sampler fails.
    """
    method = study.method
    if method.points is not None:
        return dict(method.points[index])
    if not method.space:
        return dict(method.fixed)
    if method.sampler == "grid":
        return {**method.fixed, **method.grid[index]}
    known = (earlier, results) if study.adaptive else ((), ())
    sampled = _ask(study, index, *known, memory or Memory())
    return {**method.fixed, **sampled}


def results_needed(study: StudySpec, index: int) -> int:
    """Of how many points, from 0, the results must be known before point `index` can be made."""
    return max(0, index - study.search.lag + 1) if study.adaptive else 0


def rounds(study: StudySpec, index: int) -> int:
    """How many points, at the least, must follow one another from point `index` to the study's last, itself included."""
    return -(-(study.method.budget - index) // study.search.lag) if study.adaptive else 1


def _ask(
    study: StudySpec, index: int, earlier: Sequence[Hyperparameters], results: Sequence[Result], memory: Memory
) -> dict[str, Any]:
    spaces = study.method.space
    if study.method.sampler == "qmc":
        return _sobol(study, index)
    try:
        optuna_study = memory.told(study, _sampler(study, index), earlier, results)
        asked = optuna_study.ask({name: _distribution(space) for name, space in spaces.items()})
    except Exception as error:
        which = f"{name_of(study.method.cls)} at deletion fraction {', '.join(map(str, study.fractions))}"
        raise SearchFailed(
            f"the sampler {study.method.sampler!r} cannot choose point {index} of the study {study.key[:16]} ({which}): "
            f"{type(error).__name__}: {in_one_line(error)}. Nothing is lost; another sampler for this method goes on."
        ) from error
    return {name: _decoded(space, asked.params[name]) for name, space in spaces.items()}


def _sampler(study: StudySpec, index: int) -> optuna.samplers.BaseSampler:
    seed = seed_for("sampler", study.sampling_key, index) % 2**32
    if study.method.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if study.method.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
    if study.method.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _generations(results: Sequence[Result], lag: int) -> list[int]:
    """The generation of each point: a new one begins where enough of the last were known to have succeeded."""
    generations: list[int] = []
    succeeded: list[int] = []  # by generation
    for number in range(len(results)):
        if number >= lag and results[number - lag] is not None:
            succeeded[generations[number - lag]] += 1
        if not succeeded or succeeded[-1] >= POPULATION:
            succeeded.append(0)
        generations.append(len(succeeded) - 1)
    return generations


def _sobol(study: StudySpec, index: int) -> dict[str, Any]:
    """Point `index` of a scrambled Sobol sequence; Optuna's QMC sampler would count its points by when they are asked for."""
    import scipy.stats  # half a second

    engine = scipy.stats.qmc.Sobol(len(study.method.space), rng=seed_for("sobol", study.sampling_key))
    if index:  # 0 is refused
        engine.fast_forward(index)
    position = engine.random(1)[0]
    return {name: _at(space, float(share)) for (name, space), share in zip(study.method.space.items(), position, strict=True)}


def _at(space: Space, share: float) -> Any:
    """The value at a share in [0, 1) of the way through a space."""
    if isinstance(space, Options):
        return space.values[int(share * len(space.values))]
    if space.integer and not space.log:
        return int(space.low + int(share * (space.high - space.low + 1)))
    value = space.low * (space.high / space.low) ** share if space.log else space.low + share * (space.high - space.low)
    return round(value) if space.integer else value


def _distribution(space: Space) -> BaseDistribution:
    if isinstance(space, Options):
        return CategoricalDistribution(range(len(space.values)))  # places: values may be of any type
    if space.integer:
        return IntDistribution(int(space.low), int(space.high), log=space.log)
    return FloatDistribution(space.low, space.high, log=space.log)


def _encoded(space: Space, value: Any) -> Any:
    return space.values.index(value) if isinstance(space, Options) else value


def _decoded(space: Space, value: Any) -> Any:
    return space.values[value] if isinstance(space, Options) else value
