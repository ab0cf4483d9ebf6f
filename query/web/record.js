// A record whole: an indented tree whose every value can be searched for, excluded or copied.
import { copy, h, icon } from './dom.js';
import { Exact, isObject, stringify } from './json.js';
import * as language from './language.js';

const childrenShown = 200;
const charactersShown = 2000;

const kind = (value) => (value === null ? 'null' : value instanceof Exact ? 'number' : typeof value);

// tree shows a value of JSON. onfilter(condition) is told what to search for.
export function tree(data, onfilter) {
  return h('div', { class: 'tree' }, children(data, [], onfilter));
}

function children(value, names, onfilter) {
  const isArray = Array.isArray(value);
  const keys = Object.keys(value);
  // An array's members have the array's own path: a condition holds when any of them fits.
  const lines = (some) => some.map((key) => node(key, value[key], isArray ? names : [...names, key], isArray, onfilter));
  const shown = lines(keys.slice(0, childrenShown));
  if (keys.length > childrenShown) {
    shown.push(h('button', {
      type: 'button', class: 'more', onclick: (event) => event.target.replaceWith(...lines(keys.slice(childrenShown))),
    }, `${keys.length - childrenShown} more`));
  }
  return shown;
}

function node(key, value, names, inArray, onfilter) {
  const label = h('span', { class: inArray ? 'index' : 'key' }, key === '' ? '""' : key);
  if (!isObject(value)) {
    const condition = names.length && language.condition(names, value);
    return h('div', { class: 'leaf' }, tools(condition, String(value), onfilter), label, leaf(value));
  }
  const size = Object.keys(value).length;
  const brackets = Array.isArray(value) ? `[${size}]` : `{${size}}`;
  if (!size) return h('div', { class: 'leaf' }, tools(null, stringify(value), onfilter), label, h('span', { class: 'size' }, brackets));
  return h('details', { open: size <= 50 },
    h('summary', {}, label, h('span', { class: 'size' }, brackets)), h('div', { class: 'branch' }, children(value, names, onfilter)));
}

function leaf(value) {
  const text = String(value);
  const box = h('span', { class: `value ${kind(value)}` }, text.slice(0, charactersShown));
  if (text.length <= charactersShown) return box;
  return [box, h('button', {
    type: 'button', class: 'more',
    onclick: (event) => {
      box.textContent = text;
      event.target.remove();
    },
  }, `${text.length - charactersShown} more characters`)];
}

function tools(condition, text, onfilter) {
  const tool = (name, title, onclick) => h('button', { type: 'button', title, 'aria-label': title, onclick }, icon(name));
  return h('span', { class: 'tools' },
    condition && [
      tool('plus', `Only logs with ${condition.slice(0, 200)}`, () => onfilter(condition)),
      tool('minus', `Without logs with ${condition.slice(0, 200)}`, () => onfilter(`-${condition}`)),
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
        const text = isObject(part) ? stringify(part).slice(0, 80) : String(part).slice(0, 80);
        found.push([here, text]);
        characters -= here.length + text.length;
      }
    }
  })(data, '');
  return found;
}
