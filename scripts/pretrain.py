"""Stage 2: the base model.

python scripts/pretrain.py experiment=quickstart seed=0 run_dir=DIR
"""

from internal_rl import runtime

runtime.setup()

from internal_rl.running.cli import run_stage_script

if __name__ == "__main__":
    run_stage_script("pretrain")
