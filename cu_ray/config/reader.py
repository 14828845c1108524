"""A sweep file read section by section, and whether its parts fit one another and the data."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import yaml

from cu_ray import checks, plugins, yaml_file
from cu_ray.config import choice
from cu_ray.config.methods import Methods
from cu_ray.config.sweep import (
    MOST_SEED,
    SEEDS,
    STORAGE_VARIABLE,
    ControlsSection,
    OriginalSection,
    RuntimeSection,
    SearchSection,
    Sweep,
    default_storage,
)
from cu_ray.config.values import Values
from cu_ray.errors import Faults, FieldFault, UserError, did_you_mean
from cu_ray.plugins import FieldFact
from cu_ray.types import TrainRecipe

SECTIONS = (
    *("name", "dataset", "model", "manipulation", "train", "original", "detection", "deletion_fractions", "seeds"),
    *("methods", "search", "controls", "evidence", "runtime"),
)
REQUIRED = ("name", "dataset", "model", "manipulation", "methods")
DEFAULTS: dict[str, Any] = {"detection": "uniform", "deletion_fractions": [number / 10 for number in range(1, 11)], "seeds": [0]}
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
FRACTIONS = "numbers above 0, at most 1"
EVIDENCE = FieldFact("evidence", bool, False, None, None, None)


class Reader(Values):
    """Reads a whole file."""

    def sweep(self) -> Sweep:
        """The sweep. Raises Faults."""
        top = self.file.value
        if not isinstance(top, dict):
            raise Faults(self.file.source, ["a sweep file is a mapping: name, dataset, model, manipulation, methods, ..."])
        for key in top:
            if key not in SECTIONS:
                self.fault(key, f"unknown section. {did_you_mean(key, (*SECTIONS, 'extends'))}")
        for key in REQUIRED:
            if key not in top:
                self.fault("", f"the section {key!r} is missing")
        for key in ("dataset", "model", "manipulation", "methods", "detection"):
            if key in top and top[key] is None:
                self.fault(key, "this section is empty")
        train = {} if top.get("train") is None else top["train"]
        name = top.get("name", "sweep")
        if not (isinstance(name, str) and re.fullmatch(NAME, name)):
            allowed = "up to 100 letters, digits, '_', '-' and '.', no path"
            hint = ". A number, a date or a bare yes, no, on or off is no text in YAML: write it in quotes"
            self.fault("name", f"{name!r} is not allowed. Allowed: {allowed}{'' if isinstance(name, str) else hint}")
        datasets = self._plugins("datasets", "dataset", top.get("dataset"))
        models = [each for each in self._plugins("models", "model", top.get("model")) if self._says_its_layers(*each)]
        manipulations = self._plugins("manipulations", "manipulation", top.get("manipulation"))
        detections = self._plugins("detections", "detection", top.get("detection", DEFAULTS["detection"]))
        trains = [
            (path, recipe)
            for path, given in self.fan_out(train, lambda _: plugins.facts(TrainRecipe), "train")
            if (recipe := self.instance(TrainRecipe, given, path)) is not None
        ]
        fractions = self.numbers(
            "deletion_fractions", top.get("deletion_fractions", DEFAULTS["deletion_fractions"]), float, FRACTIONS
        )
        for index, fraction in fractions.items():
            if not 0 < fraction <= 1:
                self.fault(f"deletion_fractions[{index}]", f"{fraction!r} is not allowed. Allowed: {FRACTIONS}.")
        seeds = self.numbers("seeds", top.get("seeds", DEFAULTS["seeds"]), int, SEEDS, MOST_SEED)
        search = self.section(SearchSection, "search")
        controls = self.section(ControlsSection, "controls")
        original = self.section(OriginalSection, "original")
        runtime = self._runtime()
        evidence = self.value(EVIDENCE, top.get("evidence", EVIDENCE.default), "evidence", EVIDENCE.default)
        methods = Methods(self.file)
        plans = methods.plans(top.get("methods"), search, [model for _, model in models])
        self.faults |= methods.faults
        fitting = {index: each for index, each in fractions.items() if 0 < each <= 1}
        settled, detected = self._settled(datasets, models, manipulations, detections, fitting)
        self._check_controls(controls, [each for _, each in settled])
        why = choice.why_none(search, plans, [each for _, each in settled], detected, list(fitting.values()))
        if why is not None and fitting:
            self.fault("search.objective", why)
        self._check_original(original, {"dataset": datasets, "model": models, "manipulation": settled, "train": trains})
        if self.faults:
            raise Faults(self.file.source, self.faults)
        return Sweep(
            name,
            self.file.source,
            tuple(each for _, each in datasets),
            tuple(each for _, each in models),
            tuple(settled),
            tuple(each for _, each in trains),
            tuple(detected),
            tuple(float(f"{each:.12g}") for each in fractions.values()),
            tuple(seeds.values()),
            tuple(plans),
            search,
            controls,
            original,
            runtime,
            yaml.safe_dump(top, sort_keys=False, allow_unicode=True),
            evidence,
        )

    def _runtime(self) -> RuntimeSection:
        """The section; where it names no storage that of the environment."""
        runtime: RuntimeSection = self.section(RuntimeSection, "runtime")
        given = self.file.value.get("runtime")
        if isinstance(given, dict) and "storage" in given:
            return runtime
        try:
            return replace(runtime, storage=default_storage())
        except FieldFault as fault:
            self.fault("runtime.storage", f"{STORAGE_VARIABLE} of the environment: {fault}")
            return runtime

    def _plugins(self, kind: str, section: str, given: Any) -> list[tuple[str, Any]]:
        """The plug-ins of a section with their YAML paths: a name, a mapping with a name, or a list of these."""
        if given is None:
            return []
        found = []
        for path, mapping in self.fan_out(given, lambda name: self._plugin_facts(kind, name), section):
            cls = self.plugin_class(kind, mapping.get("name"), path)
            settings = {key: value for key, value in mapping.items() if key != "name"}
            instance = cls and self.instance(cls, settings, path)
            if instance is not None:
                found.append((path, instance))
        return found

    def _plugin_facts(self, kind: str, name: Any) -> dict[str, FieldFact]:
        try:
            return plugins.facts(plugins.find(kind, str(name)))
        except UserError:
            return {}

    def _says_its_layers(self, path: str, model: Any) -> bool:
        """Whether a model says how many layers its blocks have; complains where it does not."""
        try:
            checks.layers_of(model)
        except UserError as error:
            self.fault(path, str(error))
            return False
        return True

    def _settled(
        self,
        datasets: list[tuple[str, Any]],
        models: list[tuple[str, Any]],
        manipulations: list[tuple[str, Any]],
        detections: list[tuple[str, Any]],
        fractions: dict[int, float],
    ) -> tuple[list[tuple[Any, Any]], list[Any]]:
        """Each manipulation for each data set, class names resolved, and the detections, their files read.

        Complains of what does not fit the images.
        """
        pairs, detected, sizes = [], dict[int, Any](), dict[tuple[int, int], None]()
        for place, dataset in datasets:
            try:
                facts = checks.facts_of(dataset)
            except UserError as error:
                self.fault(place, str(error))
                continue
            for path, model in models:
                try:
                    with plugins.users_fault(model):
                        model.check(facts.image_shape)
                except UserError as error:
                    self.fault(path, str(error))
            for path, manipulation in manipulations:
                size = manipulation.size
                try:
                    pairs.append((dataset, checks.settled(manipulation, facts)))
                    size = pairs[-1][1].size
                except FieldFault as error:
                    self.fault(f"{path}.{error.field}", str(error))
                except UserError as error:
                    self.fault(path, str(error))
                if size:
                    sizes[size, facts.num_train] = None
            for index, (path, detection) in enumerate(detections):
                try:
                    detected[index] = checks.settled(detection, facts)  # the same for all data sets that it fits
                except FieldFault as error:
                    self.fault(f"{path}.{error.field}", str(error))
                except UserError as error:
                    self.fault(path, str(error))
        for size, num_train in sizes:
            for index, detection in detected.items():
                try:
                    with plugins.users_fault(detection):
                        self._check_sizes(size, fractions, num_train, detection)
                except UserError as error:
                    self.fault(detections[index][0], str(error))
        return pairs, list(detected.values())

    def _check_controls(self, controls: ControlsSection, manipulations: list[Any]) -> None:
        """Complain of controls that none of the manipulations has."""
        if not manipulations:  # these were complained of
            return
        if controls.trigger_only and not any(each.has_trigger for each in manipulations):
            self.fault("controls.trigger_only", "none of the manipulations has a trigger. Allowed: false.")
        if controls.never_manipulated and not any(each.truth_known for each in manipulations):
            self.fault("controls.never_manipulated", "the true labels are not known, so nothing can be trained on them")

    def _check_original(self, original: OriginalSection, parts: dict[str, list[Any]]) -> None:
        """Complain of weights that are not there or would have to stand for several originals."""
        if original.path is None:
            return
        if not yaml_file.is_file(original.path):
            self.fault("original.weights", f"there is no file {str(original.path)!r}")
        for name, several in parts.items():
            if len(several) > 1:
                self.fault(
                    "original.weights", f"these are one original's weights, but the file gives {len(several)} under {name!r}"
                )

    def _check_sizes(self, size: int, fractions: dict[int, float], num_train: int, detection: Any) -> None:
        """Complain of fractions at which a detection finds nothing, all there is, or what it finds at another fraction.

        The last not where it always finds as many, and so is not asked for a part.
        """
        sizes: dict[int, float] = {}
        always_as_many = detection.num_found(1.0, size) == detection.num_found(1e-6, size)
        for index, fraction in fractions.items():
            found = detection.num_found(fraction, size)
            problem = None
            if found < 1:
                problem = "nothing, an empty deletion set"
            elif found >= num_train >= size:
                problem = "all there is, which leaves no training samples"
            elif found in sizes and not always_as_many:
                problem = f"the same {found} samples as at {sizes[found]!r}"
            if problem is not None:
                of = f"at {fraction!r} of {size} manipulated samples"
                self.fault(f"deletion_fractions[{index}]", f"{of} {plugins.name_of(detection)} finds {problem}")
            sizes[found] = fraction
