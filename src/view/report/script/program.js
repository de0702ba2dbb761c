// A chunk program enlarged: its ops on both streams, as predicted and, if it ran, as measured.

const SVG = 'http://www.w3.org/2000/svg';
const LANE = { height: 46, space: 6, left: 86, axis: 22, narrowest: 680 };

function drawn(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

class ProgramDrawing {
  constructor() {
    this.place = document.getElementById('program-drawing');
    this.note = document.getElementById('program-note');
    this.select = document.getElementById('program-number');
  }

  /** Offers the programs of a plan: pairs first, then by how often they run. */
  offer(plan) {
    if (this.plan === plan) return;
    this.plan = plan;
    const runs = new Map();
    for (const rank of plan.ranks) {
      rank.shape.forEach((shape) => {
        const program = plan.shapes[shape][SHAPE.program];
        if (program !== null) runs.set(program, (runs.get(program) ?? 0) + 1);
      });
    }
    this.runs = runs;
    const order = plan.programs.map((_, number) => number);
    const isPair = (number) => (plan.programs[number].category === CATEGORY.FB ? 1 : 0);
    order.sort((a, b) => isPair(b) - isPair(a) || (runs.get(b) ?? 0) - (runs.get(a) ?? 0) || a - b);
    this.select.textContent = '';
    order.forEach((number) =>
      this.select.append(element('option', `${plan.programs[number].name} (${runs.get(number) ?? 0} runs)`, { value: number })),
    );
    if (order.length) this.show(order[0]);
  }

  show(number) {
    const program = this.plan.programs[number];
    this.program = program;
    this.select.value = number;
    const exposed = `${percent(program.exposed, program.total)} of it with communication only`;
    const runs = `Runs ${this.runs.get(number) ?? 0} times.`;
    this.note.textContent = `${program.name}: ${duration(program.total)} in ${program.ops.length} ops, ${exposed}. ${runs}`;
    this.draw();
  }

  draw() {
    const program = this.program;
    if (!program) return;
    const width = Math.max(LANE.narrowest, this.place.clientWidth);
    const isMeasured = program.ops.some((op) => op[OP.measured]);
    const ends = program.ops.map((op) => Math.max(op[OP.end], op[OP.measured]?.[1] ?? 0));
    const all = Math.max(1, program.total, ...ends);
    const scale = (width - LANE.left - 2) / all;
    const lanes = [
      ['compute', false, false],
      ['all-to-all', true, false],
    ];
    if (isMeasured) lanes.push(['measured', false, true], ['', true, true]);
    const height = LANE.axis + lanes.length * (LANE.height + LANE.space);
    const svg = drawn('svg', {
      viewBox: `0 0 ${width} ${height}`,
      role: 'img',
      'aria-label': `Ops of ${program.name}`,
      style: `min-width:${LANE.narrowest}px`,
    });
    this.drawTimes(svg, all, scale, height);
    lanes.forEach(([name, exchange, measured], k) => {
      const y = LANE.axis + k * (LANE.height + LANE.space);
      svg.append(drawn('text', { x: LANE.left - 8, y: y + LANE.height / 2 + 4, 'text-anchor': 'end' }, name));
      svg.append(drawn('rect', { x: LANE.left, y, width: Math.max(0, program.total * scale), height: LANE.height, fill: 'var(--idle)' }));
      for (const op of program.ops.filter((op) => op[OP.exchange] === exchange)) {
        const [start, end] = measured ? op[OP.measured] : [op[OP.start], op[OP.end]];
        if (end > start) svg.append(this.op(op, LANE.left + start * scale, (end - start) * scale, y));
      }
    });
    this.place.textContent = '';
    this.place.className = 'wide';
    this.place.append(svg);
  }

  op(op, x, width, y) {
    const group = drawn('g', { class: 'op' });
    group.op = op;
    const category = op[OP.category];
    group.append(
      drawn('rect', { x, y, width: Math.max(0.5, width - (width > 4 ? 1 : 0)), height: LANE.height, fill: `var(--c${category})` }),
    );
    // The longest that fits: `attn F`, or without the phase, which the colour says too.
    const room = Math.floor((width - 4) / 7.4);
    const name = [shortName(op), shortName(op).split(' ')[0]].find((name) => name.length <= room);
    const sms = [`${op[OP.sms]} SMs`, String(op[OP.sms])].find((text) => text.length <= room);
    [name, name && sms].forEach((line, k) => {
      if (line) group.append(drawn('text', { x: x + 3, y: y + 18 + 15 * k, style: `fill:${page.palette.letters[category]}` }, line));
    });
    return group;
  }

  drawTimes(svg, all, scale, height) {
    const step = niceStep((all / scale > 0 ? all : 1) / 8);
    for (let k = 0; k * step <= all; k++) {
      const x = LANE.left + k * step * scale;
      svg.append(drawn('rect', { x, y: 14, width: 1, height: height - 14, fill: 'var(--line)' }));
      svg.append(
        drawn(
          'text',
          { x, y: 10, 'text-anchor': k === 0 ? 'start' : 'middle', style: 'fill:var(--quiet)' },
          k === 0 ? '0' : shortTime(k * step, step),
        ),
      );
    }
  }
}

/** A number of the axis, in the unit of its steps. */
function shortTime(ns, step) {
  const [unit, name] = step >= 1e9 ? [1e9, 's'] : step >= 1e6 ? [1e6, 'ms'] : step >= 1e3 ? [1e3, 'µs'] : [1, 'ns'];
  return `${Number((ns / unit).toFixed(1))} ${name}`;
}
