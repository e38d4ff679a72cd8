"""Networks: the base model cut in two, the metacontroller that steers it, the policies RL trains.

Whatever has memory has two faces that give the same numbers: `unroll` for whole sequences, `step`
for one step.
"""
