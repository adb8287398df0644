"""Which commit of the hub's data and models a run reads."""

from pathlib import Path
from typing import Any

import pytest

from pipeline import store
from pipeline.config import ExperimentConfig
from pipeline.experiment import run_experiment, with_model_revision
from tasks.errors import UserError
from tests.pipeline.fake_task import FakeTask, FakeWorkers
from tests.pipeline.small import config

FIRST, SECOND = "1" * 40, "2" * 40


class HubTask(FakeTask):
    """Its data come from the hub, where `newest` is the newest commit."""

    newest = FIRST
    read: list[str]

    def data_source(self, options: Any) -> dict[str, str]:
        return {"repository": "a/b", "revision": options.data_revision or self.newest}

    def records(self, options: Any, dataset: str) -> Any:
        self.read.append(self.data_source(options)["revision"])
        return super().records(options, dataset)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> HubTask:
    found = HubTask(count=3)
    found.read = []
    monkeypatch.setattr("pipeline.experiment.get_task", lambda name: found)
    return found


def begin(folder: Path, cfg: ExperimentConfig, **options: Any) -> None:
    run_experiment(cfg, folder, FakeWorkers(), lambda cfg: object(), window=64, **options)  # type: ignore[arg-type, return-value]


def test_a_run_goes_on_with_the_data_that_it_began_with(tmp_path: Path, task: HubTask) -> None:
    begin(tmp_path, config(limit=1), model_revision="abc")
    folder = tmp_path / task.folder / config().exp_name
    run = store.read_run(folder) or {}
    assert run["data"] == {"repository": "a/b", "revision": FIRST}
    assert run["model_revision"] == "abc"
    task.newest = SECOND
    begin(tmp_path, config(limit=2))
    begin(tmp_path, config(limit=2, data_revision=FIRST))
    assert set(task.read) == {FIRST}
    with pytest.raises(UserError, match=f"made with data of revision {FIRST}, and data_revision = '{SECOND}'"):
        begin(tmp_path, config(limit=3, data_revision=SECOND))
    begin(tmp_path, config(), overwrite=True)
    assert task.read[-1] == SECOND
    assert (store.read_run(folder) or {})["data"]["revision"] == SECOND


def test_a_run_goes_on_with_the_model_that_it_began_with(tmp_path: Path, task: HubTask) -> None:
    def pinned(**keys: Any) -> str | None:
        overwrite = keys.pop("overwrite", False)
        return with_model_revision(config(**{"model": "owner/m", **keys}), tmp_path, overwrite=overwrite).model_revision

    assert pinned() is None
    begin(tmp_path, config(model="owner/m", limit=1), model_revision=FIRST)
    assert pinned(limit=2) == FIRST
    assert pinned(model="another/one") is None, "which is refused later, by its name"
    assert pinned(overwrite=True) is None
    assert pinned(model_revision="v2") == "v2"
    begin(tmp_path, config(model="owner/m", limit=2, model_revision="v1"), model_revision=FIRST)
    said = f"made with the model's revision {FIRST}, and model_revision = 'v2' is {SECOND}"
    with pytest.raises(UserError, match=said):
        begin(tmp_path, config(model="owner/m", limit=3, model_revision="v2"), model_revision=SECOND)
    begin(tmp_path, config(model="owner/m", model_revision="v2"), model_revision=SECOND, overwrite=True)
    assert (store.read_run(tmp_path / task.folder / config().exp_name) or {})["model_revision"] == SECOND


@pytest.mark.parametrize("name", ["m", "{folder}"])
def test_a_folder_has_no_revision_whatever_a_record_says(tmp_path: Path, task: HubTask, name: str) -> None:
    """Such as one in the hub's own cache, whose path names a commit."""
    model = name.format(folder=tmp_path)
    begin(tmp_path, config(model=model, limit=1), model_revision=FIRST)
    assert with_model_revision(config(model=model), tmp_path, overwrite=False).model_revision is None
