"""Random networks: streamed is plain, for whatever PyTorch runs. ``make fuzz`` runs 10,000 and counts what they held.

``draw``      where choices come from: Hypothesis, which makes a failure small, or a seed, which ranks share
``layers``    every kind of layer that has a rule, with its parameters drawn
``networks``  layers joined to a graph, run as they are drawn, so that every network is one that PyTorch takes
``counts``    which rules, neighbours and borders came up, read from the captured graph and the sizes
``borders``   the cases at the border that a layer meets
``judge``     plain against two plans
``run``       many of them, in several processes
"""
