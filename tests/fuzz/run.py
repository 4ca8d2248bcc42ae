"""Random networks, many: ``python -m tests.fuzz --graphs 10000``, which is ``make fuzz``.

Hypothesis draws them and makes a failing one small. At the end stands what they held; a rule or a case at the border
that came up less than 50 times, or two rules that never met, fail the run.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tqdm import tqdm

from tests.fuzz.counts import Counts
from tests.fuzz.draw import FromHypothesis
from tests.fuzz.judge import BOUND, judged
from tests.fuzz.networks import example

#: Networks that one process runs between two reports.
CHUNK = 100
LEAST = 50


def chunk(number: int, graphs: int) -> tuple[Counts, str | None]:
    """Run some networks of one seed: what they held, and the smallest that failed."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    counts = Counts()

    @seed(number)
    @settings(
        max_examples=graphs,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        case = example(FromHypothesis(data))
        try:
            net, rows = judged(case)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}\n{case}") from error
        counts.add(net.plan(case.image).graph, case)
        row, worst = max(rows, key=lambda each: each[1])
        assert worst <= BOUND, f"{row}: {worst:.1e}\n{case}"

    try:
        run()
    except AssertionError as error:
        return counts, f"seed {number}: {error}"
    except BaseExceptionGroup as error:
        return counts, f"seed {number}: " + "\n".join(map(str, error.exceptions))
    return counts, None


def main() -> int:
    """Run all chunks, print what they held, and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=10_000, help="networks to draw (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first chunk (%(default)s)")
    args = parser.parse_args()
    counts, failed = Counts(), list[str]()
    sizes = [min(CHUNK, args.graphs - k) for k in range(0, args.graphs, CHUNK)]
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool, tqdm(total=args.graphs, unit="network") as bar:
        jobs = {pool.submit(chunk, args.seed + k, size): size for k, size in enumerate(sizes)}
        for job in as_completed(jobs):
            held, failure = job.result()
            counts.merge(held)
            bar.update(jobs[job])
            if failure:
                failed.append(failure)
                bar.write(failure)
    print(counts)
    missing = counts.missing(LEAST) if args.graphs >= 10_000 else []
    for line in missing:
        print(f"too rare: {line}")
    print(f"{args.graphs} networks, {len(failed)} chunks with a failure, {len(missing)} things too rare")
    return 1 if failed or missing else 0

