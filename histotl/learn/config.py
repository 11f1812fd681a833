"""Settings of training and of prediction. The fields are the keyword arguments, the TOML keys and the flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from histotl.core.condition import Condition
from histotl.core.errors import UsageError
from histotl.core.registry import create
from histotl.learn.choice import as_paths, as_tuple, settle
from histotl.learn.covariate_specs import parse_covariates
from histotl.learn.decision_rules import parse_rule, parse_sets

T = TypeVar("T")
NO_GATE = "none"

Level = Literal["auto", "tile", "slide"]
ClassBalance = Literal["balanced", "effective", "logit_adjust", "sampled", "none"]
Where = Literal["features", "parameters"]
Sampling = Literal["shuffled", "dataset_balanced"]
Fallback = Literal["none", "single_task"]
CalibrationMethod = Literal["temperature", "vector", "isotonic", "none"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How heads are trained. The defaults were chosen on validation patients; see README."""

    level: Level = "auto"
    """What gets one answer: 'tile' (each row of a patch set; each tile of a slide inherits the slide's labels) or
    'slide' (each bag of tiles). 'auto' is 'slide' for slides, and 'tile' for patch sets unless --bag is given."""
    aggregator: str = "mean"
    """How the tiles of a slide become one vector, as a spec: 'mean' or 'abmil(hidden=512)'; see
    `histotl list aggregator`."""
    pretrained: str = ""
    """File of a trained aggregator to start from, which `histotl export` wrote; it says which aggregator it is."""
    backbone: str = ""
    """Which features to use when the folder holds those of several backbones."""
    id_column: str = ""
    """Column of the table that names slides or patches; empty: 'slide_id' for slides, 'path' for patch sets."""
    patient: str = "patient"
    """Column that names the patient; splits never cut through a patient."""
    split_column: str = "split"
    """Column with train, val and test; when the table has none, patients are split by --fractions and --seed."""
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Shares of train, val and test in a split made here."""
    keep: str = ""
    """Condition on the quality figures that tiles must satisfy, such as 'focus_laplacian > 0.5 and pen < 0.05'; NaN
    satisfies no comparison. The model remembers it, and predict uses it too."""
    bag: str = ""
    """Column that gathers patches, or the slides of a patient, into bags, such as 'patient', which get the answers."""
    allow_missing_features: bool = False
    """Train on the rows that have features when some rows of train and val have none."""
    more_tables: tuple[str, ...] = ()
    """Label tables of more cohorts. Where a table lacks a column its labels are missing; no id may stand in two."""
    more_features: tuple[str, ...] = ()
    """Folders (or files) with the features of more cohorts, of the same backbone, tiles and stain."""
    sampling: Sampling = "shuffled"
    """How steps are drawn: 'shuffled' takes all cases in random order; 'dataset_balanced' takes equally many of every
    data set in every step, however large each is. An epoch is as many steps of either."""
    cohort_column: str = ""
    """Column that names the data set of each case, for dataset_balanced; empty: each of --more-tables is another."""
    ensure_tasks: int = 0
    """Labelled cases of each task that every step holds at least, so that a task with few labels is in all of them."""
    sharing: str = "hard"
    """What tasks share, as a spec: 'hard' is one trunk for all, 'none' a trunk each; see `histotl list sharing`."""
    balancing: str = "equal"
    """How the losses of several tasks are weighed, as a spec; see `histotl list balancing`."""
    gradients: Where = "features"
    """Where rules that look at gradients compare them: at the vectors that all tasks read ('features', one pass back
    through what is shared), or at the weights that tasks share ('parameters', one pass a task)."""
    optimizer: str = ""
    """How steps are made, as a spec such as 'sam(rho=0.05)'; empty: what the sharing is made for, mostly 'adamw'."""
    class_balance: ClassBalance = "balanced"
    """Class weights in the loss: 'balanced' gives every class the same say; 'effective' lies between that and none for
    classes of hundreds; 'logit_adjust' shifts logits by the log prior while training; 'sampled' draws equally many
    cases of every class in every step, of the task with classes or of the one that says class_balance='sampled';
    'none' follows the counts."""
    ood: tuple[str, ...] = ("mahalanobis", "knn")
    """Out-of-distribution detectors whose mean calibrated score is the gate, as specs; 'none' for no gate."""
    alpha: float = 0.05
    """Share of in-distribution cases that the gate may flag."""
    calibration: CalibrationMethod = "temperature"
    """How stated probabilities are made to come true on validation: 'temperature', 'vector', 'isotonic' or 'none'.
    Vector needs 20 labelled validation rows an output, isotonic 1000; with fewer it is the temperature."""
    threshold: str = "none"
    """From which probability on two-class tasks and each of several labels say yes, chosen on validation: 'youden',
    'sensitivity=0.95', 'cost=5' (a missed case costs five false alarms), or 'none' for the likelier class."""
    coverage: float = 0.9
    """Share of cases whose truth is to be in the answered set of classes, run of grades or interval; 0 for no sets."""
    sets: str = "aps"
    """How sets of classes grow: 'aps', or 'raps(penalty=0.01, free=2)', which makes large ones rarer."""
    hidden: int = 256
    """Width of the trunk that all tasks share; 0 for none (linear heads)."""
    dropout: float = 0.5
    """Dropout on the trunk's input (less for narrow features) and output."""
    learning_rates: tuple[float, ...] = (0.0003, 0.001, 0.005)
    """Peak learning rates to try; the one with the least validation loss is kept."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW, on matrices only."""
    epochs: int = 40
    """Passes over the training rows; small sets get more, see --min-steps."""
    min_steps: int = 300
    """Least number of optimiser steps."""
    max_steps: int = 4000
    """Largest number of optimiser steps."""
    batch_size: int = 0
    """Rows (tile level) or slides (slide level) in one step; 0: 128 rows, 16 slides."""
    max_tiles: int = 512
    """Most tiles of one slide in one training step, drawn anew each step; prediction always uses all."""
    tiles_per_step: int = 0
    """Tiles in one training step where tiles are drawn from bags: steps then hold nearly equal numbers of tiles and
    whatever number of bags that makes, at most this many (or one bag); 0: --batch-size bags."""
    memory_gb: float = 0.0
    """Memory that features may take, in GiB; more of them stay in their files, which are read as memory maps. 0: half
    of what is free."""
    patience: int = 0
    """Looks at the validation loss without improvement, of 20 in a run, that end it; 0: all steps are made."""
    views: bool = False
    """Learn from augmented views too: in every step each tile is plain or one of its views, drawn anew by --seed.
    Needs features made with `histotl embed --views`. Validation and gate use plain features."""
    covariate: tuple[str, ...] = ()
    """What networks are told of a case beside its tiles: a column of numbers by its name, such as 'age', or as text,
    such as "site: category" or "sex: category(column='Sex', fusion='film')"; repeat for more. Missing values are
    allowed; numbers and categories are scaled by the training cases alone."""
    covariate_dropout: float = 0.0
    """Chance that a covariate of a case is hidden in a training step, so that the model also does well without it."""
    ema: float = 0.99
    """Decay of the running average of the weights, which is what is kept."""
    members: int = 3
    """Networks trained from different seeds and averaged."""
    seed: int = 0
    """Seed of splits, initial weights, batches and dropout."""
    compare_single: bool = True
    """Of several tasks, also train each alone with the same settings and report the difference on validation, with
    intervals; the time of training grows by that factor."""
    fallback: Fallback = "none"
    """What answers a task that other tasks harm: 'single_task' is the networks that learnt it alone, where their
    validation loss is lower beyond chance (the 95 % interval of the difference over patients excludes 0); 'none' is
    the networks of all tasks."""
    device: str = "auto"
    """'auto', 'cpu', 'cuda' or 'cuda:1'."""

    def __post_init__(self) -> None:
        if self.keep:
            Condition.parse(self.keep)
        for name in ("fractions", "learning_rates", "ood", "covariate"):
            object.__setattr__(self, name, as_tuple(getattr(self, name)))
        object.__setattr__(self, "covariate", tuple(map(str, self.covariate)))
        for name in ("more_tables", "more_features"):
            object.__setattr__(self, name, as_paths(getattr(self, name), name))
        if self.ood == (NO_GATE,):
            object.__setattr__(self, "ood", ())
        self._check_ranges()
        self._check_steps()
        parse_covariates(self.covariate)
        parse_rule(self.threshold)
        parse_sets(self.sets)
        fractions = self.fractions
        if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or min(fractions[:2]) <= 0:
            raise UsageError(f"fractions are {fractions}", hint="give three shares that sum to 1, such as 0.6 0.2 0.2")
        if not self.learning_rates or not all(0 < rate < float("inf") for rate in self.learning_rates):
            raise UsageError(f"learning_rates are {self.learning_rates}", hint="give one or more, such as 0.0003")
        if not self.patient:
            raise UsageError("no patient column is named", hint="--patient slide_id if every slide is another patient")
        if self.bag and self.level == "tile":
            raise UsageError(f"--bag {self.bag} with --level tile", hint="drop one: bags get slide-level answers")
        if self.fallback == "single_task" and not self.compare_single:
            fact = "--fallback single_task without the comparison that decides on it"
            raise UsageError(fact, hint="drop --no-compare-single")

    def _check_steps(self) -> None:
        """Refuse ways of drawing steps that contradict each other."""
        if self.sampling not in get_args(Sampling):
            raise UsageError(f"sampling is {self.sampling!r}", hint=f"give one of: {', '.join(get_args(Sampling))}")
        balanced = self.sampling == "dataset_balanced"
        if balanced and not (self.cohort_column or self.more_tables):
            fact = "sampling is dataset_balanced, and nothing says which data set a case is of"
            raise UsageError(fact, hint="name the column of the table that does, such as --cohort-column cohort")
        if self.cohort_column and not balanced:
            fact = f"--cohort-column {self.cohort_column} with --sampling {self.sampling}, which takes no notice of it"
            raise UsageError(fact, hint="add --sampling dataset_balanced, or drop the column")
        if self.tiles_per_step and (balanced or self.ensure_tasks):
            asked = "--sampling dataset_balanced" if balanced else f"--ensure-tasks {self.ensure_tasks}"
            fact = f"--tiles-per-step {self.tiles_per_step} fills steps by tiles, {asked} by cases"
            raise UsageError(fact, hint="drop one of them; --batch-size says how many cases a step holds")

    def _check_ranges(self) -> None:
        limits = {
            "alpha": (0.0, 1.0, "a share between 0 and 1, such as 0.05"),
            "coverage": (-1e-9, 1.0, "a share from 0 (no sets) to below 1, such as 0.9"),
            "hidden": (-1, float("inf"), "a width such as 256, or 0 for linear heads"),
            "dropout": (-1e-9, 1.0, "a share from 0 to below 1, such as 0.5"),
            "covariate_dropout": (-1e-9, 1.0, "a share from 0 to below 1, such as 0.2"),
            "weight_decay": (-1e-9, float("inf"), "0 or more, such as 0.01"),
            "epochs": (0, float("inf"), "1 or more"),
            "min_steps": (-1, float("inf"), "0 or more"),
            "max_steps": (0, float("inf"), "1 or more"),
            "batch_size": (-1, float("inf"), "0 for the default, or a number of rows"),
            "max_tiles": (0, float("inf"), "1 or more, such as 512"),
            "ensure_tasks": (-1, float("inf"), "0 for none, or a number of cases such as 2"),
            "tiles_per_step": (-1, float("inf"), "0 for none, or a number of tiles such as 8192"),
            "memory_gb": (-1e-9, float("inf"), "0 for half of what is free, or a size in GiB such as 8"),
            "patience": (-1, float("inf"), "0 for none, or a number of looks such as 5"),
            "ema": (-1e-9, 1.0, "a decay from 0 to below 1, such as 0.99"),
            "members": (0, float("inf"), "1 or more"),
            "seed": (-1, 2**40, "0 or more"),
        }
        for name, (above, below, cure) in limits.items():
            value = getattr(self, name)
            if not above < value < below:
                raise UsageError(f"{name} is {value}", hint=f"give {cure}")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What is predicted, and where."""

    backbone: str = ""
    """Which features to use when the folder holds those of several backbones."""
    table: str = ""
    """CSV that names the slides or patches to predict, their bags where the model was trained with --bag, and the
    covariates that it is told; empty: everything that has features."""
    splits: tuple[str, ...] = ()
    """Predict only rows whose split in the table is one of these, such as 'test'."""
    tta: bool = False
    """Answer with the mean over plain features and all augmented views; needs features made with --views. The gate
    looks at plain features alone."""
    keep: str = ""
    """Condition on the quality figures that tiles must satisfy; empty: the one that the model was trained with."""
    prior: tuple[str, ...] = ()
    """Class shares where the answers will be used, one text a task, such as 'msi: no=0.85 yes=0.15': probabilities are
    shifted from the shares that training took for granted to these, by Bayes' rule."""
    covariates_missing: bool = False
    """Answer although the table lacks columns of covariates that the model is told, or there is no table: they then
    count as missing in all cases."""
    tile_scores: bool = True
    """Write attention and OOD score of every tile, one file a slide."""
    batch_tiles: int = 16384
    """Tiles or patches in one pass through the network."""
    device: str = "auto"
    """'auto', 'cpu', 'cuda' or 'cuda:1'."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prior", tuple(str(text) for text in as_tuple(self.prior)))
        settle(self)
        if self.batch_tiles < 1:
            raise UsageError(f"batch_tiles is {self.batch_tiles}", hint="give 1 or more, such as 16384")


def check_plugins(config: TrainConfig) -> None:
    """Make every component that a configuration names, so that a wrong name is told before anything is read.

    Raises:
        UnknownNameError: No plug-in of that name.
        SpecError: The text of a component cannot be read, or has a wrong argument.
    """
    for kind, specs in _components(config):
        for spec in specs:
            create(kind, spec)


def _components(config: TrainConfig) -> tuple[tuple[str, tuple[str, ...]], ...]:
    single = ("aggregator", "sharing", "balancing")
    optimizer = (config.optimizer,) if config.optimizer else ()
    named = tuple((kind, (str(getattr(config, kind)),)) for kind in single)
    return (*named, ("optimizer", optimizer), ("ood", config.ood))
