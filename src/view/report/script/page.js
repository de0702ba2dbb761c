// The page: what is looked at, and what pointers and keys do.

class Page {
  constructor() {
    this.palette = new Palette();
    this.all = Math.max(...report.plans.map((plan) => plan.end), 1);
    this.view = { from: 0, to: this.all };
    this.timelines = [...document.querySelectorAll('figure.timeline')].map(
      (figure) => new Timeline(figure, report.plans[Number(figure.dataset.plan)]),
    );
    [this.memory, this.program, this.panel] = [new MemoryChart(), new ProgramDrawing(), new RankPanel()];
    [this.tip, this.said] = [document.getElementById('tip'), document.getElementById('said')];
    this.kept = null;
  }

  start() {
    this.timelines.forEach((timeline) => this.listen(timeline));
    this.listenToMemory();
    this.listenToRest();
    const first = this.timelines.find((timeline) => timeline.plan.ranks.length > 0);
    if (first) this.choose(first, first.plan.ranks[0]);
    else
      document.querySelectorAll('#memory, #program, #rank').forEach((section) => {
        section.hidden = true;
      });
    this.draw();
    performance.mark('drawn');
  }

  /** Draws everything before the next frame, once however often it is asked for. */
  redraw() {
    this.asked ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    if (this.asked) cancelAnimationFrame(this.asked);
    this.asked = undefined;
    this.timelines.forEach((timeline) => timeline.draw(this.view, this.palette));
    this.memory.draw(this.view, this.palette);
    this.marks();
  }

  /** Frames around what is kept, and what it waited for. */
  marks() {
    document.querySelectorAll('.mark').forEach((mark) => mark.remove());
    const { kept } = this;
    if (!kept) return;
    const timeline = kept.timeline;
    const lane =
      timeline.lanes.find((lane) => lane.lane === kept.lane.lane && lane.kind === kept.lane.kind) ?? timeline.laneOf(kept.rank.number);
    const inside = kept.op && kept.op[OP.exchange] === (lane.kind === 'exchange');
    timeline.mark(this.view, lane, kept.start + (inside ? kept.op[OP.start] : 0), inside ? kept.start + kept.op[OP.end] : kept.end, 'kept');
    const awaited = kept.gap?.awaited;
    if (awaited) {
      const rank = timeline.plan.ranks[awaited.rank];
      timeline.mark(this.view, timeline.laneOf(awaited.rank), rank.start[awaited.item], rank.end[awaited.item], 'awaited');
    }
  }

  /** A rank whose memory and gaps are shown. */
  choose(timeline, rank) {
    if (this.rank !== rank) {
      this.rank = rank;
      this.timeline = timeline;
      this.memory.show(rank);
      this.panel.show(rank);
      this.program.offer(rank.plan);
      this.offerRanks(timeline);
      this.redraw();
    }
    for (const button of document.querySelectorAll('.labels button')) button.removeAttribute('aria-current');
    timeline.labels.querySelector(`button[data-rank="${rank.number}"]`)?.setAttribute('aria-current', 'true');
  }

  offerRanks() {
    const select = document.getElementById('memory-rank');
    if (select.options.length === 0) {
      this.timelines.forEach((timeline, t) =>
        timeline.plan.ranks.forEach((rank) => {
          const plan = this.timelines.length > 1 ? ` of ${timeline.plan.name}` : '';
          select.append(element('option', `${rank.number}${plan}`, { value: `${t} ${rank.number}` }));
        }),
      );
    }
    select.value = `${this.timelines.indexOf(this.timeline)} ${this.rank.number}`;
  }

  toggle(timeline, number) {
    if (!timeline.open.delete(number)) timeline.open.add(number);
    const focused = document.activeElement?.dataset?.rank;
    timeline.layout();
    if (focused !== undefined) timeline.labels.querySelector(`button[data-rank="${focused}"]`)?.focus();
    this.choose(timeline, timeline.plan.ranks[number]);
    this.redraw();
  }

  /** Sets the window, within the step and no narrower than a microsecond. */
  show(from, to) {
    const width = Math.min(this.all, Math.max(to - from, Math.min(1e3, this.all)));
    const start = Math.min(Math.max(0, from - Math.max(0, width - (to - from)) / 2), this.all - width);
    this.view = { from: start, to: start + width };
    this.redraw();
  }

  zoom(factor, at) {
    const { from, to } = this.view;
    const centre = at ?? (from + to) / 2;
    const width = Math.min(this.all, Math.max((to - from) / factor, Math.min(1e3, this.all)));
    const share = (centre - from) / (to - from);
    this.show(centre - share * width, centre + (1 - share) * width);
  }

  /** By a share of the width. */
  pan(share) {
    const width = this.view.to - this.view.from;
    const from = Math.min(Math.max(0, this.view.from + share * width), this.all - width);
    this.show(from, from + width);
  }

  showGap(rank, gap) {
    const timeline = this.timelines.find((timeline) => timeline.plan === rank.plan);
    const width = Math.max(gap.end - gap.start, 1) * 8;
    this.keep({ timeline, rank, lane: timeline.laneOf(rank.number), gap, time: gap.start, start: gap.start, end: gap.end });
    this.show((gap.start + gap.end - width) / 2, (gap.start + gap.end + width) / 2);
    timeline.chart.scrollIntoView({ block: 'nearest' });
  }

  /** Holds on to an item or a gap: it stays framed, and is read out. */
  keep(found) {
    this.kept = found;
    if (found) {
      this.choose(found.timeline, found.rank);
      this.memory.say(found.time);
      const program = found.item === undefined ? null : found.rank.of(found.item, 'program');
      if (program !== null) this.program.show(program);
      const { head, lines } = this.lines(found);
      this.said.textContent = [head, ...lines].join('. ');
    }
    this.redraw();
  }

  lines(found) {
    if (found.gap) return gapLines(found.rank, found.gap);
    const of = itemLines(found.rank, found.item);
    return found.op ? { head: of.head, lines: [...opLines(found.op), ...of.lines] } : of;
  }

  tell({ head, lines }, x, y) {
    this.tip.textContent = '';
    this.tip.append(element('strong', head), ...lines.map((line) => element('div', line)));
    this.tip.hidden = false;
    const { width, height } = this.tip.getBoundingClientRect();
    const left = x + 14 + width > innerWidth ? Math.max(8, x - 14 - width) : x + 14;
    const top = y + 16 + height > innerHeight ? Math.max(8, y - 12 - height) : y + 16;
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${top}px`;
  }

  /** Pointers on a timeline: hover, click, drag, pinch, wheel. */
  listen(timeline) {
    const { canvas } = timeline;
    const fingers = new Map();
    let drag = null;
    const timeAt = (x) =>
      this.view.from + ((x - canvas.getBoundingClientRect().left) / canvas.clientWidth) * (this.view.to - this.view.from);
    const hit = (event) => {
      const box = canvas.getBoundingClientRect();
      return timeline.hit(event.clientX - box.left, event.clientY - box.top, this.view);
    };
    const stretch = (event) => [timeAt(drag.x), timeAt(event.clientX)].sort((a, b) => a - b);
    canvas.addEventListener('pointerdown', (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, event.clientX);
      drag = { x: event.clientX, view: this.view, moved: false, select: event.shiftKey };
    });
    canvas.addEventListener('pointermove', (event) => {
      if (fingers.size === 2 && fingers.has(event.pointerId)) {
        const before = [...fingers.values()];
        fingers.set(event.pointerId, event.clientX);
        const after = [...fingers.values()];
        const [old, now] = [before, after].map(([a, b]) => Math.max(20, Math.abs(a - b)));
        this.zoom(now / old, timeAt((after[0] + after[1]) / 2));
        drag = null;
      } else if (drag && fingers.has(event.pointerId)) {
        drag.moved ||= Math.abs(event.clientX - drag.x) > 4;
        if (!drag.moved) return;
        this.tip.hidden = true;
        if (drag.select) {
          this.marks();
          timeline.mark(this.view, { y: AXIS, height: timeline.height - AXIS }, ...stretch(event), 'stretch');
        } else {
          canvas.classList.add('dragging');
          const by = ((drag.x - event.clientX) / canvas.clientWidth) * (drag.view.to - drag.view.from);
          const width = drag.view.to - drag.view.from;
          const from = Math.min(Math.max(0, drag.view.from + by), this.all - width);
          this.show(from, from + width);
        }
      } else {
        const found = hit(event);
        if (found) this.tell(this.lines(found), event.clientX, event.clientY);
        else this.tip.hidden = true;
      }
    });
    const up = (event) => {
      fingers.delete(event.pointerId);
      canvas.classList.remove('dragging');
      if (drag?.moved && drag.select) this.show(...stretch(event));
      if (drag && !drag.moved && event.type === 'pointerup') {
        const found = hit(event);
        this.keep(found);
        if (found) this.tell(this.lines(found), event.clientX, event.clientY);
      }
      drag = null;
    };
    canvas.addEventListener('pointerup', up);
    canvas.addEventListener('pointercancel', up);
    canvas.addEventListener('pointerleave', () => {
      this.tip.hidden = true;
    });
    canvas.addEventListener('dblclick', (event) => this.zoom(3, timeAt(event.clientX)));
    this.listenToWheel(canvas, timeAt);
    timeline.labels.addEventListener('click', (event) => {
      const button = event.target.closest('button');
      if (button) this.toggle(timeline, Number(button.dataset.rank));
    });
    timeline.labels.addEventListener('focusin', (event) => this.choose(timeline, timeline.plan.ranks[Number(event.target.dataset.rank)]));
  }

  listenToWheel(canvas, timeAt) {
    canvas.addEventListener(
      'wheel',
      (event) => {
        if (event.ctrlKey || event.metaKey) this.zoom(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) / 120), timeAt(event.clientX));
        else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY))
          this.pan((event.deltaX || event.deltaY) / canvas.clientWidth);
        else return; // The page scrolls.
        this.tip.hidden = true;
        event.preventDefault();
      },
      { passive: false },
    );
  }

  listenToMemory() {
    const { canvas } = this.memory;
    const timeAt = (x) =>
      this.view.from + ((x - canvas.getBoundingClientRect().left) / canvas.clientWidth) * (this.view.to - this.view.from);
    canvas.addEventListener('pointermove', (event) => {
      if (!this.rank) return;
      const time = Math.max(0, timeAt(event.clientX));
      this.memory.say(time);
      this.tell(this.memory.lines(time), event.clientX, event.clientY);
    });
    canvas.addEventListener('pointerleave', () => {
      this.tip.hidden = true;
    });
    this.listenToWheel(canvas, timeAt);
    document.getElementById('memory-rank').addEventListener('change', (event) => {
      const [timeline, rank] = event.target.value.split(' ').map(Number);
      this.choose(this.timelines[timeline], this.timelines[timeline].plan.ranks[rank]);
    });
  }

  listenToRest() {
    this.program.select.addEventListener('change', () => this.program.show(Number(this.program.select.value)));
    this.program.place.addEventListener('pointermove', (event) => {
      const op = event.target.closest?.('.op')?.op;
      if (op) this.tell({ head: this.program.program.name, lines: opLines(op) }, event.clientX, event.clientY);
      else this.tip.hidden = true;
    });
    this.program.place.addEventListener('pointerleave', () => {
      this.tip.hidden = true;
    });
    document.addEventListener(
      'scroll',
      () => {
        this.tip.hidden = true;
      },
      { passive: true },
    );
    document
      .querySelector('.tools[role="toolbar"]')
      .addEventListener('click', (event) => this.act(event.target.closest('button')?.dataset.do));
    document.addEventListener('keydown', (event) => this.key(event));
    let width = innerWidth;
    window.addEventListener('resize', () => {
      this.redraw();
      if (innerWidth !== width) this.program.draw();
      width = innerWidth;
    });
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.recolour());
    // Paper is white, whatever the screen is.
    const print = (isPrint) => {
      document.documentElement.toggleAttribute('data-print', isPrint);
      this.recolour();
    };
    window.addEventListener('beforeprint', () => print(true));
    window.addEventListener('afterprint', () => print(false));
  }

  recolour() {
    this.palette = new Palette();
    this.program.draw();
    this.draw();
  }

  act(what) {
    const help = document.getElementById('help');
    if (what === 'in') this.zoom(2);
    else if (what === 'out') this.zoom(0.5);
    else if (what === 'fit') this.show(0, this.all);
    else if (what === 'help' && !help.open) help.showModal();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById('help').open) return;
    // Those have uses of their own for keys.
    if (event.target.closest?.('select, .wide')) return;
    const keys = {
      '+': () => this.zoom(1.5),
      '=': () => this.zoom(1.5),
      '-': () => this.zoom(1 / 1.5),
      0: () => this.act('fit'),
      '?': () => this.act('help'),
      ArrowLeft: () => this.pan(event.shiftKey ? -0.5 : -0.1),
      ArrowRight: () => this.pan(event.shiftKey ? 0.5 : 0.1),
      ',': () => this.step(-1),
      '.': () => this.step(1),
      Escape: () => {
        this.tip.hidden = true;
        this.keep(null);
      },
    };
    // Up and down scroll, unless a rank is chosen by keyboard.
    if (event.target.closest?.('.labels')) Object.assign(keys, { ArrowUp: () => this.focusRank(-1), ArrowDown: () => this.focusRank(1) });
    if (!Object.hasOwn(keys, event.key)) return;
    keys[event.key]();
    event.preventDefault();
  }

  focusRank(by) {
    this.timeline.labels.querySelector(`button[data-rank="${this.rank.number + by}"]`)?.focus();
  }

  /** To the compute item before or after what is kept, on the chosen rank. */
  step(by) {
    if (!this.rank) return;
    const lane = this.timeline.laneOf(this.rank.number);
    const { start, end, items } = lane.lane;
    const kept = this.kept?.rank === this.rank ? this.kept.time : by > 0 ? this.view.from - 1 : this.view.to;
    let place = start.findLastIndex((time) => time <= kept);
    if (by > 0) place++;
    else if (place >= 0 && this.kept?.rank === this.rank && end[place] > kept) place--;
    if (place < 0 || place >= items.length) return;
    const found = {
      timeline: this.timeline,
      rank: this.rank,
      lane,
      item: items[place],
      time: start[place],
      start: start[place],
      end: end[place],
    };
    this.keep(found);
    const width = this.view.to - this.view.from;
    if (found.start < this.view.from || found.end > this.view.to)
      this.show((found.start + found.end - width) / 2, (found.start + found.end + width) / 2);
    const [left, scale] = [
      lane.lane === this.rank.compute ? this.timeline.canvas.getBoundingClientRect() : null,
      this.timeline.canvas.clientWidth / (this.view.to - this.view.from),
    ];
    if (left)
      this.tell(this.lines(found), left.left + Math.max(0, (found.start - this.view.from) * scale), left.top + lane.y + lane.height);
  }
}

const page = new Page();
page.start();
/** For scripts and tests: the plans with the times of every item, and the page itself. */
globalThis.dualweave = { report, page };
