// The search box: colours behind the text, the place of an error, and completion of fields and values.
import { $, h, shorten } from './dom.js';
import * as language from './language.js';
import { count } from './chart.js';

const shown = 12; // completions at once
const characters = 200; // of each

// searchBox calls onsubmit(query); fieldNames() and valuesOf(path) give completions, [{text, count}].
export function searchBox({ onsubmit, fieldNames, valuesOf }) {
  const input = $('q');
  const mirror = $('mirror');
  const box = $('completions');
  let options = [];
  let chosen = -1;
  let target = null; // what a completion would replace
  let asked = 0;
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

  async function complete(always = false) {
    const mine = ++asked;
    target = language.under(input.value, input.selectionStart);
    if (!target || (target.kind === 'field' && !target.prefix && !always)) return close();
    const prefix = target.prefix.replace(/^[<>]=?|^"/, '').toLowerCase();
    let found = [];
    try {
      found = target.kind === 'field' ? fieldNames() : await valuesOf(target.path);
    } catch { /* completions are a help, not needed */ }
    if (mine !== asked || document.activeElement !== input) return;
    const starts = (option) => option.text.toLowerCase().replace(/^"/, '').startsWith(prefix);
    options = found.filter((option) => option.text.toLowerCase().includes(prefix) && option.text !== target.prefix)
      .sort((a, b) => starts(b) - starts(a)).slice(0, shown);
    if (!options.length) return close();
    chosen = -1;
    box.replaceChildren(...options.map((option, i) => h('li', {
      role: 'option', id: `completion-${i}`, 'aria-selected': 'false',
      onpointerdown: (event) => {
        event.preventDefault(); // the box keeps the focus
        accept(i);
      },
    }, h('span', {}, shorten(option.text, characters)), h('small', {}, count(option.count)))));
    box.hidden = false;
    input.setAttribute('aria-expanded', 'true');
  }

  function close() {
    asked++;
    box.hidden = true;
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

  function accept(i) {
    const text = options[i].text + (target.kind === 'field' ? ':' : ' ');
    const after = input.value.slice(target.end).replace(target.kind === 'field' ? /^:/ : /^\s/, '');
    input.value = input.value.slice(0, target.start) + text + after;
    input.selectionEnd = input.selectionStart = target.start + text.length;
    const { kind } = target;
    changed();
    if (kind === 'field') complete();
    else close();
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
  input.addEventListener('blur', close);
  input.addEventListener('keydown', (event) => {
    const open = !box.hidden;
    if (event.key === 'ArrowDown') open ? choose(chosen + 1) : complete(true);
    else if (event.key === 'ArrowUp' && open) choose(chosen < 0 ? options.length - 1 : chosen - 1);
    else if ((event.key === 'Enter' || event.key === 'Tab') && open && chosen >= 0) accept(chosen);
    else if (event.key === 'Tab' && open && !event.shiftKey && target.prefix) accept(0);
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
    focus() {
      input.focus();
      input.select();
    },
  };
}
