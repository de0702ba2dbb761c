// The timeline of a plan: for every rank its compute items, the exchanges inside chunks, and messages and gradients; of an open rank every
// stream by itself. What is drawn is a window of time, `view`, that all figures of the page share.

const AXIS = 22;
/** Heights of a rank's lanes and of the space behind them, by how many ranks there are. */
const heights = (ranks) =>
  ranks <= 20
    ? { compute: 20, exchange: 8, others: 5, space: 6 }
    : ranks <= 40
      ? { compute: 12, exchange: 5, others: 3, space: 4 }
      : { compute: 7, exchange: 3, others: 2, space: 2 };
const OPEN = { compute: 46, exchange: 24, others: 14, space: 10 };
/** Chunks this wide, in pixels, have their ops on the compute stream below them. */
const WIDE = 110;
/** Ops of exchanges are drawn one by one if about so many are visible, or fewer. */
const MOST_OPS = 150_000;

class Timeline {
  constructor(figure, plan) {
    this.plan = plan;
    this.chart = figure.querySelector('.chart');
    this.labels = figure.querySelector('.labels');
    this.canvas = figure.querySelector('canvas');
    this.open = new Set();
    this.rows = document.createElement('canvas');
    this.painter = new RowPainter();
    const lanes = plan.ranks.map((rank) => rank.compute);
    const items = lanes.reduce((sum, lane) => sum + lane.items.length, 0);
    this.mean = lanes.reduce((sum, lane) => lane.end.reduce((all, end, k) => all + end - lane.start[k], sum), 0) / Math.max(1, items);
    this.ops = plan.ranks.reduce(
      (sum, rank) => sum + rank.shape.reduce((ops, shape) => ops + (plan.programs[plan.shapes[shape][SHAPE.program]]?.ops.length ?? 0), 0),
      0,
    );
    this.layout();
  }

  /** Places lanes, and the labels beside them. */
  layout() {
    this.lanes = [];
    this.labels.textContent = '';
    let y = AXIS;
    for (const rank of this.plan.ranks) {
      const isOpen = this.open.has(rank.number);
      const of = isOpen ? OPEN : heights(this.plan.ranks.length);
      const top = y;
      const add = (kind, lane, height, name) => {
        this.lanes.push({ kind, lane, rank, y, height });
        if (isOpen && name) this.label(y + Math.min(4, (height - 9) / 2) + (kind === 'compute' ? 22 : 0), name);
        y += height + 1;
      };
      add('compute', rank.compute, of.compute, 'compute');
      add('exchange', rank.compute, of.exchange, 'all-to-all');
      if (rank.measured) add('measured', rank.measured, isOpen ? 20 : Math.max(4, of.compute / 2), 'measured');
      if (isOpen)
        rank.streams.forEach((lane) =>
          add('stream', lane, of.others, lane.name.replace(' rank', '').replace('gradients and parameters', 'gradients')),
        );
      else add('others', rank.others, of.others);
      this.button(rank, isOpen, top, isOpen ? 18 : y - top - 1);
      y += of.space;
    }
    this.height = y;
    this.canvas.style.height = `${y}px`;
    this.labels.style.height = `${y}px`;
  }

  label(top, text) {
    this.labels.append(element('span', text, { class: 'lane', style: `top:${top}px` }));
  }

  button(rank, isOpen, top, height) {
    const stages = `${rank.stages.length === 1 ? 'stage' : 'stages'} ${rank.stages.join(', ')}`;
    const button = element('button', undefined, {
      type: 'button',
      'data-rank': rank.number,
      'aria-expanded': isOpen,
      title: stages,
      'aria-label': `rank ${rank.number}, ${stages}`,
      style: `top:${top}px;height:${height}px;font-size:${Math.min(12, height)}px`,
    });
    button.append(element('span', 'rank ', { class: 'word', style: 'position:static' }), String(rank.number));
    this.labels.append(button);
  }

  draw(view, palette) {
    const ratio = pixelRatio();
    const css = this.canvas.clientWidth;
    const width = Math.max(1, Math.round(css * ratio));
    if (this.canvas.width !== width || this.canvas.height !== Math.round(this.height * ratio)) {
      this.canvas.width = width;
      this.canvas.height = Math.round(this.height * ratio);
    }
    const context = this.canvas.getContext('2d');
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = palette.paper;
    context.fillRect(0, 0, width, this.canvas.height);
    const scale = css / (view.to - view.from);
    const isWide = this.mean * scale > WIDE;
    this.drawLanes(context, view, palette, width, ratio, isWide);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    drawAxis(context, view, css, palette, this.height);
    context.textBaseline = 'middle';
    for (const lane of this.lanes) {
      if (lane.kind === 'compute' || lane.kind === 'measured')
        this.nameItems(context, lane, view, scale, css, palette, isWide && lane.kind === 'compute');
      if (lane.kind === 'exchange' && isWide && lane.height >= 8)
        this.nameOps(context, lane, view, scale, css, palette, true, lane.y, lane.height);
    }
  }

  /** Each lane as one to three rows of pixels, stretched to its height. */
  drawLanes(context, view, palette, width, ratio, isWide) {
    const rows = [];
    const isFine = this.ops * (view.to - view.from) < MOST_OPS * this.plan.end;
    for (const lane of this.lanes) {
      const add = (which, y, height) => rows.push({ lane, which, y, height, wide: isWide || isFine });
      if (lane.kind === 'compute' || lane.kind === 'measured') {
        const strip = lane.kind === 'compute' && isWide ? stripOf(lane.height) : lane.height;
        add('top', lane.y, strip / 2);
        add('bottom', lane.y + strip / 2, strip / 2);
        if (strip < lane.height) add('ops', lane.y + strip, lane.height - strip);
      } else {
        add(lane.kind === 'exchange' ? 'exchange' : 'top', lane.y, lane.height);
      }
    }
    if (rows.length === 0) return;
    if (this.image?.width !== width || this.image.height !== rows.length) {
      this.image = context.createImageData(width, rows.length);
      [this.rows.width, this.rows.height] = [width, rows.length];
    }
    const pixels = new Uint32Array(this.image.data.buffer);
    rows.forEach(({ lane, which, wide }, k) => {
      this.painter.begin(pixels.subarray(k * width, (k + 1) * width), palette, Math.max(1, Math.round(ratio)));
      paintLane(this.painter, lane.lane, view, width, which, wide);
      this.painter.end();
    });
    this.rows.getContext('2d').putImageData(this.image, 0, 0);
    context.imageSmoothingEnabled = false;
    rows.forEach(({ y, height }, k) => {
      const [top, bottom] = [Math.round(y * ratio), Math.round((y + height) * ratio)];
      context.drawImage(this.rows, 0, k, width, 1, 0, top, width, bottom - top);
    });
  }

  /** Writes into the items that have room for it. */
  nameItems(context, lane, view, scale, css, palette, wide) {
    const strip = wide ? stripOf(lane.height) : lane.height;
    const of = lane.lane;
    for (let k = of.from(view.from); k < of.start.length && of.start[k] < view.to; k++) {
      const [x0, x1] = [(of.start[k] - view.from) * scale, (of.end[k] - view.from) * scale];
      if (x1 - x0 < 20) continue;
      const item = of.items[k];
      const category = lane.rank.of(item, 'category');
      const name = lane.rank.of(item, 'name');
      const micro = category === CATEGORY.optimizer ? '' : lane.rank.micro[item];
      const put = (text, of, y, height) =>
        height >= 9 && fitText(context, text, x0, x1, css, y + height / 2, Math.min(11, height), palette.letters[of]);
      if (category === CATEGORY.FB && strip >= 18) {
        put(`F${micro}`, CATEGORY.F, lane.y, strip / 2);
        put(`B${lane.rank.backward[item]}`, CATEGORY.B, lane.y + strip / 2, strip / 2);
      } else if (category !== CATEGORY.FB) {
        put(`${name}${micro}`, category, lane.y, strip);
      }
    }
    if (wide && lane.height - strip >= 9)
      this.nameOps(context, lane, view, scale, css, palette, false, lane.y + strip, lane.height - strip);
  }

  nameOps(context, lane, view, scale, css, palette, exchange, y, height) {
    const of = lane.lane;
    for (let k = of.from(view.from); k < of.start.length && of.start[k] < view.to; k++) {
      for (const op of lane.rank.program(of.items[k])?.ops ?? []) {
        const x0 = (of.start[k] + op[OP.start] - view.from) * scale;
        const x1 = (of.start[k] + op[OP.end] - view.from) * scale;
        if (op[OP.exchange] !== exchange || x1 - x0 < 20 || x1 < 0 || x0 > css) continue;
        fitText(context, shortName(op), x0, x1, css, y + height / 2, Math.min(11, height), palette.letters[op[OP.category]]);
      }
    }
  }

  /** What is at a place of the canvas, in CSS pixels. */
  hit(x, y, view) {
    const lane = this.lanes.find((lane) => y >= lane.y - 1 && y < lane.y + lane.height + 1);
    if (!lane) return null;
    const perPixel = (view.to - view.from) / this.canvas.clientWidth;
    const time = view.from + x * perPixel;
    return this.what(lane, time, lane.lane.at(time, lane.kind === 'compute' || lane.kind === 'exchange' ? 0 : perPixel), y);
  }

  /** The item, the op in it, or the gap of a lane at a time. */
  what(lane, time, place, y) {
    const rank = lane.rank;
    const found = { timeline: this, lane, rank, time };
    if (place >= 0) {
      const item = lane.lane.items[place];
      const into = time - lane.lane.start[place];
      const inStrip = lane.kind === 'compute' && y < lane.y + stripOf(lane.height);
      const ops =
        lane.kind === 'measured' || lane.kind === 'stream' || lane.kind === 'others' || inStrip ? [] : (rank.program(item)?.ops ?? []);
      const op = ops.find((op) => op[OP.exchange] === (lane.kind === 'exchange') && op[OP.start] <= into && into < op[OP.end]);
      return { ...found, item, op, start: lane.lane.start[place], end: lane.lane.end[place] };
    }
    const gap = lane.kind === 'compute' || lane.kind === 'exchange' ? rank.gapAt(time) : undefined;
    return gap ? { ...found, gap, start: gap.start, end: gap.end } : null;
  }

  /** The lane that compute items of a rank are on. */
  laneOf(number) {
    return this.lanes.find((lane) => lane.rank.number === number && lane.kind === 'compute');
  }

  /** A frame around a stretch of a lane; none if it is out of sight. */
  mark(view, lane, start, end, kind) {
    const scale = this.canvas.clientWidth / (view.to - view.from);
    const x0 = Math.max(0, (start - view.from) * scale);
    const x1 = Math.min(this.canvas.clientWidth, (end - view.from) * scale);
    if (x1 < 0 || x0 > this.canvas.clientWidth) return;
    const [left, width] = [this.canvas.offsetLeft + x0 - 1, Math.max(4, x1 - x0 + 2)];
    this.chart.append(
      element('div', undefined, {
        class: `mark ${kind}`,
        style: `left:${left}px;top:${lane.y - 1}px;width:${width}px;height:${lane.height + 2}px`,
      }),
    );
  }
}

const stripOf = (height) => (height >= 30 ? 22 : Math.round(height * 0.4));
const shortName = (op) =>
  op[OP.name]
    .replace(/ of unit .*$/, '')
    .replace('Attention', 'attn')
    .replace('Dispatch', 'disp')
    .replace('Combine', 'comb')
    .replace('Mlp', 'MLP');

/** Writes into a stretch, as much of it as is visible, if there is room. */
function fitText(context, text, x0, x1, css, y, pixels, colour) {
  const [left, right] = [Math.max(0, x0), Math.min(css, x1)];
  context.font = `${pixels}px system-ui, "DejaVu Sans", sans-serif`;
  if (context.measureText(text).width + 4 > right - left) return;
  context.fillStyle = colour;
  context.fillText(text, left + 3, y + 0.5);
}

/** Times at the top, at round numbers, with lines through the figure. */
function drawAxis(context, view, css, palette, height) {
  const [unit, name] =
    view.to - view.from < 5e3 ? [1, 'ns'] : view.to - view.from < 5e6 ? [1e3, 'µs'] : view.to - view.from < 5e9 ? [1e6, 'ms'] : [1e9, 's'];
  const rough = (((view.to - view.from) / unit) * 90) / Math.max(css, 90);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((k) => k * power >= rough) * power;
  context.font = '11px system-ui, "DejaVu Sans", sans-serif';
  context.textBaseline = 'alphabetic';
  for (let k = Math.ceil(view.from / unit / step); k * step * unit <= view.to; k++) {
    const x = ((k * step * unit - view.from) / (view.to - view.from)) * css;
    context.fillStyle = palette.line;
    context.fillRect(Math.round(x), AXIS - 6, 1, 5);
    const text = `${Number((k * step).toFixed(6))} ${name}`;
    const room = context.measureText(text).width;
    if (x + room > css) continue;
    context.fillStyle = palette.quiet;
    context.fillText(text, Math.max(0, k === 0 ? x : x - room / 2), AXIS - 9);
  }
}
