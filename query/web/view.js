// How rows are shown: the columns and their order, wrapped lines, colours.
import { $, h, place } from './dom.js';
import { split } from './state.js';

// viewBox calls onchange(change) with changes of the state. fieldNames() are offered as columns.
export function viewBox({ onchange, fieldNames }) {
  const popover = $('view-box');
  let columns = [];

  const set = (list) => onchange({ cols: list.join(',') });

  // shift moves a column to another place.
  function shift(i, by) {
    const list = [...columns];
    list.splice(i + by, 0, ...list.splice(i, 1));
    set(list);
    $('column-list').children[i + by]?.querySelector(by < 0 ? '.earlier' : '.later')?.focus();
  }

  function draw() {
    const tool = (name, label, title, disabled, onclick) => h('button', { type: 'button', class: `quiet ${name}`, title, 'aria-label': title, disabled, onclick }, label);
    $('column-list').replaceChildren(...columns.map((path, i) => h('li', {}, h('span', { title: path }, path),
      tool('earlier', '↑', `${path} earlier`, i === 0, () => shift(i, -1)),
      tool('later', '↓', `${path} later`, i === columns.length - 1, () => shift(i, 1)),
      tool('away', '×', `Without ${path}`, false, () => set(columns.filter((other) => other !== path))))));
    $('column-names').replaceChildren(...['message', 'level', ...fieldNames().map(({ text }) => text)]
      .filter((name, i, all) => all.indexOf(name) === i && !columns.includes(name)).map((value) => h('option', { value })));
    const heads = columns.map((path, i) => h('span', { class: 'head-cell', title: path }, h('span', {}, path),
      i > 0 && tool('earlier', '‹', `${path} to the left`, false, () => shift(i, -1)),
      tool('away', '×', `Without the column ${path}`, false, () => set(columns.filter((other) => other !== path)))));
    $('heads').hidden = !columns.length;
    $('heads').replaceChildren(h('span', {}, 'time'), ...heads);
  }

  popover.addEventListener('toggle', (event) => {
    if (event.newState !== 'open') return;
    draw();
    place(popover, $('view'));
  });
  $('column-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const wanted = split($('column').value).filter((path) => !columns.includes(path));
    $('column').value = '';
    if (wanted.length) set([...columns, ...wanted]);
  });
  $('wrap').addEventListener('change', () => onchange({ wrap: $('wrap').checked ? '1' : '' }));
  $('ansi').addEventListener('change', () => onchange({ ansi: $('ansi').checked ? '' : 'off' }));

  return {
    show(state) {
      columns = split(state.cols);
      $('wrap').checked = state.wrap !== '';
      $('ansi').checked = state.ansi !== 'off';
      draw();
    },
    // turn has a field as a column, or no longer.
    turn: (path) => set(columns.includes(path) ? columns.filter((other) => other !== path) : [...(columns.length ? columns : ['message']), path]),
  };
}
