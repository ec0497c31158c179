"""Train a configuration at two learning rates, each as a job of its own, and compare what they came to.

    python docs/sweep.py configs/busi.yaml [KEY=VALUE ...]
    python docs/sweep.py configs/busi.yaml --cluster local

The configuration's databases must be encoded; both runs read the same shards. If this script is stopped, the jobs go
on; started again, it submits them again, and each goes on where it was.
"""

import argparse
from pathlib import Path

from launch.config import load_config
from launch.submit import submit

LEARNING_RATES = (1e-5, 2e-5)


def main() -> None:
    """Submit both, wait, and print their last validation losses."""
    parser = argparse.ArgumentParser(description="Compare two learning rates.")
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm")
    parser.add_argument("--gpus-per-node", type=int, default=1)
    parser.add_argument("--partition")
    arguments = parser.parse_args()
    base = load_config(arguments.config, arguments.overrides)
    jobs = {}
    for rate in LEARNING_RATES:
        own = [f"run={base.run}-lr{rate:g}", f"shards={base.shards_path}", f"optimizer.lr={rate}"]
        jobs[rate], *_ = submit(
            arguments.config,
            [*arguments.overrides, *own],
            cluster=arguments.cluster,
            gpus_per_node=arguments.gpus_per_node,
            partition=arguments.partition,
        )
        print(f"learning rate {rate:g}: job {jobs[rate].job_id}")
    for rate, job in jobs.items():
        summary = job.results()[0]
        for name, stage in summary["stages"].items():
            losses = ", ".join(f"{database} {loss:.4f}" for database, loss in stage["losses"].items())
            print(f"learning rate {rate:g}: stage {name}, {stage['steps']} steps, validation loss {losses}")


if __name__ == "__main__":
    main()
