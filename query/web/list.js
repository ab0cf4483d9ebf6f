// The rows: one line a record, which opens to the whole of it and to the records around it.
import { $, copy, h, icon } from './dom.js';
import { isObject, stringify } from './json.js';
import { cell, describe, timeField } from './levels.js';
import { neighbours } from './context.js';
import { pairs, tree } from './record.js';
import { plain, rich } from './text.js';
import { clock, date, local, offsetText } from './time.js';

const messageShown = 600; // characters: more than a line is wide
const wrappedShown = 5000;
const pairsShown = 320;
const cellShown = 300;
const widest = 44; // characters of a column

// list draws into #rows. view() is {cols, widths, marks, ansi, wrap, clock, order, q}. onfilter, ononly, onopen(id or '', item) and
// oncontext(kind) are told what the reader does.
export function list({ onfilter, onopen, oncontext, linkTo, view }) {
  const box = $('rows');
  let widths = []; // of the columns, in characters
  const rows = new Map(); // by id, in any order; rows that share one, which Millrace does not write, by their data too
  const keyOf = ({ id, data }) => {
    const there = rows.get(id);
    return there && stringify(there.log.data) !== stringify(data) ? `${id} ${stringify(data)}` : id;
  };

  const textOf = (value) => (value === undefined ? '' : isObject(value) ? stringify(value) : String(value));

  function cells(log, { level, levelText, message, used }) {
    const { cols, marks, ansi, wrap } = view();
    const look = { marks, ansi };
    if (cols.length) {
      return cols.map((path) => h('span', { class: path === 'message' ? 'cell message' : path === 'level' ? 'cell level' : 'cell' },
        rich(textOf(cell(log.data, path)).slice(0, wrap ? wrappedShown : cellShown), look)));
    }
    const lines = message.split('\n').length;
    return [
      h('span', { class: 'level' }, levelText.slice(0, 12)),
      h('span', { class: 'text' },
        message && h('span', { class: 'message' }, rich(message.slice(0, wrap ? wrappedShown : messageShown), look)),
        lines > 3 && !wrap && h('small', { class: 'lines' }, `${lines} lines`),
        pairs(log.data, [...used, view().clock === 'inserted_at' ? '' : timeField(log.data, log.time)], pairsShown).map(([key, value]) => [' ', h('span', { class: 'pair' }, h('span', { class: 'key' }, key), '=', rich(value, look))])),
    ];
  }

  function lineOf(log) {
    const at = Date.parse(view().clock === 'inserted_at' ? log.inserted_at : log.time);
    const described = describe(log.data);
    const line = h('div', { class: 'line', role: 'button', tabindex: -1, 'aria-expanded': 'false' },
      h('time', { datetime: log.time, title: `${local(at)} (${offsetText(at)})` }, h('span', { class: 'date' }, date(at)), clock(at, 'ms')),
      cells(log, described));
    return [line, described.level ? `level-${described.level}` : 'level-none'];
  }

  // make makes a row. One of a context is not among the list's own.
  function make(log, isOwn = true) {
    const [line, level] = lineOf(log);
    const item = h(isOwn ? 'li' : 'div', { class: `row ${level}`, role: isOwn ? null : 'listitem' }, line);
    item.log = log;
    item.line = line;
    item.isOwn = isOwn;
    listen(item);
    return item;
  }

  function listen(item) {
    const { line } = item;
    line.addEventListener('click', () => {
      if (!String(getSelection())) toggle(item); // who selects text does not want it to jump
    });
    line.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' && event.key !== ' ') return;
      event.preventDefault();
      toggle(item);
    });
    line.addEventListener('focus', () => rove(line));
  }

  function row(log) {
    const item = make(log);
    item.key = keyOf(log);
    rows.set(item.key, item);
    return item;
  }

  // rove keeps one row in the order of the Tab key.
  function rove(line) {
    box.querySelector('.line[tabindex="0"]')?.setAttribute('tabindex', -1);
    line.setAttribute('tabindex', 0);
  }

  function toggle(item, open = !item.detail) {
    item.detail?.remove();
    item.detail = open ? detail(item) : null;
    if (open) item.line.after(item.detail);
    else surround(item, '');
    item.classList.toggle('open', open);
    item.line.setAttribute('aria-expanded', open);
    if (item.isOwn) onopen(open ? item.log.id : '');
  }

  function detail(item) {
    const { log } = item;
    const action = (name, label, onclick) => h('button', { type: 'button', class: 'quiet', onclick }, icon(name), label);
    return h('div', { class: 'detail' },
      h('div', { class: 'actions' },
        action('copy', 'Copy JSON', () => copy(stringify(log.data, 2), 'Record')),
        action('link', 'Copy link', () => copy(linkTo(log), 'Link')),
        item.isOwn && action('around', 'Around it', () => oncontext(item.around ? '' : 'all', item)),
        h('span', { class: 'stored' }, `happened ${log.time}`, h('wbr'), ` · came ${log.inserted_at}`, h('wbr'), ' · ', h('span', {}, log.id))),
      tree(log.data, { onfilter, view }));
  }

  // surround puts the records next to a row around it, or takes them away.
  function surround(item, kind) {
    item.around?.remove();
    item.around = kind ? neighbours(item, kind, { make: (log) => make(log, false), view, onkind: (other) => oncontext(other, item) }) : null;
    item.classList.toggle('around', !!kind);
  }

  const first = () => box.querySelector('.line');
  const ensureTabStop = () => {
    if (!box.querySelector('.line[tabindex="0"]')) first()?.setAttribute('tabindex', 0);
  };

  // layout gives all rows the same columns, as wide as the reader has made them, or as what the first rows have in them.
  function layout() {
    const { cols, widths: chosen, wrap } = view();
    box.parentNode.classList.toggle('columned', cols.length > 0);
    box.classList.toggle('wrapped', wrap);
    if (!cols.length) return;
    const some = [...rows.values()].slice(0, 200);
    widths = cols.map((path, i) => chosen[i] || Math.min(widest, Math.max(path.length + 6, ...some.map(({ log }) => plain(textOf(cell(log.data, path))).length)) + 1));
    const least = widths.map((width, i) => (i === cols.length - 1 && !chosen[i] ? `minmax(${Math.min(width, 24)}ch, 1fr)` : `${width}ch`));
    box.parentNode.style.setProperty('--columns', least.join(' '));
    box.parentNode.style.setProperty('--least', `${widths.reduce((sum, width) => sum + width + 2, 0)}ch`);
  }

  return {
    clear() {
      rows.clear();
      box.replaceChildren();
    },
    append(logs) {
      box.append(...logs.filter((log) => !rows.has(keyOf(log))).map(row));
      layout();
      ensureTabStop();
    },
    // prepend puts new logs, oldest first, on top, and lets the last ones go beyond most.
    prepend(logs, most) {
      const fresh = logs.filter((log) => !rows.has(keyOf(log))).map(row);
      box.prepend(...fresh.reverse());
      while (rows.size > most) {
        rows.delete(box.lastChild.key);
        box.lastChild.remove();
      }
      if (first() && !box.contains(document.activeElement)) rove(first()); // j begins with the newest
      layout();
      ensureTabStop();
    },
    // redraw shows the same rows as the view has become.
    redraw() {
      for (const item of rows.values()) {
        const focused = document.activeElement === item.line;
        const [line] = lineOf(item.log);
        line.setAttribute('aria-expanded', item.line.getAttribute('aria-expanded'));
        line.setAttribute('tabindex', item.line.getAttribute('tabindex'));
        item.line.replaceWith(line);
        item.line = line;
        listen(item);
        if (item.around) surround(item, item.around.kind);
        if (focused) line.focus({ preventScroll: true });
      }
      layout();
    },
    layout,
    widthOf: (column) => widths[column],
    size: () => rows.size,
    has: (id) => rows.has(id),
    logs: () => [...box.children].map((item) => item.log),
    item: (id) => rows.get(id),
    focused: () => document.activeElement?.closest('#rows > .row'),
    surround,
    open(id, scroll = true) {
      const item = rows.get(id);
      if (!item) return null;
      if (!item.detail) toggle(item, true);
      if (scroll) item.line.scrollIntoView({ block: 'nearest' });
      return item;
    },
    // close closes the row that has the focus, else all; it tells whether there was one to close.
    close() {
      const focused = document.activeElement?.closest('.row.open');
      const open = focused ? [focused] : [...box.querySelectorAll('.row.open')];
      for (const item of open) toggle(item, false);
      focused?.line.focus();
      return open.length > 0;
    },
    // move goes to the next row (1) or the one before (-1).
    move(step) {
      const lines = [...box.querySelectorAll('.line')];
      const now = document.activeElement?.closest('.row');
      const next = now ? lines[lines.indexOf(now.line) + step] : box.querySelector('.line[tabindex="0"]');
      next?.focus({ preventScroll: true });
      next?.scrollIntoView({ block: 'nearest' });
    },
  };
}
