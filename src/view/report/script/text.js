// Times and sizes as the rest of the page writes them (units.rs), and elements with text in them: never with markup.

const duration = (ns) =>
  ns < 1e4
    ? `${Math.round(ns)} ns`
    : ns < 1e7
      ? `${(ns / 1e3).toFixed(1)} µs`
      : ns < 1e10
        ? `${(ns / 1e6).toFixed(1)} ms`
        : `${(ns / 1e9).toFixed(2)} s`;
/** A moment: as a duration, but to the microsecond. */
const moment = (ns) => (ns < 1e7 ? duration(ns) : `${(ns / 1e6).toFixed(3)} ms`);
const size = (bytes) =>
  bytes < 1e4
    ? `${bytes} B`
    : bytes < 1e7
      ? `${(bytes / 1e3).toFixed(1)} kB`
      : bytes < 1e9
        ? `${(bytes / 1e6).toFixed(1)} MB`
        : `${(bytes / 1e9).toFixed(2)} GB`;
const percent = (part, whole) => (whole > 0 ? `${((100 * part) / whole).toFixed(1)} %` : '–');
const signed = (share) => `${share < 0 ? '−' : '+'}${Math.abs(100 * share).toFixed(1)} %`;

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const LONG = {
  F: 'forward',
  B: 'full backward',
  I: 'backward for the input',
  W: 'weight gradient',
  SendAct: 'sends an activation',
  SendGrad: 'sends a gradient',
  RecvAct: 'receives an activation',
  RecvGrad: 'receives a gradient',
  ReduceGrads: 'reduces the gradients',
  Update: 'optimizer step',
  GatherParams: 'gathers the parameters',
};

/** What there is to say of an item: a heading and lines. */
function itemLines(rank, item) {
  const name = rank.of(item, 'name');
  const [stage, micro] = [rank.of(item, 'stage'), rank.micro[item]];
  const lines = [];
  if (name === 'FB') {
    lines.push(
      `forward of stage ${stage}, micro-batch ${micro}, beside full backward of stage ${rank.of(item, 'backward')}, ` +
        `micro-batch ${rank.backward[item]}`,
    );
  } else {
    const of = ['ReduceGrads', 'Update', 'GatherParams'].includes(name) ? '' : `, micro-batch ${micro}`;
    lines.push(`${LONG[name]} of stage ${stage}${of}`);
  }
  const [start, end] = [rank.start[item], rank.end[item]];
  lines.push(`${moment(start)} to ${moment(end)}: ${duration(end - start)}`);
  const measured = rank.columns.measured;
  if (measured) lines.push(measuredLine(end - start, measured[1][item] - measured[0][item]));
  const bytes = rank.of(item, 'bytes');
  if (bytes !== null) lines.push(size(bytes));
  return { head: `${rank.task(item)} · rank ${rank.number}`, lines };
}

function measuredLine(predicted, measured) {
  return `predicted ${duration(predicted)}, measured ${duration(measured)}${measured > 0 ? ` (${signed(predicted / measured - 1)})` : ''}`;
}

/** Of an op of a program, where it is run by an item or by itself. */
function opLines(op) {
  const lines = [
    `${op[OP.name]}, ${op[OP.sms]} SMs: ${duration(op[OP.end] - op[OP.start])}, from ${duration(op[OP.start])} of the chunk on`,
  ];
  const measured = op[OP.measured];
  if (measured) lines.push(measuredLine(op[OP.end] - op[OP.start], measured[1] - measured[0]));
  return lines;
}

function gapLines(rank, gap) {
  const length = gap.end - gap.start;
  const lines = [`${moment(gap.start)} to ${moment(gap.end)}: ${duration(length)}`];
  if (gap.idle < length) lines.push(`nothing runs for ${duration(gap.idle)} of it, only communication for ${duration(length - gap.idle)}`);
  lines.push(`waits for ${gap.text}`);
  const awaited = gap.awaited && rank.plan.ranks[gap.awaited.rank];
  if (awaited) lines.push(`namely ${awaited.task(gap.awaited.item)}, which ends at ${moment(awaited.end[gap.awaited.item])}`);
  return { head: `Idle ${duration(gap.idle)} · rank ${rank.number}`, lines };
}
