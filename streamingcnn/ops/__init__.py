"""The rules, one file per family; ``registry`` finds the lowering of an ATen operation."""
