// The patterns of messages: what is said, how often, and what is new beside another time.
import { $, h, icon } from './dom.js';
import * as api from './api.js';
import { count } from './chart.js';
import { iso } from './time.js';

// patternsPanel calls onchange(change) with changes of the state, and onnarrow(condition, exclude).
export function patternsPanel({ onchange, onnarrow }) {
  let shown = null;

  $('vs').addEventListener('change', () => onchange({ vs: $('vs').value }));

  // change says how a count differs from the one before.
  function change(now, before) {
    if (before === 0) return h('b', { class: 'new' }, 'new');
    const times = now / before;
    if (times > 0.9 && times < 1.1) return 'as before';
    return times >= 1 ? `× ${Number(times.toPrecision(2))}` : `÷ ${Number((1 / times).toPrecision(2))}`;
  }

  function row({ pattern, q, count: n, sample, before }, records) {
    const share = (100 * n) / Math.max(records, 1);
    return h('li', {},
      h('span', { class: 'number' }, count(n), h('small', {}, share < 0.1 ? '<0.1 %' : `${share.toFixed(1)} %`), h('meter', { min: 0, max: records, value: n, 'aria-hidden': 'true' })),
      before !== undefined && h('span', { class: 'change', title: `${count(before)} before` }, change(n, before)),
      h('button', { type: 'button', class: 'pattern', title: `${sample}\n\n${q}\nclick: these logs`, onclick: () => onnarrow(q, false) },
        pattern.split('*').flatMap((text, i) => (i ? [h('i', {}, '∗'), text] : [text]))),
      h('button', { type: 'button', class: 'quiet', title: 'Without these logs', 'aria-label': `Without ${pattern}`, onclick: () => onnarrow(q, true) }, icon('minus')));
  }

  function draw() {
    const { patterns, records, other, missing } = shown;
    $('pattern-list').replaceChildren(...patterns.map((pattern) => row(pattern, records)));
    $('pattern-none').hidden = patterns.length > 0;
    $('pattern-note').textContent = [`${count(patterns.length)} patterns in ${count(records)} messages`, other && `${count(other)} of other patterns`,
      missing && `${count(missing)} records without a message`, shown.vs_complete === false && 'the time before is compared in part'].filter(Boolean).join(' · ');
  }

  return {
    // load reads the patterns within a budget and shows them; it returns how far that came.
    async load(search, window, vs, budget, signal) {
      $('vs').value = vs;
      if ($('vs').value !== vs) { // of an address
        $('vs').append(h('option', { value: vs }, vs));
        $('vs').value = vs;
      }
      const before = vs === 'before' ? `${iso(2 * window.from - window.to)},${iso(window.from)}` : vs;
      const answer = await api.patterns({ ...search, vs: before, budget }, { signal });
      if (signal.aborted) return {};
      shown = answer;
      draw();
      // The other window may be incomplete for another reason than the budget: it has too many patterns.
      const isCompared = answer.vs_complete !== false || Number.parseInt(budget, 10) >= 18;
      return { complete: answer.complete && isCompared, reached: Date.parse(answer.searched_to) };
    },
    csv: () => shown && [['count', ...(shown.patterns[0]?.before === undefined ? [] : ['before']), 'pattern', 'q', 'sample'],
      ...shown.patterns.map(({ count: n, before, pattern, q, sample }) => [n, ...(before === undefined ? [] : [before]), pattern, q, sample])],
  };
}
