'use strict';
// The plans, from columns (columns.rs) to typed arrays. Times are nanoseconds.

const SHAPE = { name: 0, category: 1, stage: 2, backward: 3, peer: 4, program: 5, duration: 6, bytes: 7 };
const CATEGORY = { F: 0, B: 1, I: 2, W: 3, FB: 4, dispatch: 5, combine: 6, send: 7, receive: 8, reduce: 9, optimizer: 10 };
const OP = { name: 0, category: 1, exchange: 2, forward: 3, sms: 4, start: 5, end: 6, measured: 7 };

const report = JSON.parse(document.getElementById('data').textContent);

/** The stream of a shape, as the plan names it. */
function streamOf(shape) {
  switch (shape[SHAPE.category]) {
    case CATEGORY.send:
      return `to rank ${shape[SHAPE.peer]}`;
    case CATEGORY.receive:
      return `from rank ${shape[SHAPE.peer]}`;
    case CATEGORY.reduce:
      return 'gradients and parameters';
    default:
      return 'compute';
  }
}

/** Of a program's exchanges: which category has most time, and what share of the program it is. */
function summary(program) {
  const times = new Map();
  for (const op of program.ops) {
    if (op[OP.exchange]) times.set(op[OP.category], (times.get(op[OP.category]) ?? 0) + op[OP.end] - op[OP.start]);
  }
  const most = [...times].sort((a, b) => b[1] - a[1])[0];
  const all = [...times.values()].reduce((sum, time) => sum + time, 0);
  program.exchange = most ? { category: most[0], share: Math.min(1, all / Math.max(1, program.total)) } : null;
}

/** Items that are drawn on one line, by start. `reach[k]` is the latest end up to the k-th: it only grows, so it can be searched. */
class Lane {
  constructor(rank, name, items, start = rank.start, end = rank.end) {
    this.name = name;
    this.items = Uint32Array.from(items);
    this.items.sort((a, b) => start[a] - start[b] || a - b);
    this.start = Float64Array.from(this.items, (item) => start[item]);
    this.end = Float64Array.from(this.items, (item) => end[item]);
    this.category = Uint8Array.from(this.items, (item) => rank.of(item, 'category'));
    this.program = Array.from(this.items, (item) => rank.program(item));
    this.reach = this.end.slice();
    for (let k = 1; k < this.reach.length; k++) this.reach[k] = Math.max(this.reach[k], this.reach[k - 1]);
  }

  /** The first place whose item may reach beyond a time. */
  from(time) {
    let [low, high] = [0, this.reach.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.reach[middle] > time) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** The place of the item that runs from `time` on within `slack`: the last that started; -1 if none does. */
  at(time, slack) {
    let found = -1;
    for (let k = this.from(time - slack); k < this.start.length && this.start[k] <= time + slack; k++) {
      if (this.end[k] < time - slack) continue;
      if (found < 0 || this.start[k] <= time) found = k;
    }
    return found;
  }
}

class Rank {
  constructor(plan, columns, number) {
    const count = columns.shape.length;
    Object.assign(this, { plan, number, stages: columns.stages, columns });
    this.shape = Uint32Array.from(columns.shape);
    this.micro = new Float64Array(count);
    this.backward = new Float64Array(count);
    this.start = new Float64Array(count);
    this.end = new Float64Array(count);
    const ends = new Map();
    const last = plan.shapes.map(() => [0, 0]);
    let pairs = 0;
    for (let item = 0; item < count; item++) {
      const shape = this.shape[item];
      const stream = plan.streams[shape];
      this.start[item] = (ends.get(stream) ?? 0) + columns.start[item];
      this.end[item] = this.start[item] + plan.shapes[shape][SHAPE.duration];
      ends.set(stream, this.end[item]);
      last[shape][0] = this.micro[item] = last[shape][0] + columns.micro[item];
      if (plan.shapes[shape][SHAPE.name] === 'FB') last[shape][1] = this.backward[item] = last[shape][1] + columns.backward[pairs++];
    }
    this.makeLanes();
    this.makeGaps();
    this.measuredEnd = (columns.measured?.[1] ?? []).reduce((most, end) => Math.max(most, end), 0);
  }

  makeLanes() {
    const byStream = new Map();
    this.shape.forEach((shape, item) => {
      const stream = this.plan.streams[shape];
      if (!byStream.has(stream)) byStream.set(stream, []);
      byStream.get(stream).push(item);
    });
    this.compute = new Lane(this, 'compute', byStream.get('compute') ?? []);
    byStream.delete('compute');
    this.others = new Lane(this, 'messages, gradients', [...byStream.values()].flat());
    this.streams = [...byStream].map(([name, items]) => new Lane(this, name, items));
    const measured = this.columns.measured;
    this.measured = measured && new Lane(this, 'measured', this.compute.items, measured[0], measured[1]);
  }

  /** From the end of the compute item before to the start of the one that ends it, or to the end of the step. */
  makeGaps() {
    const { gap, idle, cause, awaited } = this.columns;
    const place = new Map();
    this.compute.items.forEach((item, k) => place.set(item, k));
    let item = 0;
    this.gaps = gap.map((step, k) => {
      item += step;
      const at = place.get(item) ?? this.compute.items.length;
      const start = at > 0 ? this.compute.end[at - 1] : 0;
      const end = at < this.compute.items.length ? this.compute.start[at] : this.plan.step;
      const [text, rank] = this.plan.causes[cause[k]];
      return { start, end, idle: idle[k], text, awaited: awaited[k] === null ? null : { rank, item: awaited[k] } };
    });
  }

  gapAt(time) {
    return this.gaps.find((gap) => gap.start <= time && time < gap.end);
  }

  of(item, field) {
    return this.plan.shapes[this.shape[item]][SHAPE[field]];
  }

  program(item) {
    const program = this.of(item, 'program');
    return program === null ? null : this.plan.programs[program];
  }

  /** As the plan names it. */
  task(item) {
    const [name, stage, micro] = [this.of(item, 'name'), this.of(item, 'stage'), this.micro[item]];
    switch (this.of(item, 'category')) {
      case CATEGORY.FB:
        return `FB(${stage},${micro};${this.of(item, 'backward')},${this.backward[item]})`;
      case CATEGORY.send:
        return `${name}(${stage},${micro}) to rank ${this.of(item, 'peer')}`;
      case CATEGORY.receive:
        return `${name}(${stage},${micro}) from rank ${this.of(item, 'peer')}`;
      case CATEGORY.reduce:
      case CATEGORY.optimizer:
        return `${name}(${stage})`;
      default:
        return `${name}(${stage},${micro})`;
    }
  }
}

for (const plan of report.plans) {
  plan.streams = plan.shapes.map(streamOf);
  plan.programs.forEach(summary);
  plan.ranks = plan.ranks.map((columns, number) => new Rank(plan, columns, number));
  plan.end = Math.max(plan.step, ...plan.ranks.map((rank) => rank.measuredEnd), 1);
}
