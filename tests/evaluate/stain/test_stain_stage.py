"""From painted slides of two laboratories to figures and a page, through the command line as well."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from histotl.cli.main import call
from histotl.core.errors import IdentityError, StoreError, TableError, UnknownNameError
from histotl.core.registry import plugin
from histotl.embed.config import EmbedConfig
from histotl.embed.engine import embed_slides
from histotl.evaluate.stain.config import StainConfig
from histotl.evaluate.stain.stage import StainResult, compare_stains
from histotl.learn.config import TrainConfig
from histotl.learn.task import parse_task
from histotl.learn.train import train

QUICK = {"tiles": 4, "bootstrap": 100, "draws": 1, "backbone": ("color_stats",)}


@pytest.fixture(scope="module")
def compared(two_sites: Path, tmp_path_factory: pytest.TempPathFactory) -> StainResult:
    out = tmp_path_factory.mktemp("stain")
    config = StainConfig(**QUICK | {"tiles": 16, "jitter": (0.0, 0.05, 0.2), "sites": str(two_sites)})
    return compare_stains(two_sites, out, config=config)


def test_sites_that_stain_differently_are_told_and_less_after_macenko(compared: StainResult) -> None:
    none, macenko, _ = compared.evidence.probes
    assert none.change is not None
    assert none.change.after.value > 0.98
    assert macenko.change is not None
    assert macenko.change.before.value == none.change.before.value
    assert macenko.change.after.value < 0.7
    assert macenko.change.difference.high < 0


def test_grey_glass_tells_sites_apart_only_where_it_is_taken_for_stain(
    two_sites_of_two_glasses: Path, tmp_path: Path
) -> None:
    """Against 255 its density is scaled with each slide's stains, so that paler slides get darker glass."""
    stain = ("macenko", "macenko(white=255)")
    config = StainConfig(**QUICK | {"tiles": 16, "draws": 0}, stain=stain, sites=str(two_sites_of_two_glasses))
    _, own, published = compare_stains(two_sites_of_two_glasses, tmp_path, config=config).evidence.probes
    assert own.change is not None
    assert published.change is not None
    assert own.change.after.value < 0.7
    assert published.change.after.value > 0.9


def test_colour_lies_closer_together_after_normalisation(compared: StainResult) -> None:
    for found in compared.evidence.spreads:
        assert found.slides == 8
        change = found.spreads["delta_e"]
        assert change.after.value < 0.5 * change.before.value, found.method
        assert change.before.low < change.before.value


def test_macenko_moves_the_stain_vectors_to_its_reference(compared: StainResult) -> None:
    for slide in compared.evidence.slides:
        before, after = slide.vectors[""], slide.vectors["macenko"]
        assert not isinstance(before, str)
        assert not isinstance(after, str)
        assert after.stains[0] == pytest.approx((0.5626, 0.7201, 0.4062), abs=0.03)
        assert after.strengths == pytest.approx((1.9705, 1.0308), rel=0.1)
        assert slide.states["macenko"]["strengths"] == pytest.approx(before.strengths)


def test_jitter_of_zero_leaves_features_alone_and_more_moves_them_more(compared: StainResult) -> None:
    nothing, little, much = compared.evidence.sturdiness
    assert (nothing.cosine.value, nothing.centred_low.value) == (pytest.approx(1), pytest.approx(1))
    assert 1 > little.centred.value > much.centred.value
    assert much.centred_low.value < much.centred.value


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_is_whole_and_asks_for_nothing(compared: StainResult) -> None:
    page = _Page()
    page.feed(text := compared.page.read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(source.startswith(("data:image/jpeg", "#")) for source in page.sources)
    assert page.tags.count("img") == 8 * 3
    assert text.count("<svg") == 4
    for word in ("Haematoxylin", "Site AUC", "held out together", "8 slides", "7 patients", "only 7 patients"):
        assert word in text


def test_the_json_has_the_figures_of_the_page(compared: StainResult) -> None:
    found = json.loads(compared.json_file.read_text())
    assert found == json.loads(json.dumps(compared.evidence.to_dict()))
    assert found["interval"]["draws"] == "patient"
    assert {row["method"] for row in found["site_auc"]} == {"none", "macenko", "reinhard"}
    assert found["colour_spread"]["macenko"]["delta_e"]["after"]["value"] > 0
    assert found["slides"][0]["stain_vectors"]["macenko"]["angle_deg"] > 4
    assert found["robustness"][2]["strength"] == 0.2


def test_the_same_command_gives_the_same_figures(two_sites: Path, tmp_path: Path) -> None:
    config = StainConfig(**QUICK, jitter=(0.1,), sites=str(two_sites), stain=("reinhard",), vectors="reinhard")
    one, other = (compare_stains(two_sites, tmp_path / name, config=config).evidence.to_dict() for name in "ab")
    assert one | {"provenance": None} == other | {"provenance": None}


@pytest.fixture(scope="module", params=["none", "macenko"])
def model(request: pytest.FixtureRequest, two_sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tells the sites apart by colour, which jitter must confuse."""
    folder = tmp_path_factory.mktemp(f"model_{request.param}")
    embed_slides(two_sites, folder / "features", config=EmbedConfig(backbone=("color_stats",), stain=request.param))
    labels = pd.read_csv(two_sites, dtype=str)
    labels["split"] = ["train", "train", "train", "val"] * 2
    labels.to_csv(folder / "labels.csv", index=False)
    task = parse_task("where: binary(column='site', classes=('north','south'))")
    config = TrainConfig(members=1, aggregator="mean", ood=())
    train(folder / "labels.csv", folder / "features", folder / "model", tasks=[task], config=config)
    return folder / "model"


def test_predictions_do_not_flip_without_jitter(two_sites: Path, model: Path, tmp_path: Path) -> None:
    config = StainConfig(
        **QUICK | {"draws": 2}, stain=("reinhard",), vectors="reinhard", jitter=(0.0, 0.5), model=str(model)
    )
    result = compare_stains(two_sites, tmp_path, config=config)
    none, much = result.evidence.flips
    assert (none.task, none.unit, none.answers, none.rate.value) == ("where", "slide", 16, 0)
    assert 0 <= much.rate.value <= 1
    if "none" in model.parent.name:
        assert much.rate.value > 0.1
    assert "Answers that flip" in result.page.read_text(encoding="utf-8")


def test_a_model_of_another_backbone_is_refused_before_any_slide_is_opened(model: Path, tmp_path: Path) -> None:
    (tmp_path / "no_slide.tiff").write_bytes(b"")
    with pytest.raises(IdentityError, match=r"backbone\.name"):
        compare_stains(tmp_path, tmp_path / "out", config=StainConfig(model=str(model)))
    assert not (tmp_path / "out").exists()


def test_a_model_whose_normaliser_is_of_an_older_release_is_refused(
    two_sites: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin("stain", "macenko").factory, "version", 9)
    config = StainConfig(**QUICK, stain=("reinhard",), vectors="reinhard", model=str(model))
    if "none" in model.parent.name:
        assert compare_stains(two_sites, tmp_path / "out", config=config).evidence.ok
        return
    with pytest.raises(IdentityError, match="an older release normalised: stain version: 2 != 9") as caught:
        compare_stains(two_sites, tmp_path / "out", config=config)
    assert "embed the slides again" in caught.value.hint


def test_a_model_that_is_not_there_is_said_first(two_sites: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no model folder"):
        compare_stains(two_sites, tmp_path / "out", config=StainConfig(model=str(tmp_path / "nothing")))
    assert not (tmp_path / "out").exists()


def test_what_fails_on_one_slide_is_listed_and_the_others_go_on(
    odd_slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["stain", str(odd_slides), str(tmp_path), "--backbone", "color_stats", "--tiles", "3", "--draws", "0"]
    assert call([*argv, "--stain", "macenko", "--stain", "reinhard", "--bootstrap", "20", "--quiet"]) == 1
    told = capsys.readouterr().err
    assert "white" in told
    assert "one_stain: macenko" in told
    failures = pd.read_csv(tmp_path / "failures.csv")
    assert failures["slide_id"].tolist() == ["one_stain", "white"]
    assert failures["hint"].notna().all()
    found = json.loads((tmp_path / "stain.json").read_text())
    fitted = {slide["slide_id"]: set(slide["fitted"]) for slide in found["slides"]}
    assert fitted == {"good": {"macenko", "reinhard"}, "one_stain": {"reinhard"}}
    page = (tmp_path / "stain.html").read_text(encoding="utf-8")
    assert "the spread between slides takes 3 slides or more, and 2 slides could be used" in page
    assert "Not measured: no table of sites was given" in page
    assert "No jitter was asked for" in page


def test_no_usable_slide_is_said_on_a_page_without_numbers(odd_slides: Path, tmp_path: Path) -> None:
    white = odd_slides / "white.tiff"
    table = tmp_path / "sites.csv"
    table.write_text("slide_id,site\nwhite,a\n")
    result = compare_stains(white, tmp_path / "out", config=StainConfig(**QUICK, sites=str(table)))
    assert not result.evidence.ok
    assert "No slide could be used" in result.page.read_text(encoding="utf-8")
    assert json.loads(result.json_file.read_text())["n_slides"] == 0


def test_a_site_with_one_slide_gives_words_and_no_number(two_sites: Path, tmp_path: Path) -> None:
    table = pd.read_csv(two_sites, dtype=str).drop(columns="patient")
    table.loc[table["slide_id"] != "south-3", "site"] = "north"
    table.to_csv(tmp_path / "sites.csv", index=False)
    config = StainConfig(**QUICK | {"draws": 0}, stain=("reinhard",), sites=str(tmp_path / "sites.csv"))
    result = compare_stains(two_sites, tmp_path / "out", config=config)
    assert [probe.change for probe in result.evidence.probes] == [None, None]
    page = result.page.read_text(encoding="utf-8")
    assert "there is 1 site of 3 slides or more, and it takes 2 to tell apart" in page
    assert "site &#39;south&#39; has 1 slide" in page
    assert "no column &#39;patient&#39;: slides were held out one by one" in page
    assert json.loads(result.json_file.read_text())["site_auc"][0].get("auc") is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("slide_id,hospital\nnorth-0,a\n", "no column 'site'"),
        ("slide_id,site\nP999,a\n", "names none of the slides, such as 'north-0'"),
        ("slide_id,site\nnorth-0,a\nnorth-0,b\n", "'north-0' comes twice"),
        ("site\na\n", "no column 'slide_id'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_first(text: str, told: str, two_sites: Path, tmp_path: Path) -> None:
    (tmp_path / "sites.csv").write_text(text)
    with pytest.raises(TableError, match=told):
        compare_stains(two_sites, tmp_path / "out", config=StainConfig(sites=str(tmp_path / "sites.csv")))
    assert not (tmp_path / "out").exists()


def test_unknown_names_are_refused_first(two_sites: Path, tmp_path: Path) -> None:
    for options in ({"stain": ("macenco",)}, {"backbone": ("scatering",)}, {"vectors": "macenco"}):
        with pytest.raises(UnknownNameError):
            compare_stains(two_sites, tmp_path / "out", config=StainConfig(**options))


def test_command_line_end_to_end(two_sites: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["stain", str(two_sites), str(tmp_path), "--stain", "macenko(residual='drop')", "--backbone", "color_stats",
            "--sites", str(two_sites), "--tiles", "3", "--draws", "0",
            "--vectors", "reinhard"]  # fmt: skip
    assert call([*argv, "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "site AUC, color_stats" in told
    assert "stain.html" in told
    assert call([*argv, "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "residual='drop'" in found["methods"]["macenko(residual='drop')"]
    assert not math.isnan(found["site_auc"][1]["difference"]["value"])
    assert not (tmp_path / "failures.csv").exists()


def test_the_cohorts_own_stain_may_be_the_target(two_sites: Path, tmp_path: Path) -> None:
    config = StainConfig(**QUICK | {"stain": ("macenko(target='cohort')",), "jitter": ()})
    result = compare_stains(two_sites, tmp_path, config=config)
    assert result.evidence.ok
    (spec,) = result.evidence.methods.values()
    assert "target=''" in spec  # what was compared is written out in numbers
    (saved,) = (tmp_path / "stain").glob("macenko-*.json")
    assert json.loads(saved.read_text())["slides"] == 8
    assert result.evidence.spreads[0].spreads["delta_e"].difference.high < 0
