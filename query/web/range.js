// The time range: its button and popover.
import { $, h, place } from './dom.js';
import { iso, isRelative, local, presets, rangeName, resolve, zone } from './time.js';

const amount = /^now-(\d+)([smhdw])$/;

// rangePicker calls onchange(from, to).
export function rangePicker({ onchange }) {
  const button = $('range');
  const popover = $('range-box');
  const [from, to] = [$('range-from'), $('range-to')];
  let shown = { from: '', to: '' };

  const pick = (start, end) => {
    popover.hidePopover();
    onchange(start, end);
  };
  $('presets').append(...presets.map(([start, label]) =>
    h('button', { type: 'button', 'data-from': start, onclick: () => pick(start, 'now') }, label)));

  popover.addEventListener('toggle', (event) => {
    if (event.newState !== 'open') return;
    place(popover, button);
    const [start, end] = [resolve(shown.from), resolve(shown.to)];
    from.value = Number.isNaN(start) ? '' : local(start);
    to.value = Number.isNaN(end) ? '' : local(end + (end % 1000 ? 1000 : 0));
    const ago = amount.exec(shown.from) ?? [];
    $('ago').value = ago[1] ?? 30;
    $('ago-unit').value = ago[2] ?? 'm';
    for (const preset of $('presets').children) {
      preset.setAttribute('aria-pressed', preset.dataset.from === shown.from && shown.to === 'now');
    }
    $('range-zone').textContent = zone();
    validate();
  });

  const validate = () => to.setCustomValidity(from.value && to.value && from.value >= to.value ? 'The end must be after the start.' : '');
  from.addEventListener('input', validate);
  to.addEventListener('input', validate);
  $('range-form').addEventListener('submit', (event) => {
    event.preventDefault();
    pick(iso(new Date(from.value)), iso(new Date(to.value)));
  });
  $('ago-form').addEventListener('submit', (event) => {
    event.preventDefault();
    pick(`now-${$('ago').value}${$('ago-unit').value}`, 'now');
  });

  return {
    show(start, end) {
      shown = { from: start, to: end };
      $('range-name').textContent = rangeName(start, end);
      button.title = isRelative(start) ? `from ${start} to ${end}` : `${start} – ${end}`;
    },
  };
}

// wider returns a range about twice as wide; one that ends now goes on ending now.
export function wider(from, to, seen) {
  const end = resolve(to);
  const start = resolve(from);
  const [a, b] = Number.isNaN(start + end) ? [seen?.from ?? Date.now() - 3600e3, seen?.to ?? Date.now()] : [start, end];
  const more = Math.max(b - a, 1000);
  if (to === 'now' || b + more / 2 >= Date.now()) {
    const preset = presets.find(([ago]) => Date.now() - resolve(ago) > 1.5 * (Date.now() - a));
    return preset ? [preset[0], 'now'] : [iso(a - more), 'now'];
  }
  return [iso(a - more / 2), iso(b + more / 2)];
}
