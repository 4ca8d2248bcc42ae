"""Random networks, many: ``python -m tests.fuzz --graphs 10000``, which is ``make fuzz``.

A network is a seed, so a failure is repeated by ``--seed N --graphs 1``; a failing one is printed without the layers
that it fails without. At the end stands what the networks held; a rule or a case at the border that came up less than
50 times, or two rules that never met, fail the run.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch
from tqdm import tqdm

from tests.fuzz.counts import Counts
from tests.fuzz.draw import FromSeed
from tests.fuzz.judge import BOUND, judged
from tests.fuzz.networks import Example, Wired, example

#: Networks that one process runs between two reports.
CHUNK = 100
#: What of 10,000 networks came up less often than this is too rare.
LEAST = 50


def failure(case: Example, counts: Counts | None = None) -> str | None:
    """What is wrong with one network; None where streamed is plain."""
    try:
        net, rows = judged(case)
        if counts is not None:
            counts.add(net.plan(case.image).graph, case)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    row, worst = max(rows, key=lambda each: each[1])
    return None if worst <= BOUND else f"{row}: {worst:.1e}"


def shorter(case: Example) -> Example:
    """The network without the last layers that it fails without."""
    for count in range(1, len(case.kinds)):
        net = Wired([*case.net.layers][:count], case.net.reads[:count], (count,))
        fewer = copy.copy(case)
        fewer.net, fewer.kinds = net, case.kinds[:count]
        if failure(fewer):
            return fewer
    return case


def chunk(first: int, graphs: int) -> tuple[Counts, list[str]]:
    """Run the networks of some seeds: what they held, and what failed."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    counts, failed = Counts(), []
    for seed in range(first, first + graphs):
        case = example(FromSeed(seed))
        wrong = failure(case, counts)
        if wrong:
            failed.append(f"seed {seed}: {wrong}\n{shorter(case)}")
    return counts, failed


def main() -> int:
    """Run all chunks, print what they held, and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=10_000, help="networks to draw (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first network (%(default)s)")
    args = parser.parse_args()
    counts, failed = Counts(), list[str]()
    sizes = {k: min(CHUNK, args.graphs - k) for k in range(0, args.graphs, CHUNK)}
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool, tqdm(total=args.graphs) as bar:
        jobs = {pool.submit(chunk, args.seed + first, size): size for first, size in sizes.items()}
        for job in as_completed(jobs):
            held, wrong = job.result()
            counts.merge(held)
            bar.update(jobs[job])
            failed += wrong
            for text in wrong:
                bar.write(text)
    print(counts)
    missing = counts.missing(LEAST) if args.graphs >= 10_000 else []
    for line in missing:
        print(f"too rare: {line}")
    print(f"{args.graphs} networks, {len(failed)} wrong, {len(missing)} things too rare")
    return 1 if failed or missing else 0
