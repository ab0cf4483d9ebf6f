// Text of logs on its way into elements: colours that terminals would show, and what the search found in it.
import { h } from './dom.js';

const sequence = /\x1b\[([\d;:]*)m|\x1b(?:\[[\d;?]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])/g;

// plain returns a text without what is meant for terminals.
export const plain = (text) => (text.includes('\x1b') ? text.replace(sequence, '') : text);

// coloured cuts a text into [text, class], by the colours that terminals would show.
function coloured(text) {
  if (!text.includes('\x1b')) return [[text, '']];
  const parts = [];
  let [at, colour, bold] = [0, '', false];
  for (const found of text.matchAll(sequence)) {
    if (found.index > at) parts.push([text.slice(at, found.index), [colour, bold && 'bold'].filter(Boolean).join(' ')]);
    at = found.index + found[0].length;
    if (found[1] === undefined) continue;
    const codes = found[1].split(/[;:]/).map(Number);
    for (let i = 0; i < codes.length; i++) {
      const code = codes[i];
      if (code === 0) [colour, bold] = ['', false];
      else if (code === 1) bold = true;
      else if (code === 22) bold = false;
      else if (code === 39) colour = '';
      else if ((code >= 30 && code < 38) || (code >= 90 && code < 98)) colour = `ansi-${code % 10}`;
      else if (code === 38 || code === 48) { // one of 256, or red, green and blue: the first eight have names
        if (code === 38 && codes[i + 1] === 5) colour = codes[i + 2] < 16 ? `ansi-${codes[i + 2] % 8}` : '';
        i += codes[i + 1] === 5 ? 2 : 4;
      }
    }
  }
  if (at < text.length) parts.push([text.slice(at), [colour, bold && 'bold'].filter(Boolean).join(' ')]);
  return parts;
}

// rich returns a text as nodes: what marks finds is marked, and colours are shown unless they are not wanted.
export function rich(text, { marks = null, ansi = true } = {}) {
  return (ansi ? coloured(text) : [[plain(text), '']]).flatMap(([part, look]) => {
    const nodes = marks ? part.split(marks).map((piece, i) => (i % 2 ? h('mark', {}, piece) : piece)) : [part];
    return look ? h('span', { class: look }, nodes) : nodes;
  });
}
