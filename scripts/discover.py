"""Stage 3: the metacontroller, the proposal if there is to be one, and unseen transitions.

python scripts/discover.py experiment=quickstart seed=0 run_dir=DIR
"""

from internal_rl import runtime

runtime.setup()

from internal_rl.running.cli import run_stage_script

if __name__ == "__main__":
    run_stage_script("discover", "propose", "transitions")
