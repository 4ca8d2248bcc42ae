"""Planning for a budget: the fastest plan whose step takes no more bytes than allowed.

Three things are traded. A map that is not stored saves its bytes (and its gradient's) and costs time, since each
stage that needs its pixels computes them again. Smaller tiles save what a tile's autograd graph takes and cost wider
halos. A stage that keeps its graphs costs bytes and saves computing its tiles twice.

    1. Store every map worth storing; drop maps, the most bytes at the highest moment for the least time, until the
       step fits.
    2. Store or drop single maps for as long as that makes the step fit better, or faster.
    3. Spend the bytes that are left on stages that keep their graphs.
    4. Run one tile of every stage on the meta device: where its bytes are not what was estimated, correct the
       estimate and search again.

Each stage takes the fastest tile that fits into what the maps leave it. Nothing is random and nothing is timed: the
same graph, budget and constants give the same plan.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from ..graph import Graph
from ..memory import format_bytes
from ..signature import NOTHING, Content, share
from .align import align
from .drafts import Draft, Outcome, Workshop
from .options import Option, Piece
from .peak import MeasuredTiles, exact_peak
from .place import movable, place_maps
from .rehearsal import Moment
from .stages import Globals, Stage, build_steps
from .times import Times

Steps = list[Stage | Globals]
#: Shares of the budget that a tile may take at least while maps are dropped; each gives a draft of its own.
SHARES = (1 / 3, 1 / 12, 1 / 60)
#: How often single maps are stored or dropped on trial.
TRIALS = 300
#: How often estimates are corrected.
ROUNDS = 7


class BudgetError(ValueError):
    """No plan fits in the given bytes; ``smallest`` would."""

    def __init__(self, given: int, smallest: int, stage: str) -> None:
        self.given, self.smallest, self.stage = given, smallest, stage
        super().__init__(
            f"memory={format_bytes(given)} is too small for this network at this size: the smallest plan found takes "
            f"{format_bytes(smallest)}, most of it in stage '{stage}'; give memory={smallest} or a smaller image"
        )

    def __reduce__(self) -> tuple[type[BudgetError], tuple[int, int, str]]:
        return type(self), (self.given, self.smallest, self.stage)


def search(
    graph: Graph,
    budget: int,
    times: Times,
    image_tile: Sequence[int] | None = None,
    where: str = "device",
    content: Content = NOTHING,
) -> Steps:
    """The steps of the fastest plan found within a budget, its maps all in one place.

    Args:
        graph: the captured network.
        budget: the bytes that a step may take.
        times: the constants of the device.
        image_tile: pixels of the image that every tile covers; None chooses per stage.
        where: the place of the stored maps that may be moved: device, host or disk.
        content: what is known of the images.

    Raises:
        BudgetError: none fits; it names the smallest that was found, and the stage that needs most.
    """
    found, fastest = Search(graph, budget, times, image_tile, where, content), None
    too_large = 0
    for k in range(ROUNDS):
        draft, outcome = found.best()
        too_large = too_large + 1 if outcome.over else 0
        if too_large == 2:  # not even by estimates that one tile of each stage has corrected
            break
        steps = found.steps(draft, outcome)
        height = found.height(steps).bytes
        if height <= budget and (fastest is None or outcome.seconds < fastest[0]):
            fastest = (outcome.seconds, steps)
        # The first plan rests on estimates: another look with what it taught, unless that cannot help.
        if fastest is not None and (k or height > 0.95 * budget):
            return fastest[1]
        found.learn(draft, outcome, steps, height)
    if fastest is not None:
        return fastest[1]
    # Not a question of time any more: the smallest plan there is, whatever the budget.
    steps = smallest(graph, times, image_tile, where, content)
    highest = found.height(steps)
    if highest.bytes <= budget:
        return steps
    raise BudgetError(budget, highest.bytes, getattr(highest.step, "layer", "the global part"))


def smallest(
    graph: Graph,
    times: Times,
    image_tile: Sequence[int] | None = None,
    where: str = "device",
    content: Content = NOTHING,
) -> Steps:
    """The steps of the plan that takes the fewest bytes, at any price in time."""
    found = Search(graph, 1, times, image_tile, where, content)
    draft = found.everything
    best, extra = (draft, found.outcome(draft, 0)), dict[str, float]()
    while True:
        outcome = found.outcome(draft, 0)
        if (outcome.peak, outcome.seconds) < (best[1].peak, best[1].seconds):
            best = (draft, outcome)
        name = found.least_worth(draft, outcome, extra, 0)
        if name is None:
            return found.steps(*best)
        draft = found.dropped(draft, name, extra)


class Search:
    """One search: a workshop, a budget, and what was learnt of it."""

    def __init__(
        self,
        graph: Graph,
        budget: int,
        times: Times,
        image_tile: Sequence[int] | None,
        where: str,
        content: Content,
    ) -> None:
        self.graph, self.budget, self.target, self.where, self.content = graph, budget, budget, where, content
        self.workshop = Workshop(graph, times, image_tile, movable(graph, where), content)
        self.measured = MeasuredTiles()

    # ------------------------------------------------------------------ 1: drop until it fits

    def best(self) -> tuple[Draft, Outcome]:
        """The fastest draft that fits by the estimate; the one that is least over where none does."""
        drafts = (self.fitted(int(self.target * share)) for share in SHARES)
        draft, _ = min(
            ((draft, self.outcome(draft, 0)) for draft in drafts), key=lambda one: (one[1].over, one[1].seconds)
        )
        draft = self.improved(draft)
        if not self.outcome(draft, 0).over:
            draft = self.improved(self.keeping(draft))
        return draft, self.outcome(draft, 0)

    def outcome(self, draft: Draft, least: int) -> Outcome:
        return self.workshop.outcome(draft, self.target, least)

    @property
    def everything(self) -> Draft:
        """The draft that stores all that is worth storing."""
        return self.workshop.draft(self.workshop.fixed | frozenset(self.workshop.optional))

    def fitted(self, least: int) -> Draft:
        """Drop stored maps, those first that save most at the highest moment for the least time, until it fits.

        Where it never does, the draft that was least over: without the last few maps, tiles need more than those saved.
        """
        draft, extra = self.everything, dict[str, float]()
        nearest, missed = draft, float("inf")
        while True:
            outcome = self.outcome(draft, least)
            if outcome.over < missed:
                nearest, missed = draft, outcome.over
            name = self.least_worth(draft, outcome, extra, least) if outcome.over else None
            if name is None:
                return nearest
            draft = self.dropped(draft, name, extra)

    def least_worth(self, draft: Draft, outcome: Outcome, extra: dict[str, float], least: int) -> str | None:
        """The map that saves most for the least time; ``extra`` remembers the seconds that each would cost."""
        workshop = self.workshop
        optional = [name for name in workshop.optional if name in draft.stored and workshop.bytes_of[name]]
        if not optional:
            return None
        readers = self.readers(draft)
        for name in optional:
            if name not in extra:
                extra[name] = self.extra_seconds(draft, name, readers[name], least)
        lives = workshop.lives(draft.entries)
        floor = 1e-3 * outcome.seconds

        def worth(name: str) -> float:
            return workshop.bytes_of[name] * _presence(lives[name], outcome.highest) / max(extra[name], floor)

        return max(optional, key=worth)

    def extra_seconds(self, draft: Draft, name: str, readers: list[Piece], least: int) -> float:
        """How much longer a step takes where a node is not stored."""
        workshop, without = self.workshop, draft.stored - {name}
        seconds = -workshop.piece(name, draft.stored).within(least).recompute
        if workshop.reductions[name]:
            seconds += workshop.piece(name, without).within(least).recompute
        for reader in readers:
            longer = workshop.piece(reader.target.name, without)
            seconds += longer.within(least).recompute - reader.within(least).recompute
        return seconds

    @staticmethod
    def readers(draft: Draft) -> dict[str, list[Piece]]:
        """By stored node the stages that read it."""
        found: dict[str, list[Piece]] = {name: [] for name in draft.stored}
        for entry in draft.entries:
            if isinstance(entry, Piece):
                for name in entry.reads & draft.stored - {entry.target.name}:
                    found[name].append(entry)
        return found

    def dropped(self, draft: Draft, name: str, extra: dict[str, float]) -> Draft:
        """A draft without one map; forget the seconds of those around it: its readers, and what they all read."""
        readers = (entry for entry in draft.entries if isinstance(entry, Piece) and name in entry.reads)
        for piece in (self.workshop.piece(name, draft.stored), *readers):
            extra.pop(piece.target.name, None)
            for read in piece.reads:
                extra.pop(read, None)
        return self.workshop.toggled(draft, name)

    # ------------------------------------------------------------------ 2: store or drop single maps

    def improved(self, draft: Draft) -> Draft:
        """Store or drop one map at a time, for as long as the step is less over the budget, or faster."""
        best = self.outcome(draft, 0)
        names = self.workshop.optional
        waiting, trials = deque(names), TRIALS
        while waiting and trials:
            trials -= 1
            other = self.workshop.toggled(draft, waiting.popleft())
            outcome = self.outcome(other, 0)
            if (outcome.over, outcome.seconds) < (best.over, best.seconds * (1 - 1e-4)):
                draft, best = other, outcome
                waiting = deque((*waiting, *(name for name in names if name not in waiting)))
        return draft

    # ------------------------------------------------------------------ 3: keep graphs

    def keeping(self, draft: Draft) -> Draft:
        """Let stages keep their graphs, those first that save most time for their bytes, while they fit."""
        best = self.outcome(draft, 0)
        chances = [
            ((best.options[entry].recompute - option.keep) / max(option.kept, 1), k, entry, option)
            for k, entry in enumerate(draft.entries)
            if isinstance(entry, Piece) and entry.nodes and entry.trains
            for option in {*entry.keeping, best.options[entry]}
        ]
        chances.sort(key=lambda one: (-one[0], one[1], one[3].tile))
        for _, _, piece, option in chances:
            other = draft.keeping(piece, option)
            outcome = self.outcome(other, 0)
            if not outcome.over and outcome.seconds < best.seconds:
                draft, best = other, outcome
        return draft

    # ------------------------------------------------------------------ 4: measure and correct

    def steps(self, draft: Draft, outcome: Outcome) -> Steps:
        """A draft as the steps of a plan."""
        steps = build_steps(self.graph, set(draft.stored))
        pieces = {piece.target.name: piece for piece in outcome.options}
        for step in steps:
            if isinstance(step, Stage):
                piece = pieces[step.name]
                step.tile = outcome.options[piece].tile
                step.way = "keep" if piece in draft.kept else "recompute"
        place_maps(self.graph, steps, self.where)
        return align(steps, self.workshop.image_tile is not None) if self.content.constants else steps

    def height(self, steps: Steps) -> Moment:
        """The highest moment of a step, by rehearsal."""
        return exact_peak(self.graph, steps, share(steps, self.graph.image, self.content))

    def learn(self, draft: Draft, outcome: Outcome, steps: Steps, height: int) -> None:
        """Correct the estimates of a draft's stages by what one tile of each takes.

        What then is still missing is no tile's: the budget is taken for smaller by as much, and a little each time.
        """
        pieces = {piece.target.name: piece for piece in outcome.options}
        for step in steps:
            if isinstance(step, Stage) and step.nodes:
                piece = pieces[step.name]
                option = outcome.options[piece]
                ratios = [
                    measured / max(thought, 1)
                    for measured, thought in zip(
                        self.measured.of(step), (option.running, option.saved, option.working), strict=True
                    )
                ]
                piece.correct(ratios)
        if height > self.budget:
            again = self.outcome(replace(draft, kept=self._same(draft)), 0)
            missed = max(1.0, height / max(again.peak, 1))
            self.target = min(int(self.target * 0.97), int(self.budget / missed))

    def _same(self, draft: Draft) -> dict[Piece, Option]:
        """Kept stages with their corrected options."""
        return {piece: piece.options.of(option.tile) for piece, option in draft.kept.items()}


def _presence(life: tuple[int, int], highest: int) -> float:
    """How many times a map's bytes count at the highest moment: the map, and its gradient; a little otherwise."""
    first, last = life
    return (first <= highest) + (first <= highest <= last) + 1e-3
