// The rows: one line a record, which opens to the whole of it.
import { $, copy, h, icon } from './dom.js';
import { stringify } from './json.js';
import { describe } from './levels.js';
import { pairs, tree } from './record.js';
import { clock, date, local, zone } from './time.js';

const messageShown = 600; // characters: more than a line is wide
const pairsShown = 320;

// list draws into #rows. onfilter(condition), onaround(ms) and onopen(id or '') are told what the reader does.
export function list({ onfilter, onaround, onopen, linkTo }) {
  const box = $('rows');
  const rows = new Map(); // by id, in any order; rows that share one, which Millrace does not write, by their data too
  const keyOf = ({ id, data }) => {
    const there = rows.get(id);
    return there && stringify(there.log.data) !== stringify(data) ? `${id} ${stringify(data)}` : id;
  };

  function row(log) {
    const at = Date.parse(log.time);
    const { level, levelText, message, used } = describe(log.data);
    const rest = pairs(log.data, used, pairsShown);
    const line = h('div', { class: 'line', role: 'button', tabindex: -1, 'aria-expanded': 'false' },
      h('time', { datetime: log.time, title: `${local(at).replace('T', ' ')} (${zone()})` },
        h('span', { class: 'date' }, date(at)), clock(at, 'ms')),
      h('span', { class: 'level' }, levelText.slice(0, 12)),
      h('span', { class: 'text' },
        message && h('span', { class: 'message' }, message.slice(0, messageShown)),
        rest.map(([key, value]) => [' ', h('span', { class: 'pair' }, h('span', { class: 'key' }, key), '=', value)])));
    const item = h('li', { class: `row ${level ? `level-${level}` : 'level-none'}` }, line);
    item.log = log;
    line.addEventListener('click', () => {
      if (!String(getSelection())) toggle(item); // who selects text does not want it to jump
    });
    line.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' && event.key !== ' ') return;
      event.preventDefault();
      toggle(item);
    });
    line.addEventListener('focus', () => rove(line));
    item.key = keyOf(log);
    rows.set(item.key, item);
    return item;
  }

  // rove keeps one row in the order of the Tab key.
  function rove(line) {
    box.querySelector('.line[tabindex="0"]')?.setAttribute('tabindex', -1);
    line.setAttribute('tabindex', 0);
  }

  function toggle(item, open = !item.querySelector('.detail')) {
    item.querySelector('.detail')?.remove();
    if (open) item.append(detail(item.log));
    item.classList.toggle('open', open);
    item.firstChild.setAttribute('aria-expanded', open);
    onopen(open ? item.log.id : '', item);
  }

  function detail(log) {
    const at = Date.parse(log.time);
    const action = (name, label, onclick) => h('button', { type: 'button', class: 'quiet', onclick }, icon(name), label);
    return h('div', { class: 'detail' },
      h('div', { class: 'actions' },
        action('copy', 'Copy JSON', () => copy(stringify(log.data, 2), 'Record')),
        action('link', 'Copy link', () => copy(linkTo(log), 'Link')),
        action('around', 'Around it', () => onaround(at, log.id)),
        h('span', { class: 'stored' }, `happened ${log.time}`, h('wbr'), ` · came ${log.inserted_at}`, h('wbr'), ' · ', h('span', {}, log.id))),
      tree(log.data, onfilter));
  }

  const first = () => box.querySelector('.line');

  return {
    clear() {
      rows.clear();
      box.replaceChildren();
    },
    append(logs) {
      box.append(...logs.filter((log) => !rows.has(keyOf(log))).map(row));
      if (!box.querySelector('.line[tabindex="0"]')) first()?.setAttribute('tabindex', 0);
    },
    // prepend puts new logs, oldest first, on top, and lets the last ones go beyond most.
    prepend(logs, most) {
      const fresh = logs.filter((log) => !rows.has(keyOf(log))).map(row);
      box.prepend(...fresh.reverse());
      while (rows.size > most) {
        rows.delete(box.lastChild.key);
        box.lastChild.remove();
      }
      if (!box.querySelector('.line[tabindex="0"]')) first()?.setAttribute('tabindex', 0);
    },
    size: () => rows.size,
    has: (id) => rows.has(id),
    open(id) {
      const item = rows.get(id);
      if (!item) return;
      if (!item.classList.contains('open')) toggle(item, true);
      item.scrollIntoView({ block: 'nearest' });
    },
    // close closes the row that has the focus, else all; it tells whether there was one to close.
    close() {
      const focused = document.activeElement?.closest('.row.open');
      const open = focused ? [focused] : [...box.querySelectorAll('.row.open')];
      for (const item of open) toggle(item, false);
      focused?.firstChild.focus();
      return open.length > 0;
    },
    // move goes to the next row (1) or the one before (-1).
    move(step) {
      const now = document.activeElement?.closest('.row');
      const next = now ? (step > 0 ? now.nextElementSibling : now.previousElementSibling)?.firstChild
        : box.querySelector('.line[tabindex="0"]');
      next?.focus({ preventScroll: true });
      next?.scrollIntoView({ block: 'nearest' });
    },
  };
}
