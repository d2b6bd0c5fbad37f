"""A plan as text: tables, times, and what to change where it does not fit."""

from experiments.planning.phases import Phase
from experiments.planning.whole import ROOM, Plan
from opsd_jax.analyze.chips import GIB
from opsd_jax.distill.packing import run_width
from opsd_jax.experiment import Experiment


def describe(plan: Plan) -> str:
  """Everything that a plan says."""
  parts = [_head(plan), _memory(plan), _verdict(plan)]
  if plan.complete:
    parts += [_work(plan), _largest(plan), _recipe(plan)]
  parts.append('Not counted: ' + '; '.join(plan.left_out) + '.')
  return '\n\n'.join(parts)


def _head(plan: Plan) -> str:
  e, mesh = plan.experiment, ' x '.join(f'{axis} {size}' for axis, size in plan.mesh.items())
  trained = f'LoRA of rank {e.lora.rank}' if e.lora.rank else 'all weights'
  most, micro = e.rollout.sampling.max_tokens, plan.micro_batches
  return (
    f'{e.name} on {plan.where.name}: {plan.where.chips} chips, mesh {mesh}\n'
    f'{trained}; {e.rollout.questions} questions x {e.rollout.per_question} rollouts of {most} tokens; '
    f'prompts of {e.views.student_tokens} (student) and {e.views.teacher_tokens} (teacher), all full\n'
    f'micro-batches: {micro} (loop.micro_tokens={e.loop.micro_tokens or "none"}, '
    f'loop.packing={e.loop.packing})'
  )


def _memory(plan: Plan) -> str:
  chip, rows = plan.where.chip, []
  for phase in _programs(plan):
    sizes = (phase.arguments, phase.temporaries, phase.peak, phase.others, phase.together)
    left = 1 - phase.together / chip.memory
    rows.append([_stage(phase), *(f'{size / GIB:.2f}' for size in sizes), f'{left:+.0%}'])
    if phase.refused:
      rows[-1] = [_stage(phase), '', '', phase.refused, f'{phase.others / GIB:.2f}', '', 'none']
  header = ['GiB a chip', 'arguments', 'temporaries', 'peak', 'beside', 'together', 'head-room']
  held, copy = plan.held / GIB, plan.copy.copied / GIB
  return (
    f'Memory: {chip.memory / GIB:.2f} GiB a chip\n{_table(header, rows)}\n'
    f'held from update to update: {held:.2f}; the copy that decodes, an argument of the rollout: {copy:.2f}'
  )


def _verdict(plan: Plan) -> str:
  if plan.fits and plan.room >= ROOM:
    words = [f'It fits: {plan.room:.0%} of a chip is left at the worst moment ({_stage(plan.worst)}).']
  elif plan.fits:
    words = [f'It fits, but {plan.room:.0%} is left ({_stage(plan.worst)}); {ROOM:.0%} is safer. To change:']
  else:
    words = [f'It does not fit ({_stage(plan.worst)}). To change:']
  if not plan.fits or plan.room < ROOM:
    words += [f'  - {remedy}' for remedy in remedies(plan)]
  return '\n'.join(words + list(plan.warnings))


def remedies(plan: Plan) -> list[str]:
  """What to change where memory is short, by the phase that is."""
  e, tensor = plan.experiment, plan.mesh['tensor']
  found = []
  wider = e.model.num_kv_heads % (2 * tensor) == 0 and plan.where.chips % (2 * tensor) == 0
  name = plan.worst.name
  if name in ('copy', 'rollout', 'prefill', 'decode'):
    copy = plan.copy.held / GIB
    if wider:
      found.append(
        f'--set=mesh.tensor={2 * tensor}: the weights that decode, {copy:.2f} GiB, are split over the tensor '
        'axis alone and would take half.'
      )
    if e.rollout.decode.cache != 'int8':
      found.append(
        '--set=rollout.decode.cache=int8: half the keys and values (or fewer rollout.decode.slots).'
      )
  else:
    least = fewest_tokens(e)
    if e.loop.micro_tokens is None or e.loop.micro_tokens > least:
      found.append(f'--set=loop.micro_tokens={least}: one question at a time on each part of the rows.')
    if e.model.remat != 'full':
      found.append('--set=model.remat=full: a backward pass keeps the inputs of layers alone.')
    if wider:
      found.append(f'--set=mesh.tensor={2 * tensor}: wide activations and logits are split further.')
  if plan.mesh['data'] > 1:
    found.append('--set=mesh.data=1: the parameters are then split over these chips as well.')
  if not e.lora.rank:
    found.append('--set=lora.rank=64: masters, gradients and moments of the adapters alone.')
  return [*found, 'more chips, or --search for other meshes and micro-batches.']


def fewest_tokens(e: Experiment) -> int:
  """The least `loop.micro_tokens` there may be: every part of the rows then reads a question at a time."""
  widest = max(e.views.student_tokens, e.views.teacher_tokens)
  return run_width(widest, e.rollout.per_question, e.rollout.sampling.max_tokens)


def _work(plan: Plan) -> str:
  rows = []
  for phase in plan.phases:
    counts = (phase.flops / 1e12, phase.bytes / 1e9, phase.sent / 1e9)
    times = (phase.seconds.compute, phase.seconds.memory, phase.seconds.both, phase.seconds.exchange)
    rows.append([phase.name, *(f'{n:.2f}' for n in counts), *(f'{t:.3f}' for t in times)])
    rows[-1] += [f'{phase.seconds.most:.3f}', f'{phase.compiled_in:.0f}']
  s = plan.seconds
  totals = [sum(getattr(p, name) for p in plan.phases) for name in ('flops', 'bytes', 'sent', 'compiled_in')]
  rows.append(
    [
      'update in all',
      *(f'{total / unit:.2f}' for total, unit in zip(totals, (1e12, 1e9, 1e9), strict=False)),
      *(f'{t:.3f}' for t in (s.compute, s.memory, s.both, s.exchange, plan.most)),
      f'{totals[3]:.0f}',
    ]
  )
  header = ['of one chip', 'TFLOP', 'GB moved', 'GB sent', 's compute', 's memory', 's both', 's exchange']
  return f'Work of an update\n{_table([*header, "s", "s to compile"], rows)}'


def _largest(plan: Plan) -> str:
  every = [(phase.name, *one) for phase in plan.phases for one in phase.largest]
  lines = [
    f'  {sent / 1e9:8.2f} GB  {name}: {kind} over {chips} chips, {operation[-70:]}'
    for name, kind, chips, sent, operation in sorted(every, key=lambda one: -one[3])[:6]
  ]
  return '\n'.join(['What a chip sends most of:', *(lines or ['  nothing'])])


def _recipe(plan: Plan) -> str:
  chip, where = plan.where.chip, plan.where
  rate = plan.tokens / plan.most
  return (
    f'An update takes at least {plan.least:.2f} s with all exchanges hidden, {plan.most:.2f} s with none: '
    f'each instruction at {chip.flops / 1e12:.0f} TFLOP/s or {chip.bandwidth / 1e9:.0f} GB/s, whichever is '
    f'slower, exchanges at {where.ring / 1e9:.0f} GB/s along one dimension of the slice ({chip.source}).\n'
    f'With none hidden: {rate:,.0f} sampled tokens a second ({rate / where.chips:,.0f} a chip); the FLOPs of '
    f'real tokens are {plan.utilisation:.0%} of the peak.\n'
    f'The recipe: {plan.updates} updates, {plan.chip_hours:.1f} chip-hours, '
    f'{plan.chip_hours / where.chips * 60:.0f} minutes.'
  )


def _programs(plan: Plan) -> list[Phase]:
  """One phase of each program: prefill and decoding share theirs."""
  return [phase for phase in plan.phases if phase.name != 'decode']


def _stage(phase: Phase) -> str:
  return 'rollout' if phase.name in ('prefill', 'decode') else phase.name


def _table(header: list[str], rows: list[list[str]]) -> str:
  """Columns, the first to the left and the others to the right."""
  widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
  lines = []
  for row in (header, *rows):
    first, *rest = (
      cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))
    )
    lines.append('  '.join((first, *rest)).rstrip())
  return '\n'.join(lines)
