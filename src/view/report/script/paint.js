// Rows of pixels. However much a lane holds, a row costs what is visible, once, and the width: where a pixel covers several items it gets
// the colour that fills most of it, as strong as what runs fills it. So a bubble is seen at any zoom, and a third of a million items are fluid.

const SHADES = 32;
const COUNT = 11;

/** Pixels of a canvas for each of CSS; paper has more than a screen. */
const pixelRatio = () => (document.documentElement.hasAttribute('data-print') ? 3 : window.devicePixelRatio || 1);

/** The page's colours, as they are now. */
class Palette {
  constructor() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    this.css = Array.from({ length: COUNT }, (_, k) => read(`--c${k}`));
    this.memory = report.kinds.map((_, k) => read(`--m${k}`));
    [this.paper, this.idle, this.ink, this.quiet, this.line] = ['--paper', '--idle', '--ink', '--quiet', '--line'].map(read);
    const rgb = (css) => [1, 3, 5].map((at) => parseInt(css.slice(at, at + 2), 16));
    const pack = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
    const idle = rgb(this.idle);
    this.background = pack(idle);
    this.shades = this.css.map((css) => {
      const colour = rgb(css);
      return Uint32Array.from({ length: SHADES + 1 }, (_, k) =>
        pack(colour.map((c, at) => Math.round(idle[at] + ((c - idle[at]) * k) / SHADES))),
      );
    });
    // Letters on a colour: black or white, whichever is further from it.
    this.letters = this.css.map((css) => {
      const linear = rgb(css).map((c) => (c / 255) ** 2.2);
      const light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
      return light > 0.2 ? '#000' : '#fff';
    });
  }
}

/** Fills one row: `begin`, then `add` in the order of starts, then `end`. */
class RowPainter {
  constructor() {
    this.weights = new Float32Array(COUNT);
  }

  begin(row, palette, seam) {
    Object.assign(this, { row, palette, seam, pixel: -1, touched: 0 });
    row.fill(palette.background);
    this.weights.fill(0);
  }

  /** Pixels from `x0` to `x1`, of which a share is filled. */
  add(x0, x1, category, share) {
    if (x0 < 0) x0 = 0;
    if (x1 > this.row.length) x1 = this.row.length;
    if (!(x1 > x0)) return;
    const first = Math.floor(x0);
    const last = Math.floor(x1);
    if (first === last) {
      this.part(first, category, (x1 - x0) * share);
      return;
    }
    this.part(first, category, (first + 1 - x0) * share);
    if (last > first + 1) {
      this.flush();
      this.row.fill(this.palette.shades[category][Math.round(SHADES * share)], first + 1, last);
    }
    if (last < this.row.length) this.part(last, category, (x1 - last) * share);
    // Neighbours of one colour stay apart where there is room.
    if (x1 - x0 > 6 * this.seam) {
      this.flush();
      this.row.fill(this.palette.background, first, Math.min(first + this.seam, last));
    }
  }

  part(pixel, category, weight) {
    if (pixel !== this.pixel) {
      this.flush();
      this.pixel = pixel;
    }
    this.weights[category] += weight;
    this.touched |= 1 << category;
  }

  flush() {
    if (this.pixel < 0) return;
    const { weights } = this;
    let most = 0;
    let heaviest = 0;
    let sum = 0;
    for (let left = this.touched; left !== 0; left &= left - 1) {
      const k = 31 - Math.clz32(left & -left);
      sum += weights[k];
      if (weights[k] > heaviest) [most, heaviest] = [k, weights[k]];
      weights[k] = 0;
    }
    if (sum > 0) this.row[this.pixel] = this.palette.shades[most][Math.min(SHADES, Math.max(1, Math.round(SHADES * sum)))];
    this.touched = 0;
    this.pixel = -1;
  }

  end() {
    this.flush();
  }
}

/**
 * Paints what of a lane is visible. `which` says how: `top` and `bottom` are the halves of compute items, of a pair the forward's and the
 * backward's colour; `ops` the ops of programs on the compute stream; `exchange` those on the other, or, unless `wide`, what share of the
 * program they fill.
 */
function paintLane(painter, lane, view, width, which, wide) {
  const scale = width / (view.to - view.from);
  const { start: starts, end: ends, category: categories, program: programs } = lane;
  const pair = which === 'bottom' ? CATEGORY.B : CATEGORY.F;
  for (let k = lane.from(view.from); k < starts.length && starts[k] < view.to; k++) {
    const start = (starts[k] - view.from) * scale;
    const end = (ends[k] - view.from) * scale;
    const category = categories[k];
    const program = programs[k];
    if (which === 'top' || which === 'bottom' || (which === 'ops' && program === null)) {
      painter.add(start, end, category === CATEGORY.FB ? pair : category, 1);
    } else if (program !== null && wide) {
      for (const op of program.ops) {
        if (op[OP.exchange] === (which === 'exchange'))
          painter.add(start + op[OP.start] * scale, start + op[OP.end] * scale, op[OP.category], 1);
      }
    } else if (program?.exchange && which === 'exchange') {
      painter.add(start, end, program.exchange.category, program.exchange.share);
    }
  }
}
