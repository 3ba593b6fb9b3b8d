"""Where arrays live: the layout, constraints by name, and feeding a mesh."""

from jaxtrain.sharding.constraints import shard, shard_map_by_name, shard_map_rows
from jaxtrain.sharding.layout import MEGATRON, RULES, ZERO1, Layout

__all__ = ["MEGATRON", "RULES", "ZERO1", "Layout", "shard", "shard_map_by_name", "shard_map_rows"]
