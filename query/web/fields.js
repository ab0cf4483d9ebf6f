// The fields that are there: the panel beside the rows, the choices of the histogram, the completions.
import { $, h, shorten } from './dom.js';
import * as api from './api.js';
import * as language from './language.js';
import { count } from './chart.js';

const filterFrom = 12; // fields: fewer need no box to find one in
const valueShown = 200; // characters

// fieldsPanel calls onfilter(condition). It remembers what it has read for as long as the window stays the same.
export function fieldsPanel({ onfilter, onload }) {
  const box = $('field-list');
  const find = $('field-find');
  let known = [];
  let sampled = 0;
  let search = {};
  let values = new Map(); // path → promise of its values
  let abort = new AbortController();

  function draw() {
    const wanted = find.value.toLowerCase();
    find.hidden = known.length < filterFrom;
    box.replaceChildren(...known.filter((field) => field.path.toLowerCase().includes(wanted)).map(line));
    $('field-none').hidden = known.length > 0;
  }

  const line = (field) => h('details', {
    ontoggle: (event) => event.target.open && fill(event.target, field),
  }, h('summary', { title: field.path }, h('span', {}, field.path), h('small', {}, share(field.count))));

  const share = (n) => {
    const part = (100 * n) / Math.max(sampled, 1);
    return part >= 99.5 ? '' : part < 1 ? '<1%' : `${Math.round(part)}%`;
  };

  async function fill(details, field) {
    const list = h('ol', { class: 'values' }, h('li', { class: 'quietly' }, 'reading…'));
    details.querySelector('.values')?.remove();
    details.append(list);
    try {
      const found = await valuesOf(field.path);
      const most = Math.max(...found.map((value) => value.count));
      list.replaceChildren(...found.map((value) => item(field, value, most)));
      if (!found.length) list.append(h('li', { class: 'quietly' }, 'no single values'));
    } catch (error) {
      list.replaceChildren(h('li', { class: 'quietly' }, error.message));
    }
  }

  function item(field, { value, count: n, cut }, most) {
    const text = cut ? `${value}…` : value === '' ? '""' : String(value);
    const inside = [
      h('span', { class: 'name' }, shorten(text, valueShown)), h('small', {}, count(n)),
      h('meter', { min: 0, max: most, value: n, 'aria-hidden': 'true' }),
    ];
    const condition = `${field.path}:${language.literal(value)}`;
    if (cut || !language.fits(condition)) {
      return h('li', {}, h('span', { title: `${text}\n${count(n)} of the sample · too long to search for` }, inside));
    }
    return h('li', {}, h('button', {
      type: 'button', title: `${condition}\n${count(n)} of the sample · click: only these · Shift-click: without these`,
      onclick: (event) => onfilter((event.shiftKey ? '-' : '') + condition),
    }, inside));
  }

  function valuesOf(path) {
    if (!values.has(path)) {
      const { signal } = abort;
      values.set(path, api.values(path, search, { signal }).catch((error) => {
        values.delete(path);
        throw error;
      }));
    }
    return values.get(path);
  }

  find.addEventListener('input', draw);

  return {
    // load reads the fields of a window anew.
    async load(window) {
      abort.abort();
      abort = new AbortController();
      search = window;
      values = new Map();
      const found = await api.fields(window, { signal: abort.signal });
      known = found.fields;
      sampled = found.sampled;
      draw();
      onload();
    },
    completions: async (path) => (await valuesOf(path)).filter(({ cut }) => !cut).map(({ value, count: n }) => ({ text: language.literal(value), count: n })),
    names: () => known.map((field) => ({ text: field.path, count: field.count })),
    has: (path) => known.some((field) => field.path === path),
  };
}
