"""Diagnostic of the base model: supervised controllers.

python scripts/controllers.py experiment=quickstart seed=0 run_dir=DIR
"""

from internal_rl import runtime

runtime.setup()

from internal_rl.running.cli import run_stage_script

if __name__ == "__main__":
    run_stage_script("controllers")
