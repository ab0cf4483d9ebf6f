// The search box: colours behind the text, the place of an error, and completion of fields and values.
import { $, h, shorten, toast } from './dom.js';
import * as language from './language.js';
import * as past from './past.js';
import { count } from './chart.js';

const shown = 12; // completions at once
const pastShown = 5; // searches of before beside completions
const characters = 200; // of each

// searchBox calls onsubmit(query); fieldNames() and valuesOf(path) give completions, [{text, count}].
export function searchBox({ onsubmit, fieldNames, valuesOf }) {
  const input = $('q');
  const mirror = $('mirror');
  const box = $('completions');
  const suggestions = $('suggestions');
  let options = [];
  let chosen = -1;
  let target = null; // what a completion would replace
  let asked = 0;
  let mode = ''; // typing; down: asked for; past: searches of before alone
  let errorAt = -1;

  function paint() {
    const parts = language.tokens(input.value).flatMap((token) => {
      const holds = errorAt >= token.start && errorAt < token.end;
      if (!holds) return h('span', { class: `q-${token.type}` }, token.text);
      const cut = errorAt - token.start;
      const wrong = String.fromCodePoint(token.text.codePointAt(cut));
      return [
        h('span', { class: `q-${token.type}` }, token.text.slice(0, cut)), h('mark', {}, wrong),
        h('span', { class: `q-${token.type}` }, token.text.slice(cut + wrong.length)),
      ];
    });
    if (errorAt >= input.value.length) parts.push(h('mark', {}, ' '));
    mirror.replaceChildren(...parts);
    mirror.scrollLeft = input.scrollLeft;
    $('clear').hidden = !input.value;
  }

  // completions are what could stand under the caret.
  async function completions() {
    target = language.under(input.value, input.selectionStart);
    if (mode === 'past' || !target || (target.kind === 'field' && !target.prefix && mode !== 'down')) return [];
    const prefix = target.prefix.replace(/^[<>]=?|^"/, '').toLowerCase();
    let found = [];
    try {
      found = target.kind === 'field' ? fieldNames() : await valuesOf(target.path);
    } catch { /* completions are a help, not needed */ }
    const starts = (option) => option.text.toLowerCase().replace(/^"/, '').startsWith(prefix);
    return found.filter((option) => option.text.toLowerCase().includes(prefix) && option.text !== target.prefix)
      .sort((a, b) => starts(b) - starts(a)).slice(0, shown);
  }

  // searches are the reader's own of before that have what is typed.
  function searches() {
    const typed = mode === 'past' ? '' : input.value.trim().toLowerCase();
    return past.list().filter((query) => query.toLowerCase().includes(typed) && query !== input.value.trim())
      .slice(0, mode === 'past' ? shown : pastShown).map((text) => ({ text, isPast: true }));
  }

  async function complete(how = '') {
    const mine = ++asked;
    mode = how;
    const found = await completions();
    if (mine !== asked || document.activeElement !== input) return;
    const mySearches = searches();
    options = input.value ? [...found, ...mySearches] : [...mySearches, ...found];
    if (!options.length) return close();
    chosen = -1;
    input.removeAttribute('aria-activedescendant');
    box.replaceChildren(...options.map((option, i) => h('li', {
      role: 'option', id: `completion-${i}`, 'aria-selected': 'false', title: option.text, onclick: () => accept(i, true),
    }, h('span', {}, shorten(option.text, characters)), h('small', {}, option.isPast ? 'your search' : count(option.count)))));
    $('past').hidden = !mySearches.length;
    suggestions.hidden = false;
    input.setAttribute('aria-expanded', 'true');
  }

  function close() {
    asked++;
    suggestions.hidden = true;
    box.replaceChildren();
    chosen = -1;
    input.setAttribute('aria-expanded', 'false');
    input.removeAttribute('aria-activedescendant');
  }

  function choose(i) {
    chosen = (i + options.length) % options.length;
    for (const [n, item] of [...box.children].entries()) item.setAttribute('aria-selected', n === chosen);
    box.children[chosen].scrollIntoView({ block: 'nearest' });
    input.setAttribute('aria-activedescendant', `completion-${chosen}`);
  }

  // accept takes a completion, or a search of before, which is run if the reader wants it to.
  function accept(i, isRun) {
    if (options[i].isPast) {
      input.value = options[i].text;
      changed();
      close();
      if (isRun) onsubmit(input.value);
      return;
    }
    const text = options[i].text + (target.kind === 'field' ? ':' : ' ');
    const after = input.value.slice(target.end).replace(target.kind === 'field' ? /^:/ : /^\s/, '');
    input.value = input.value.slice(0, target.start) + text + after;
    input.selectionEnd = input.selectionStart = target.start + text.length;
    const { kind } = target;
    changed();
    if (kind === 'field') complete();
    else close();
  }

  // forget drops one of the searches of before, and goes on to the next.
  async function forget(i) {
    past.remove(options[i].text);
    await complete(mode);
    if (options.length && !suggestions.hidden) choose(Math.min(i, options.length - 1));
  }

  function changed() {
    errorAt = -1;
    paint();
  }

  input.addEventListener('input', () => {
    changed();
    complete();
  });
  input.addEventListener('scroll', () => { mirror.scrollLeft = input.scrollLeft; });
  input.addEventListener('blur', (event) => suggestions.contains(event.relatedTarget) || close());
  input.addEventListener('click', () => !input.value && suggestions.hidden && complete('past'));
  suggestions.addEventListener('pointerdown', (event) => event.preventDefault()); // the box keeps the focus
  suggestions.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return;
    event.stopPropagation();
    input.focus();
    close();
  });
  suggestions.addEventListener('focusout', (event) => event.relatedTarget !== input && close());
  $('past-forget').addEventListener('click', () => {
    past.clear();
    input.focus();
    close();
    toast('Your searches are forgotten');
  });
  input.addEventListener('keydown', (event) => {
    const open = !suggestions.hidden;
    if (event.key === 'ArrowDown') open ? choose(chosen + 1) : complete('down');
    else if (event.key === 'ArrowUp' && open) choose(chosen < 0 ? options.length - 1 : chosen - 1);
    else if ((event.key === 'Enter' || event.key === 'Tab') && open && chosen >= 0) accept(chosen, event.key === 'Enter');
    else if (event.key === 'Tab' && open && !event.shiftKey && target?.prefix && !options[0].isPast) accept(0);
    else if (event.key === 'Delete' && open && options[chosen]?.isPast) forget(chosen);
    else if (event.key === 'Enter') {
      close();
      onsubmit(input.value.trim());
    } else if (event.key === 'Escape' && open) close();
    else if (event.key === 'Escape') input.blur();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  $('clear').addEventListener('click', () => {
    input.value = '';
    changed();
    onsubmit('');
    input.focus();
  });

  return {
    show(query) {
      if (input.value.trim() !== query) {
        input.value = query;
        close();
      }
      changed();
    },
    // mark shows the place of an error, a 1-based character, in the query that was sent.
    mark(character) {
      errorAt = [...input.value].slice(0, character - 1).join('').length;
      paint();
    },
    value: () => input.value.trim(),
    // focus goes to the box; isPast shows the searches of before, as an empty box does.
    focus(isPast = false) {
      input.focus();
      input.select();
      if (isPast || !input.value) complete('past');
    },
  };
}
