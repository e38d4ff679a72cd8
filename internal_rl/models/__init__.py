"""Networks: residual blocks with two equal faces (`unroll`, `step`), the backbone cut in two, the metacontroller."""
