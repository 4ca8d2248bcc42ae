"""Planning for a budget: the fastest plan whose step takes no more bytes than allowed.

Three things are traded. A map that is not stored saves its bytes (and its gradient's) and costs time, since each
stage that needs its pixels computes them again. Smaller tiles save what a tile's autograd graph takes and cost wider
halos. A stage that keeps its graphs costs bytes and saves computing its tiles twice.

    1. Store every map worth storing; drop maps, the most bytes at the highest moment for the least time, until the
       step fits.
    2. Store or drop single maps for as long as that makes the step faster.
    3. Spend the bytes that are left on stages that keep their graphs.
    4. Run one tile of every stage on the meta device: where its bytes are not what was estimated, correct the
       estimate and search again.

Each stage takes the fastest tile that fits into what the maps leave it. Nothing is random and nothing is timed: the
same graph, budget and constants give the same plan.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..graph import Graph
from ..memory import format_bytes
from .drafts import Draft, Outcome, Workshop
from .options import Option, Piece
from .peak import MeasuredTileBytes, Moment, peak
from .stages import Globals, Stage, build_steps
from .times import Times

Steps = list[Stage | Globals]
#: Shares of the budget that a tile may take at least while maps are dropped; each gives a draft of its own.
SHARES = (1 / 3, 1 / 8, 1 / 24, 1 / 96)
#: How often single maps are stored or dropped on trial.
TRIALS = 600
#: How often estimates are corrected.
ROUNDS = 5


def parse_bytes(memory: int | str) -> int:
    """``"4GiB"``, ``"500 MB"`` or a number of bytes.

    >>> parse_bytes("4GiB"), parse_bytes("1.5 MB"), parse_bytes(1000)
    (4294967296, 1500000, 1000)
    """
    if isinstance(memory, int) and not isinstance(memory, bool):
        count = memory
    else:
        match = re.fullmatch(r"\s*([0-9.]+)\s*([kKMGT]?)(i?)B?\s*", str(memory))
        if match is None:
            raise ValueError(f"memory={memory!r}; needed is a number of bytes or a text such as '4GiB' or '500MB'")
        base = 1024 if match[3] else 1000
        count = int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))
    if count <= 0:
        raise ValueError(f"memory={memory!r}; a plan needs more than 0 bytes")
    return count


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


def search(graph: Graph, budget: int, times: Times, image_tile: Sequence[int] | None = None) -> Steps:
    """The steps of the fastest plan found within a budget.

    Args:
        graph: the captured network.
        budget: the bytes that a step may take.
        times: the constants of the device.
        image_tile: pixels of the image that every tile covers; None chooses per stage.

    Raises:
        BudgetError: none fits; it names the smallest that was found, and the stage that needs most.
    """
    found = Search(graph, budget, times, image_tile)
    for _ in range(ROUNDS):
        draft, outcome = found.best()
        steps = found.steps(draft, outcome)
        height = found.exact(steps).bytes
        if height <= budget:
            return steps
        found.learn(draft, outcome, steps, height)
    # Not a question of time any more: the smallest plan there is, whatever the budget.
    steps = smallest(graph, times, image_tile)
    highest = found.exact(steps)
    if highest.bytes <= budget:
        return steps
    raise BudgetError(budget, highest.bytes, getattr(highest.step, "layer", "the global part"))


def smallest(graph: Graph, times: Times, image_tile: Sequence[int] | None = None) -> Steps:
    """The steps of the plan that takes the fewest bytes, at any price in time."""
    found = Search(graph, 1, times, image_tile)
    best: tuple[int, float, Draft, Outcome] | None = None
    stored = found.workshop.fixed | frozenset(found.workshop.optional)
    while True:
        outcome = found.outcome(Draft(stored), 0)
        if best is None or (outcome.peak, outcome.seconds) < best[:2]:
            best = (outcome.peak, outcome.seconds, Draft(stored), outcome)
        name = found.least_worth(stored, outcome, {}, 0)
        if name is None:
            return found.steps(best[2], best[3])
        stored -= {name}


class Search:
    """One search: a workshop, a budget, and what was learnt of it."""

    def __init__(self, graph: Graph, budget: int, times: Times, image_tile: Sequence[int] | None) -> None:
        self.graph, self.budget, self.target = graph, budget, budget
        self.workshop = Workshop(graph, times, image_tile)
        self.measured = MeasuredTileBytes()

    # ------------------------------------------------------------------ 1: drop until it fits

    def best(self) -> tuple[Draft, Outcome]:
        """The fastest draft that fits by the estimate; the one that is least over where none does."""
        found: list[tuple[int, float, Draft, Outcome]] = []
        for share in SHARES:
            least = int(self.target * share)
            draft = self.fitted(least)
            if not self.outcome(draft, 0).over:
                draft = self.improved(self.keeping(self.improved(draft)))
            outcome = self.outcome(draft, 0)
            found.append((outcome.over, outcome.seconds, draft, outcome))
        best = min(found, key=lambda one: one[:2])
        return best[2], best[3]

    def outcome(self, draft: Draft, least: int) -> Outcome:
        return self.workshop.outcome(draft, self.target, least)

    def fitted(self, least: int) -> Draft:
        """Drop stored maps, those first that save most at the highest moment for the least time, until it fits."""
        stored = self.workshop.fixed | frozenset(self.workshop.optional)
        extra: dict[str, float] = {}
        while True:
            outcome = self.outcome(Draft(stored), least)
            dropped = self.least_worth(stored, outcome, extra, least) if outcome.over else None
            if dropped is None:
                return Draft(stored)
            for name in self.around(dropped, stored):
                extra.pop(name, None)
            stored -= {dropped}

    def least_worth(self, stored: frozenset[str], outcome: Outcome, extra: dict[str, float], least: int) -> str | None:
        """The map that saves most for the least time; ``extra`` remembers the seconds that each would cost."""
        workshop = self.workshop
        optional = [name for name in workshop.optional if name in stored]
        for name in optional:
            if name not in extra:
                extra[name] = self.extra_seconds(name, stored, least)
        lives = workshop.lives(workshop.entries(stored))
        floor = 1e-3 * outcome.seconds
        worth = {
            name: workshop.bytes_of[name] * _presence(lives[name], outcome.highest) / max(extra[name], floor)
            for name in optional
        }
        return max(optional, key=worth.__getitem__, default=None)

    def extra_seconds(self, name: str, stored: frozenset[str], least: int) -> float:
        """How much longer a step takes where a node is not stored."""
        workshop = self.workshop
        without = stored - {name}
        own = workshop.piece(name, stored).within(least).recompute
        if workshop.reductions[name]:
            own -= workshop.piece(name, without).within(least).recompute
        readers = self.readers(name, stored)
        return (
            sum(
                workshop.piece(reader, without).within(least).recompute
                - workshop.piece(reader, stored).within(least).recompute
                for reader in readers
            )
            - own
        )

    def readers(self, name: str, stored: frozenset[str]) -> list[str]:
        """The stages that read a stored node."""
        return [
            entry.target.name
            for entry in self.workshop.entries(stored)
            if isinstance(entry, Piece) and name in entry.reads and entry.target.name != name
        ]

    def around(self, name: str, stored: frozenset[str]) -> set[str]:
        """The nodes whose own worth may change when one is dropped: it, its readers, what they all read."""
        readers = self.readers(name, stored)
        pieces = [self.workshop.piece(n, stored) for n in (name, *readers)]
        return {name, *readers, *(read for piece in pieces for read in piece.reads)}

    # ------------------------------------------------------------------ 2: store or drop single maps

    def improved(self, draft: Draft) -> Draft:
        """Store or drop one map at a time, for as long as the step becomes faster."""
        best = self.outcome(draft, 0)
        trials, waiting = TRIALS, list(self.workshop.optional)
        while waiting and trials:
            name = waiting.pop(0)
            trials -= 1
            other = self._toggled(draft, name)
            outcome = self.outcome(other, 0)
            if not outcome.over and outcome.seconds < best.seconds * (1 - 1e-4):
                draft, best = other, outcome
                waiting = [n for n in self.workshop.optional if n != name]
        return draft

    def _toggled(self, draft: Draft, name: str) -> Draft:
        stored = draft.stored - {name} if name in draft.stored else draft.stored | {name}
        alive = set(self.workshop.entries(stored))
        return Draft(stored, {piece: option for piece, option in draft.kept.items() if piece in alive})

    # ------------------------------------------------------------------ 3: keep graphs

    def keeping(self, draft: Draft) -> Draft:
        """Let stages keep their graphs, those first that save most time for their bytes, while they fit."""
        best = self.outcome(draft, 0)
        chances = [
            ((best.options[entry].recompute - option.keep) / max(option.kept, 1), k, entry, option)
            for k, entry in enumerate(self.workshop.entries(draft.stored))
            if isinstance(entry, Piece) and entry.nodes
            for option in {entry.keeping[0], entry.keeping[-1], best.options[entry]}
        ]
        chances.sort(key=lambda one: (-one[0], one[1], one[3].tile))
        for _, _, piece, option in chances:
            other = Draft(draft.stored, {**draft.kept, piece: option})
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
        return steps

    def exact(self, steps: Steps) -> Moment:
        """The measured height of a plan."""
        return peak(self.graph, steps, self.measured)

    def learn(self, draft: Draft, outcome: Outcome, steps: Steps, height: int) -> None:
        """Correct the estimates of a draft's stages by what one tile of each takes.

        What then is still missing is no tile's: the whole budget is taken for smaller by as much.
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
        again = self.workshop.outcome(Draft(draft.stored, self._same(draft)), self.target, 0)
        if not again.over:
            self.target = min(self.target - 1, int(self.target * self.budget / height))

    def _same(self, draft: Draft) -> dict[Piece, Option]:
        """Kept stages with their corrected options."""
        return {piece: next(o for o in piece.options if o.tile == option.tile) for piece, option in draft.kept.items()}


def _presence(life: tuple[int, int], highest: int) -> float:
    """How many times a map's bytes count at the highest moment: the map, and its gradient; a little otherwise."""
    first, last = life
    return (first <= highest) + (first <= highest <= last) + 1e-3
