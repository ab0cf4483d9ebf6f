// The records next to one, unfolded around it in the list.
import * as api from './api.js';
import { h, toast } from './dom.js';
import { kin } from './levels.js';

const size = 20; // records on each side at first, and with each click for more

// neighbours puts the records around a row into its item: those of kind, which is all, search, or what the row shares with
// them. It returns {kind, remove()}. make(log) makes a row; onkind(kind) is told of another choice.
export function neighbours(item, kind, { make, view, onkind }) {
  const { log } = item;
  const { q, order, clock } = view();
  const shared = kin(log.data);
  const abort = new AbortController();
  const wanted = kind === 'search' ? q : shared.find(({ name }) => name === kind)?.condition ?? '';
  const search = { q: wanted, clock, budget: '5s' };

  const chip = (name, label, title) => h('button', {
    type: 'button', class: 'chip', title, 'aria-pressed': String(kind === name), onclick: () => onkind(name),
  }, label);
  const chips = h('div', { class: 'chips', role: 'group', 'aria-label': 'Which records around it' },
    chip('all', 'All', 'All records'), q && chip('search', 'This search', q),
    shared.map(({ name, text, condition }) => chip(name, [`Same ${name} `, h('b', {}, text.slice(0, 40))], condition)),
    chip('', 'Close', 'Fold them up (c)'));

  // A side is the records before or after: its rows, the nearest last to be removed, and the button for more.
  const side = (name) => {
    const isAbove = (name === 'after') === (order !== 'asc');
    const more = h('button', { type: 'button', class: 'more', hidden: true }, `${size} more ${name === 'after' ? 'after it' : 'before it'}`);
    const rows = h('div', { role: 'list', 'aria-label': name === 'after' ? 'Records after it' : 'Records before it' });
    const note = h('p', { class: 'quietly' }, 'reading…');
    const element = h('div', { class: `context ${name} ${isAbove ? 'above' : 'below'}` }, isAbove ? [more, note, rows] : [rows, note, more]);
    let outermost = log.id;
    const show = (logs, isMore) => {
      if (logs.length) outermost = (name === 'after' ? logs.at(-1) : logs[0]).id;
      const made = (order === 'asc' ? logs : logs.toReversed()).map(make);
      const top = item.line.getBoundingClientRect().top;
      if (isAbove) rows.prepend(...made);
      else rows.append(...made);
      scrollBy(0, item.line.getBoundingClientRect().top - top); // what is read stays where it is
      more.hidden = !isMore;
      note.hidden = isMore || rows.childElementCount > 0;
      note.textContent = `no records ${name} it`;
    };
    more.addEventListener('click', async () => {
      more.disabled = true;
      try {
        const found = await api.context(outermost, { ...search, before: name === 'before' ? size : 0, after: name === 'after' ? size : 0 }, { signal: abort.signal });
        show(found[name], found[`more_${name}`]);
      } catch (error) {
        if (!abort.signal.aborted) toast(error.message);
      }
      more.disabled = false;
    });
    return { element, show, isAbove, note };
  };
  const sides = { after: side('after'), before: side('before') };
  for (const one of Object.values(sides)) {
    if (one.isAbove) item.prepend(one.element);
    else item.append(one.element);
  }
  item.prepend(chips);

  api.context(log.id, { ...search, before: size, after: size }, { signal: abort.signal }).then((found) => {
    for (const [name, one] of Object.entries(sides)) one.show(found[name], found[`more_${name}`]);
  }, (error) => {
    if (abort.signal.aborted) return;
    for (const one of Object.values(sides)) one.note.textContent = error.message;
  });

  return {
    kind,
    remove() {
      abort.abort();
      chips.remove();
      for (const one of Object.values(sides)) one.element.remove();
    },
  };
}
