// A record whole: an indented tree whose every value can be searched for, excluded or copied.
import { copy, h, icon } from './dom.js';
import { Exact, isObject, stringify } from './json.js';
import * as language from './language.js';
import { plain, rich } from './text.js';

const childrenShown = 200;
const charactersShown = 2000;
const linesShown = 4; // of a stack trace, and the rest on a click
const foldedFrom = 8; // lines

const kind = (value) => (value === null ? 'null' : value instanceof Exact ? 'number' : typeof value);

// tree shows a value of JSON. what.onfilter(how, field, literal) is told what to search for, what.view() how text is shown.
export function tree(data, what) {
  return h('div', { class: 'tree' }, children(data, [], what));
}

function children(value, names, what) {
  const isArray = Array.isArray(value);
  const keys = Object.keys(value);
  // An array's members have the array's own path: a condition holds when any of them fits.
  const lines = (some) => some.map((key) => node(key, value[key], isArray ? names : [...names, key], isArray, what));
  const shown = lines(keys.slice(0, childrenShown));
  if (keys.length > childrenShown) {
    shown.push(h('button', {
      type: 'button', class: 'more', onclick: (event) => event.target.replaceWith(...lines(keys.slice(childrenShown))),
    }, `${keys.length - childrenShown} more`));
  }
  return shown;
}

function node(key, value, names, inArray, what) {
  const label = h('span', { class: inArray ? 'index' : 'key' }, key === '' ? '""' : key);
  if (!isObject(value)) {
    return h('div', { class: 'leaf' }, tools(names, value, inArray, what), label, leaf(value, what));
  }
  const size = Object.keys(value).length;
  const brackets = Array.isArray(value) ? `[${size}]` : `{${size}}`;
  if (!size) return h('div', { class: 'leaf' }, tools([], value, false, what), label, h('span', { class: 'size' }, brackets));
  return h('details', { open: size <= 50 },
    h('summary', {}, label, h('span', { class: 'size' }, brackets)), h('div', { class: 'branch' }, children(value, names, what)));
}

function leaf(value, { view }) {
  const text = String(value);
  const lines = text.split('\n');
  const short = lines.length >= foldedFrom ? lines.slice(0, linesShown).join('\n').slice(0, charactersShown) : text.slice(0, charactersShown);
  const box = h('span', { class: `value ${kind(value)}` }, rich(short, view()));
  if (short === text) return box;
  return [box, h('button', {
    type: 'button', class: 'more',
    onclick: (event) => {
      box.replaceChildren(...rich(text, view()));
      event.target.remove();
    },
  }, lines.length >= foldedFrom ? `${lines.length - linesShown} more lines` : `${text.length - short.length} more characters`)];
}

function tools(names, value, inArray, { onfilter }) {
  const tool = (name, title, onclick, disabled) => h('button', { type: 'button', title, 'aria-label': title, onclick, disabled }, icon(name));
  const field = names.length && !isObject(value) && language.path(names);
  const literal = field && language.literal(value);
  const condition = `${field}:${literal}`;
  const fits = field && language.fits(condition);
  const text = isObject(value) ? stringify(value) : String(value);
  const titled = (words) => (fits ? `${words} ${condition.slice(0, 200)}` : 'This value is too long to search for');
  return h('span', { class: 'tools' },
    field && [
      tool('plus', titled('Only logs with'), () => onfilter(inArray ? 'also' : 'add', field, literal), !fits),
      tool('minus', titled('Without logs with'), () => onfilter('exclude', field, literal), !fits),
      tool('only', titled('Search for this alone:'), () => onfilter('only', field, literal), !fits),
    ],
    tool('copy', 'Copy this value', () => copy(text, 'Value')));
}

// pairs lists the leaves of a record as [path, text] for its summary, as many as fit.
export function pairs(data, leaveOut, characters) {
  const found = [];
  (function walk(value, names) {
    for (const [key, part] of Object.entries(value)) {
      if (characters < 0) return;
      const here = names ? `${names}.${key}` : key;
      if (leaveOut.includes(here) || part === null || part === '') continue;
      if (isObject(part) && !Array.isArray(part)) walk(part, here);
      else {
        const text = isObject(part) ? stringify(part).slice(0, 80) : plain(String(part).slice(0, 200)).slice(0, 80);
        found.push([here, text]);
        characters -= here.length + text.length;
      }
    }
  })(data, '');
  return found;
}
