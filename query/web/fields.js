// The fields of the search: the panel beside the rows, the choices of the histogram, the completions.
import { $, h, icon, shorten } from './dom.js';
import * as api from './api.js';
import * as language from './language.js';
import { count } from './chart.js';
import { spread } from './spread.js';

const filterFrom = 12; // fields: fewer need no box to find one in
const valueShown = 200; // characters

// sample asks for a sample within a budget, and if nothing came of that within a longer one.
async function sample(ask) {
  const found = await ask('3s');
  return found.sampled || found.complete ? found : ask('30s');
}

// figure writes a number of a distribution, as short as it may be.
export const figure = (n) => (Number.isInteger(n) ? count(n) : Number(n.toPrecision(4)).toLocaleString('en-US', { maximumFractionDigits: 6 }));

// fieldsPanel calls onfilter(how, field, literal), onrange(conditions), onremove(condition), oncolumn(field) and ontable(change), a change of the table's state. It remembers what it has
// read for as long as the search stays the same. columns() are the fields that are columns.
export function fieldsPanel({ onfilter, onrange, onremove, oncolumn, ontable, onload, columns }) {
  const box = $('field-list');
  const find = $('field-find');
  let known = [];
  let sampled = 0;
  let window = {};
  let query = '';
  let values = new Map(); // path → promise of its values
  let abort = new AbortController();
  const unfolded = new Set(); // paths

  function draw() {
    const wanted = find.value.toLowerCase();
    find.hidden = known.length < filterFrom && !wanted;
    box.replaceChildren(...known.filter((field) => field.path.toLowerCase().includes(wanted)).map(line));
    $('field-none').hidden = known.length > 0;
  }

  // drawActive shows what the search asks for already.
  function drawActive() {
    const active = language.conditions(query);
    $('active').hidden = !active.length;
    $('active').replaceChildren(...active.map((condition) => h('li', {},
      h('span', { title: condition }, condition), h('button', {
        type: 'button', title: `Take away ${condition}`, 'aria-label': `Take away ${condition}`, onclick: () => onremove(condition),
      }, icon('close')))));
  }

  function line(field) {
    const details = h('details', {
      ontoggle: () => {
        if (details.open) {
          unfolded.add(field.path);
          fill(details, field);
        } else unfolded.delete(field.path);
      },
    }, h('summary', { title: field.path }, h('span', {}, field.path), h('small', {}, share(field.count))));
    details.open = unfolded.has(field.path);
    return details;
  }

  const share = (n) => {
    const part = (100 * n) / Math.max(sampled, 1);
    return part >= 99.5 ? '' : part < 1 ? '<1%' : `${Math.round(part)}%`;
  };

  async function fill(details, field) {
    const list = h('ol', { class: 'values' }, h('li', { class: 'quietly' }, 'reading…'));
    const old = details.querySelector('.inside');
    const inside = h('div', { class: 'inside' }, list);
    if (old) old.replaceWith(inside);
    else details.append(inside);
    try {
      const found = await valuesOf(field.path);
      const most = Math.max(...found.values.map((value) => value.count));
      list.replaceChildren(...found.values.map((value) => item(field, value, most)));
      if (!found.values.length) list.append(h('li', { class: 'quietly' }, 'no single values'));
      inside.prepend(...[numbers(found.numbers), bars(field, found.numbers), tools(field)].flat().filter(Boolean));
      inside.append(h('p', { class: 'quietly' }, about(found)));
    } catch (error) {
      list.replaceChildren(h('li', { class: 'quietly' }, error.message));
    }
  }

  const about = ({ sampled: n, complete, distinct, values: { length } }) =>
    `${distinct > length ? `${length} of ${count(distinct)} values, ` : ''}${complete ? `exact, ${count(n)} ${n === 1 ? 'record' : 'records'}` : `of a sample of ${count(n)}`}`;

  const numbers = (n) => n && h('dl', { class: 'numbers' },
    [['min', n.min], ['median', n.p50], ['p95', n.p95], ['max', n.max]].map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, figure(value)))));

  const bars = ({ path }, n) => n?.bins && spread(path, n.bins, ({ from, to }) => onrange([`${path}:>=${from}`, `${path}:<${to}`]));

  function tools(field) {
    const isColumn = columns().includes(field.path);
    return h('p', { class: 'field-tools' },
      h('button', { type: 'button', class: 'quiet', 'aria-pressed': String(isColumn), title: isColumn ? 'No longer as a column of the rows' : 'As a column of the rows', onclick: () => oncolumn(field.path) }, 'Column'),
      h('button', { type: 'button', class: 'quiet', title: 'How many records each value has, in the table', onclick: () => ontable({ group: field.path }) }, 'Table'),
      h('button', { type: 'button', class: 'quiet', title: 'How many different values it has', onclick: () => ontable({ calc: `uniq(${field.path})`, group: '' }) }, 'Distinct'));
  }

  function item(field, { value, count: n, cut }, most) {
    const text = cut ? `${value}…` : value === '' ? '""' : String(value);
    const literal = language.literal(value);
    const condition = `${field.path}:${literal}`;
    const { wanted, excluded } = language.values(query, field.path);
    const inside = [
      named(shorten(text, valueShown)), h('small', {}, count(n)),
      h('meter', { min: 0, max: most, value: n, 'aria-hidden': 'true' }),
    ];
    if (cut || !language.fits(condition)) {
      return h('li', {}, h('span', { class: 'one', title: `${text}\n${count(n)} records · too long to search for` }, inside));
    }
    const [isWanted, isExcluded] = [wanted, excluded].map((list) => list.includes(literal));
    return h('li', { class: isWanted ? 'wanted' : isExcluded ? 'excluded' : null },
      h('button', {
        type: 'button', class: 'one', 'aria-pressed': String(isWanted),
        title: `${condition}\n${count(n)} records · click: ${isWanted ? 'no longer these' : wanted.length ? 'these too' : 'only these'} · Shift-click: without these`,
        onclick: (event) => onfilter(event.shiftKey ? 'exclude' : 'toggle', field.path, literal),
      }, inside),
      h('button', {
        type: 'button', class: 'not', 'aria-pressed': String(isExcluded), title: `Without ${condition}`, 'aria-label': `Without ${condition}`,
        onclick: () => onfilter('exclude', field.path, literal),
      }, icon('minus')));
  }

  // named shows a value. Of a long one without blanks, such as the name of a class, the end is always seen: many begin alike.
  function named(text) {
    if (!/^[!-~]{20,}…?$/.test(text)) return h('span', { class: 'name' }, text);
    return h('span', { class: 'name split' }, h('span', {}, text.slice(0, -14)), h('span', {}, text.slice(-14)));
  }

  // valuesOf reads the values of a field in the search. What the search asks of that field itself does not count: others of its values
  // are there to be chosen too.
  function valuesOf(path) {
    if (!values.has(path)) {
      const { signal } = abort;
      values.set(path, sample((budget) => api.values(path, { ...window, q: language.withoutField(query, path), budget }, { signal })).catch((error) => {
        values.delete(path);
        throw error;
      }));
    }
    return values.get(path);
  }

  find.addEventListener('input', draw);

  return {
    // load reads the fields of a search anew.
    async load(search) {
      abort.abort();
      abort = new AbortController();
      ({ q: query, ...window } = search);
      values = new Map();
      drawActive();
      $('fields').classList.add('old');
      try {
        const { signal } = abort;
        const found = await sample((budget) => api.fields({ ...search, budget }, { signal }));
        known = found.fields;
        sampled = found.sampled;
        $('field-sample').textContent = found.complete ? (sampled === 1 ? 'exact: of the one record' : `exact: of all ${count(sampled)} records`) : sampled ? `of a sample of ${count(sampled)} records` : 'not read in time';
        draw();
        onload();
      } catch (error) {
        if (error.name !== 'AbortError') $('field-sample').textContent = `not read: ${error.message}`;
        throw error;
      } finally {
        $('fields').classList.remove('old');
      }
    },
    redraw: draw,
    completions: async (path) => (await valuesOf(path)).values.filter(({ cut }) => !cut).map(({ value, count: n }) => ({ text: language.literal(value), count: n })),
    names: () => known.map((field) => ({ text: field.path, count: field.count, isNumber: !!field.numbers })),
    has: (path) => known.some((field) => field.path === path || field.path === `"${path}"`),
  };
}
