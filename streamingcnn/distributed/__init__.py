"""One image over several ranks: each owns a box of every map, and they exchange the seams."""

from streamingcnn.distributed.checkpoints import latest_checkpoint as latest_checkpoint
from streamingcnn.distributed.checkpoints import load_checkpoint as load_checkpoint
from streamingcnn.distributed.checkpoints import save_checkpoint as save_checkpoint
from streamingcnn.distributed.gathering import gathered as gathered
from streamingcnn.distributed.gathering import summed as summed
from streamingcnn.distributed.link import PartitionError as PartitionError
from streamingcnn.distributed.partition import Partition as Partition
from streamingcnn.distributed.redistribution import redistribute as redistribute
from streamingcnn.part import Part as Part
