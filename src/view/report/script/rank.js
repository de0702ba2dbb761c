// The rank that is looked at: its longest gaps, and what each waited for.

const LISTED_GAPS = 10;

class RankPanel {
  constructor() {
    [this.title, this.note] = [document.getElementById('rank-title'), document.getElementById('rank-note')];
    this.body = document.querySelector('#rank-gaps tbody');
  }

  show(rank) {
    const plan = report.plans.length > 1 ? ` of ${rank.plan.name}` : '';
    this.title.textContent = `Rank ${rank.number}${plan}`;
    const idle = rank.gaps.reduce((sum, gap) => sum + gap.idle, 0);
    const stages = `${rank.stages.length === 1 ? 'Stage' : 'Stages'} ${rank.stages.join(', ')}.`;
    const gaps = `${rank.gaps.length} ${rank.gaps.length === 1 ? 'gap' : 'gaps'}`;
    this.note.textContent = `${stages} Nothing runs for ${duration(idle)}, ${percent(idle, rank.plan.step)} of the step, in ${gaps}.`;
    this.body.textContent = '';
    const longest = rank.gaps
      .map((gap, k) => [gap, k])
      .sort((a, b) => b[0].idle - a[0].idle || a[1] - b[1])
      .slice(0, LISTED_GAPS);
    for (const [gap] of longest) {
      const row = element('tr');
      const button = element('button', 'show', { type: 'button', 'aria-label': `show the gap at ${moment(gap.start)}` });
      button.addEventListener('click', () => page.showGap(rank, gap));
      const first = element('td');
      first.append(button);
      const awaited = gap.awaited && rank.plan.ranks[gap.awaited.rank];
      const named = awaited ? ` (${awaited.task(gap.awaited.item)})` : '';
      row.append(
        first,
        element('td', moment(gap.start), { class: 'n' }),
        element('td', duration(gap.idle), { class: 'n' }),
        element('td', gap.text + named),
      );
      this.body.append(row);
    }
  }
}
