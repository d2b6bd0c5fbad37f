"""Run by a Python that has xmanager: adds a plan to xmanager's mock, tells what was packaged and launched.

Standard input is a plan as JSON. Output is JSON: how often it was packaged, the work units, and each job's
command as xmanager would write it for a shell.
"""

import asyncio
import json
import sys

from xmanager import xm, xm_mock

from experiments.launching import start
from experiments.launching.plan import Plan, Run


def told(given: dict) -> dict:
  plan = Plan(
    given['program'], tuple(given['shared']), tuple(Run(name, flags) for name, flags in given['runs'])
  )
  packaged = []

  class Counting(xm_mock.MockExperiment):
    @classmethod
    def package(cls, packageables=()):
      packaged.extend(packageables)
      return super().package(packageables)

  async def add(experiment):
    async with experiment:
      return await start.add(experiment, plan)

  experiment = Counting()
  failed = asyncio.run(add(experiment))
  [one] = packaged
  return {
    'packaged': one.executable_spec.path,
    'failed': failed,
    'units': experiment.work_unit_count,
    'names': [job.name for job in experiment.launched_jobs],
    'seen': [job.args.to_dict() for job in experiment.launched_jobs],
    'commands': [' '.join(xm.merge_args(one.args, job.args).to_list()) for job in experiment.launched_jobs],
  }


if __name__ == '__main__':
  result = told(json.load(sys.stdin))
  print(json.dumps(result))
