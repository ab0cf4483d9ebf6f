// Elements. Nothing in this page is made from HTML text: what comes from logs only ever becomes text nodes and
// attribute values.

const svgNamespace = 'http://www.w3.org/2000/svg';

export const $ = (id) => document.getElementById(id);

// h makes an element: attributes, `on…` listeners, and children that are nodes or text (null and false are left out).
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

// s is h for SVG.
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(svgNamespace, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

// shorten cuts a text for display, and marks that.
export const shorten = (text, characters) =>
  (text.length > characters ? `${text.slice(0, characters).replace(/[\ud800-\udbff]$/, '')}…` : text);

// icon refers to a symbol of index.html.
export const icon = (name) => s('svg', { class: 'icon', 'aria-hidden': 'true' }, s('use', { href: `#icon-${name}` }));

// place puts a popover under its button, inside the window.
export function place(popover, anchor) {
  const at = anchor.getBoundingClientRect();
  const gap = 6;
  popover.style.top = `${Math.max(gap, Math.min(at.bottom + gap, innerHeight - popover.offsetHeight - gap))}px`;
  popover.style.left = `${Math.max(gap, Math.min(at.left, document.documentElement.clientWidth - popover.offsetWidth - gap))}px`;
}

let toastTimer;

// toast says something in passing, aloud to screen readers too.
export function toast(...content) {
  const box = $('toast');
  box.replaceChildren(...content);
  box.classList.add('shown');
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => box.classList.remove('shown'), 4000);
}

// copy needs a secure context for the clipboard; elsewhere the old command does.
export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h('textarea', { class: 'offscreen' });
    area.value = text;
    (document.querySelector('dialog[open]') ?? document.body).append(area);
    area.select();
    const copied = document.execCommand('copy');
    area.remove();
    if (!copied) return toast('The browser does not let this page copy.');
  }
  toast(`${what} copied`);
}
