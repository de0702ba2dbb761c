// Memory of a rank over the same window of time as the timelines: what is live, by kind, one on the other.

const MEMORY_HEIGHT = 190;

/** What a rank holds after each event: `time`, and for each kind that occurs a column of bytes. */
function memoryOf(rank) {
  if (rank.memory) return rank.memory;
  const { fixed, load, until, breakdown } = rank.columns;
  const breakdowns = rank.plan.breakdowns;
  const events = [];
  let item = 0;
  load.forEach((step, k) => {
    item += step;
    const from = rank.start[item];
    const to = until[k] === 0 ? rank.plan.step : rank.end[item + until[k] - 1];
    if (to > from) events.push([from, 1, breakdown[k]], [to, 0, breakdown[k]]);
  });
  // At one moment, what ends goes before what starts.
  events.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const now = new Float64Array(report.kinds.length);
  fixed.forEach(([kind, bytes]) => {
    now[kind] += bytes;
  });
  const there = new Set(fixed.filter(([, bytes]) => bytes > 0).map(([kind]) => kind));
  events.forEach(([, , of]) => breakdowns[of].forEach(([kind, bytes]) => bytes > 0 && there.add(kind)));
  const kinds = [...there].sort((a, b) => a - b);
  const time = new Float64Array(events.length + 1);
  const total = new Float64Array(events.length + 1);
  const columns = kinds.map(() => new Float64Array(events.length + 1));
  const put = (k) =>
    kinds.forEach((kind, at) => {
      columns[at][k] = now[kind];
      total[k] += now[kind];
    });
  put(0);
  events.forEach(([at, starts, of], k) => {
    breakdowns[of].forEach(([kind, bytes]) => {
      now[kind] += starts ? bytes : -bytes;
    });
    time[k + 1] = at;
    put(k + 1);
  });
  rank.memory = { time, total, kinds, columns };
  return rank.memory;
}

/** The last event up to a time. */
function eventAt(time, moment) {
  let [low, high] = [0, time.length];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (time[middle] <= moment) low = middle;
    else high = middle;
  }
  return low;
}

class MemoryChart {
  constructor() {
    this.canvas = document.getElementById('memory-canvas');
    this.axis = document.getElementById('memory-axis');
    this.legend = document.getElementById('memory-legend');
    this.note = document.getElementById('memory-note');
    this.canvas.style.height = `${MEMORY_HEIGHT}px`;
  }

  show(rank) {
    this.rank = rank;
    const memory = memoryOf(rank);
    const [peak, at] = rank.columns.peak;
    const limit = rank.plan.limit;
    const most = `Rank ${rank.number}: most is in use at ${moment(at)}, ${size(peak)} of ${size(limit)}.`;
    this.note.textContent = `${most} What lies between blocks of the arena is not counted.`;
    this.top = Math.max(1, peak, peak > 0.5 * limit ? limit : 0) * 1.04;
    this.axis.textContent = '';
    const place = (bytes) => MEMORY_HEIGHT * (1 - bytes / this.top);
    const step = niceStep(this.top / 4);
    for (let bytes = 0; bytes < this.top; bytes += step) {
      this.axis.append(element('span', shortSize(bytes, step), { style: `top:${Math.min(place(bytes) - 8, MEMORY_HEIGHT - 14)}px` }));
    }
    this.legend.textContent = '';
    this.values = memory.kinds.map((kind) => {
      const line = element('li');
      const value = element('b');
      line.append(element('i', undefined, { class: 'swatch', style: `--c:var(--m${kind})` }), report.kinds[kind], value);
      this.legend.append(line);
      return value;
    });
    this.say(at);
  }

  /** Writes into the legend what is in use at a time. */
  say(time) {
    const memory = memoryOf(this.rank);
    const event = eventAt(memory.time, time);
    this.values.forEach((value, k) => {
      value.textContent = size(Math.round(memory.columns[k][event]));
    });
  }

  draw(view, palette) {
    if (!this.rank) return;
    const ratio = pixelRatio();
    const width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    const height = Math.round(MEMORY_HEIGHT * ratio);
    if (this.canvas.width !== width || this.canvas.height !== height) [this.canvas.width, this.canvas.height] = [width, height];
    const context = this.canvas.getContext('2d');
    context.fillStyle = palette.paper;
    context.fillRect(0, 0, width, height);
    const { time, total, kinds, columns } = memoryOf(this.rank);
    const perPixel = (view.to - view.from) / width;
    const y = (bytes) => height * (1 - bytes / this.top);
    // In each pixel the moment at which most is in use.
    let event = eventAt(time, view.from);
    let [begun, shown] = [0, -1];
    const paint = (until) => {
      if (shown < 0) return;
      let sum = 0;
      kinds.forEach((kind, k) => {
        const bytes = columns[k][shown];
        context.fillStyle = palette.memory[kind];
        const [top, bottom] = [Math.round(y(sum + bytes)), Math.round(y(sum))];
        if (bottom > top) context.fillRect(begun, top, until - begun, bottom - top);
        sum += bytes;
      });
    };
    const stop = Math.min(width, Math.ceil((this.rank.plan.step - view.from) / perPixel));
    for (let pixel = 0; pixel < stop; pixel++) {
      const until = view.from + (pixel + 1) * perPixel;
      let most = event;
      while (event + 1 < time.length && time[event + 1] < until) {
        event++;
        if (total[event] > total[most]) most = event;
      }
      if (most !== shown) {
        paint(pixel);
        [begun, shown] = [pixel, most];
      }
    }
    paint(stop);
    context.fillStyle = palette.ink;
    if (this.rank.plan.limit <= this.top) {
      for (let x = 0; x < width; x += 8 * ratio) context.fillRect(x, Math.round(y(this.rank.plan.limit)), 4 * ratio, ratio);
    }
    const [peak, at] = this.rank.columns.peak;
    const x = (at - view.from) / perPixel;
    if (x >= 0 && x <= width) {
      context.beginPath();
      context.arc(x, y(peak), 3.5 * ratio, 0, 7);
      context.fill();
    }
  }

  lines(time) {
    const { time: times, total, kinds, columns } = memoryOf(this.rank);
    const event = eventAt(times, time);
    const largest = kinds
      .map((kind, k) => [report.kinds[kind], columns[k][event]])
      .filter(([, bytes]) => bytes > 0)
      .sort((a, b) => b[1] - a[1]);
    return {
      head: `${size(Math.round(total[event]))} in use · rank ${this.rank.number}`,
      lines: [`at ${moment(time)}`, ...largest.map(([kind, bytes]) => `${kind} ${size(Math.round(bytes))}`)],
    };
  }
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].find((k) => k * power >= rough) * power;
}

/** A number of the axis, in the unit of its steps. */
function shortSize(bytes, step) {
  const [unit, name] = step >= 1e9 ? [1e9, 'GB'] : step >= 1e6 ? [1e6, 'MB'] : step >= 1e3 ? [1e3, 'kB'] : [1, 'B'];
  return bytes === 0 ? '0' : `${Number((bytes / unit).toFixed(1))} ${name}`;
}
