"""The contract that every method and study keeps, as checks that a package can run on methods of its own.

In a package that declares the entry points ``transfuse.methods`` and ``transfuse.studies``::

    import pytest
    from transfuse.testing import CHECKS, check

    @pytest.mark.parametrize("name", CHECKS)
    def test_contract(name):
        check(name, "my_method")

A check raises `AssertionError` with one line on what to mend. A method without a study passes those on studies.
"""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import math
import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from transfuse.config import read_settings, resolve, settings_of, to_plain
from transfuse.registry import Entry, import_method, import_study, load_registry, missing_packages
from transfuse.study.declaration import read_study
from transfuse.study.design import Measurement, Study
from transfuse.study.evidence import CellValues
from transfuse.study.run import checked, limit_threads
from transfuse.study.stage import Stages
from transfuse.study.store import Cell, CellSpec
from transfuse.study.streams import Streams


def check(name: str, method_id: str) -> None:
    """Run one check of `CHECKS` on one method.

    Raises:
        AssertionError: the method does not keep this part of the contract.
        UserError: no such method, or its host is not installed.
    """
    entry = load_registry()[method_id]
    if name in _STUDY_CHECKS and entry.study_module is None:
        return
    {**_METHOD_CHECKS, **_STUDY_CHECKS}[name](entry)


def card_is_complete(entry: Entry) -> None:
    """The card that was read from the text is the one that the module has, and no field is empty."""
    assert entry.card == import_method(entry).CARD, "the registry read another card than the module holds"
    assert entry.card.id == entry.path.stem, f"the file {entry.path.name} should be named {entry.card.id}.py"
    empty = [f.name for f in dataclasses.fields(entry.card) if getattr(entry.card, f.name) in ("", ())]
    assert not empty, f"empty fields of the card: {empty}"
    assert re.match(r"https://\S+$", entry.card.url), f"url {entry.card.url!r} is no https address"
    assert not missing_packages(entry.card), f"not installed: {missing_packages(entry.card)}"


def entry_can_be_imported(entry: Entry) -> None:
    """What the card tells users to import is there and documented."""
    module, _, name = entry.card.entry.rpartition(".")
    assert getattr(importlib.import_module(module), name).__doc__, f"{entry.card.entry} has no docstring"


def config_is_documented(entry: Entry) -> None:
    """`Config` is frozen, survives a round trip, and each default has its reason on its line."""
    config: Any = import_method(entry).Config
    assert hasattr(config, "__dataclass_fields__"), "Config is no dataclass"
    assert config.__dataclass_params__.frozen, "Config is not frozen"
    assert resolve(config, to_plain(config())) == config(), "Config does not survive a round trip through JSON values"
    unexplained = [s.name for s in read_settings(entry.path.read_text(encoding="utf-8")) if not s.reason]
    assert not unexplained, f"defaults without a reason on their line: {unexplained}"


def docstring_example_runs(entry: Entry) -> None:
    """The example of the module's docstring runs: `>>>` lines print what they say, a ```python block ends well."""
    module = import_method(entry)
    text = module.__doc__ or ""
    names = dict(vars(module))
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    example = doctest.DocTestParser().get_doctest(re.sub(r"```", "", text), names, entry.id, str(entry.path), 0)
    assert example.examples or blocks, "the docstring of the module has no example (`>>>` lines, or a ```python block)"
    for block in blocks:
        exec(compile(block, f"<docstring of {entry.id}>", "exec"), {"__name__": "example"})
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failed = runner.run(example, out=said.append).failed
    assert not failed, "".join(said)


def public_names_are_documented(entry: Entry) -> None:
    """Every public function and class of the module has a docstring."""
    module = import_method(entry)
    bare = [
        name
        for name, item in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(item) or inspect.isclass(item))
        and item.__module__ == module.__name__
        and not inspect.getdoc(item)
    ]
    assert not bare, f"public names without a docstring: {bare}"


def signatures_are_a_schema(entry: Entry) -> None:
    """`audit` and `apply`, where they exist, are documented and typed: the command line is made from them."""
    module = import_method(entry)
    for name in ("audit", "apply"):
        if (function := getattr(module, name, None)) is None:
            continue
        assert inspect.getdoc(function), f"{name} has no docstring"
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, f"{name}({parameter.name}) has no type"


def study_reads_without_its_host(entry: Entry) -> None:
    """The declaration is data: read from the text it is what the module holds."""
    study, read = _study(entry), read_study(entry)
    assert study.id == entry.id, f"the study is called {study.id!r}, its method {entry.id!r}"
    for field in dataclasses.fields(study):
        if field.name != "settings":
            assert getattr(study, field.name) == getattr(read, field.name), f"{field.name} reads differently"


def claims_are_declared(entry: Entry) -> None:
    """There are claims, each with the paper's statement, none twice, and a control has a part in them."""
    study = _study(entry)
    assert study.claims, "the study claims nothing"
    for claim in study.claims:
        assert claim.paper, f"claim without what the paper says: {claim.text()}"
    controlled = [claim for claim in study.claims if claim.control or set(claim.arms) & set(study.controls)]
    assert controlled, "no claim touches a control"
    texts = [(claim.text(), claim.scales) for claim in study.claims]
    assert len(set(texts)) == len(texts), "a claim stands twice"


def settings_are_documented(entry: Entry) -> None:
    """Every scale resolves, and each setting has its reason on its line."""
    study = _study(entry)
    assert "quick" in study.scales, "the study has no scale quick"
    for scale in study.scales.values():
        resolved: Any = resolve(study.settings, scale)
        assert resolve(study.settings, to_plain(resolved)) == resolved, "settings do not survive a round trip"
    unexplained = [s.name for s in settings_of(study.settings) if not s.reason]
    assert not unexplained, f"settings without a reason on their line: {unexplained}"


def quick_scale_measures_all(entry: Entry) -> None:
    """At scale quick every arm and metric is measured, finitely, and every claim of scale small finds its numbers."""
    study, measurements = _study(entry), _quick(entry.id)
    assert {m.arm for m in measurements} == set(study.arms), "not every arm was measured"
    assert {m.metric for m in measurements} == set(study.metrics), "not every metric was measured"
    assert all(math.isfinite(m.value) for m in measurements), "a measurement is not finite"
    values = CellValues(study, [Cell(CellSpec(study.id, "quick", 0, {}, {}, ""), measurements, {}, {})])
    for claim in study.claims:
        if "small" in claim.scales:
            assert claim.effects(values), f"nothing measured for: {claim.text()}"
    for m in measurements:
        if m.per_sample is not None:
            gap = abs(float(m.per_sample.mean()) - m.value)
            assert gap <= 1e-6 * max(1.0, abs(m.value)), f"{m.metric} of {m.arm} is not the mean of its samples"


def same_seed_same_numbers(entry: Entry) -> None:
    """A second run of the same seed, with nothing cached, gives the same numbers bit for bit."""
    first, again = _quick(entry.id), _run_quick(entry)
    plain = [[(m.arm, m.metric, m.value, m.where, m.step) for m in run] for run in (first, again)]
    assert plain[0] == plain[1], "two runs of one seed differ"


def _study(entry: Entry) -> Study:
    return import_study(entry).STUDY


@cache
def _quick(method_id: str) -> tuple[Measurement, ...]:
    return _run_quick(load_registry()[method_id])


def _run_quick(entry: Entry) -> tuple[Measurement, ...]:
    limit_threads(1)
    module = import_study(entry)
    settings = resolve(module.STUDY.settings, module.STUDY.scales["quick"])
    with tempfile.TemporaryDirectory() as folder:
        return tuple(checked(module.STUDY, module.run(settings, 0, Streams(0), Stages(Path(folder)))))


_METHOD_CHECKS: dict[str, Callable[[Entry], None]] = {
    function.__name__: function
    for function in (
        card_is_complete,
        entry_can_be_imported,
        config_is_documented,
        docstring_example_runs,
        public_names_are_documented,
        signatures_are_a_schema,
    )
}
_STUDY_CHECKS: dict[str, Callable[[Entry], None]] = {
    function.__name__: function
    for function in (
        study_reads_without_its_host,
        claims_are_declared,
        settings_are_documented,
        quick_scale_measures_all,
        same_seed_same_numbers,
    )
}
CHECKS: tuple[str, ...] = (*_METHOD_CHECKS, *_STUDY_CHECKS)
