"""The main job: all stages from nothing to the report; a rerun skips what has finished.

python scripts/pipeline.py experiment=quickstart seed=0 run_dir=DIR
"""

from internal_rl import runtime

runtime.setup()

from internal_rl.running.cli import run_stage_script

if __name__ == "__main__":
    run_stage_script()
