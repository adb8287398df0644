import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.page import write_page
from pipeline.paired import Difference
from pipeline.report import in_order, read_experiments, write_collection
from tasks.results import Score
from tests.pipeline.scored import SQUARES, experiment

HOSTILE = '"><script>alert(1)</script>&amp;\x1b[31m'


class Page(HTMLParser):
    """A page's tags with their attributes, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip(" "))

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(root: Path, **options: Any) -> Page:
    folders = store.list_experiments(root, SQUARES)
    out = root / SQUARES.folder
    experiments, problems = read_experiments(folders, SQUARES)
    assert not problems
    write_collection(experiments, SQUARES, out)
    path = out / "squares.html"
    write_page(path, in_order(experiments), folders, SQUARES, **options)
    return Page(path.read_text(encoding="utf-8"))


def scored(root: Path, name: str, score: float) -> Path:
    known = {"a": {"score": score, "stderr": 1.0, "count": 9, "interval": [score - 2, score + 3]}, "b": 7.0}
    return experiment(root, SQUARES, name, "dpi", {"result.json": known}, params={"chunk_coe": 3})


def test_the_page_has_scores_that_sort_and_needs_nothing_beside_it(tmp_path: Path) -> None:
    scored(tmp_path, "one", 41.25)
    scored(tmp_path, "two", 9.5)
    page = page_of(tmp_path)
    assert "41.25" in page.texts
    assert "[39.25, 44.25]" in page.texts
    values = [cell["data-value"] for cell in page.of("td") if "data-value" in cell]
    assert {"41.25", "9.5"} <= set(values)
    assert len(page.of("button")) == 7 + 3, "head, a, b and the average"
    loaded = [tag.get("src") or tag.get("href") for tag in (*page.of("script"), *page.of("link"), *page.of("img"))]
    assert all(source is None or source.startswith("data:image/png;base64,") for source in loaded)
    assert "some/model" in page.texts
    assert any("chunk_coe" in text for text in page.texts), "settings"


def test_what_comes_from_files_is_escaped(tmp_path: Path) -> None:
    folder = scored(tmp_path, "one & <b>", 41.25)
    run = json.loads((folder / "run.json").read_text())
    run["config"] |= {"model": HOSTILE, "params": {HOSTILE: HOSTILE}}
    run["device"] = HOSTILE
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "d.jsonl").write_text(json.dumps({"id": HOSTILE, "error": HOSTILE}) + "\n")
    differences = [Difference(HOSTILE, {HOSTILE: Score(1.0, 0.5, 3, (0.2, 1.8))}, None, (HOSTILE,))]
    page = page_of(tmp_path, against=HOSTILE, differences=differences)
    assert len(page.of("script")) == 1, "our own"
    assert page.of("b") == []
    assert "\x1b" not in "".join(page.texts)
    assert sum("<script>alert(1)</script>" in text for text in page.texts) >= 8
    [link] = page.of("a")
    assert link["href"] == "./one%20%26%20%3Cb%3E/d.jsonl"


def test_failed_records_are_linked_and_their_number_is_bounded(tmp_path: Path) -> None:
    folder = scored(tmp_path, "one", 41.25)
    lines = [{"id": str(number), "error": f"no memory {number}"} for number in range(33)]
    (folder / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"id": "33", "pred": "x"}]))
    page = page_of(tmp_path)
    links = page.of("a")
    assert len(links) == 20
    assert (tmp_path / SQUARES.folder / links[0]["href"]).is_file()
    assert "one: 33 failed" in page.texts
    assert "and 13 more" in page.texts
    assert "no memory 19" in page.texts


def test_parts_of_a_run_that_goes_on_are_left_alone(tmp_path: Path) -> None:
    """Their last lines may be cut, and a record that failed may have been predicted there."""
    folder = scored(tmp_path, "a", 1.0)
    (folder / ".part-0-d.jsonl").write_text('{"id": "9", "error": "x"}\n{"id": "1', encoding="utf-8")
    assert "Failed records" not in page_of(tmp_path).texts


def test_differences_are_signed_and_sure_ones_are_marked(tmp_path: Path) -> None:
    scored(tmp_path, "one", 41.25)
    differences = [
        Difference("sure", {"a": Score(1.5, 0.4, 9, (0.7, 2.3)), "b": Score(-3.0, None, 9)}, None, ()),
        Difference("unsure", {"a": Score(-1.5, 1.0, 9, (-3.7, 0.7))}, None, ("b",)),
    ]
    page = page_of(tmp_path, against="one", differences=differences)
    assert {"+1.50", "-3.00", "-1.50"} <= set(page.texts)
    assert [cell["data-value"] for cell in page.of("td") if "clear" in (cell.get("class") or "")] == ["1.5"]
    assert any("unsure: b" in text for text in page.texts), "what is left out"
