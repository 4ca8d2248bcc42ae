"""What each rank of a test does: `torchrun --standalone --nproc-per-node N -m tests.ranks TASK ...`.

Rank 0 prints one line of JSON per case; the tests in test_partition.py read them. One process group serves a whole
table: starting processes takes longer than most cases.

``case``         what all tasks have in common
``table``        every network of the table, divided
``sizes``        the same at 17, 17 x 61 and 15 x 33 x 9
``fuzz``         random networks, divided
``layouts``      wide halos, empty parts, images and results in parts
``adjoint``      the exchange of boxes, forward and backward
``traffic``      bytes sent and held, against the plan's
``memory``       bytes held, against one process
``replicas``     data parallelism over partitions: DDP, FSDP2
``slides``       a training over ranks that share slides
``checkpoints``  saved by two ranks, loaded by three, and by one
``restart``      a rank is killed, and torchrun starts again
``failing``      one thing goes wrong on one rank
"""
