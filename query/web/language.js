// The search language as far as the page needs it: colours, what is under the caret, adding and taking away a
// condition. The service alone decides what a query means.

const outside = new RegExp([
  String.raw`(?<space>\s+)`,
  String.raw`(?<paren>[()])`,
  String.raw`(?<operator>(?:AND|OR|NOT)(?=[\s()]|$)|-(?=\S))`,
  String.raw`(?<field>(?:"(?:\\.|[^"\\])*"|\\.|[^\s"():\\])+:)`,
  String.raw`(?<string>"(?:\\.|[^"\\])*"?)`,
  String.raw`(?<word>(?:\\.|[^\s"()\\])+|.)`,
].join('|'), 'suy');
const afterField = /(?:[<>]=?)?(?:[[{][^\]}]*[\]}]?|"(?:\\.|[^"\\])*"?|(?:\\.|[^\s"()\\])*)/suy;

// tokens cuts a query into {type, text, start, end}; nothing is left out.
export function tokens(query) {
  const found = [];
  for (let at = 0; at < query.length;) {
    const previous = found.at(-1);
    const add = (type, text) => {
      found.push({ type, text, start: at, end: at + text.length });
      at += text.length;
    };
    if (previous?.type === 'field') {
      afterField.lastIndex = at;
      const [value] = afterField.exec(query);
      if (value) {
        add('value', value);
        continue;
      }
    }
    outside.lastIndex = at;
    const { groups } = outside.exec(query);
    const [type, text] = Object.entries(groups).find(([, part]) => part !== undefined);
    add(type, text);
  }
  return found;
}

// quote writes a text so that it stands for itself.
const quote = (text) => `"${text.replace(/[\\"]/g, '\\$&').replace(/[\n\r\t\b\f]/g, (c) => JSON.stringify(c).slice(1, -1))}"`;
const plainWord = /^[\p{L}\p{N}_/@][\p{L}\p{N}_/@.:+-]*$/u;
const readsAsOther = /^(?:true|false|null|AND|OR|NOT|TO|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)$/;

const name = (text) => (/^[\p{L}\p{N}_@][\p{L}\p{N}_@-]*$/u.test(text) && !readsAsOther.test(text) || /^\d+$/.test(text) ? text : quote(text));

// path writes the names from a record's top to a member.
export const path = (names) => names.map(name).join('.');

// literal writes a single value of JSON as it stands behind field:.
export const literal = (value) => (typeof value !== 'string' ? String(value)
  : plainWord.test(value) && !readsAsOther.test(value) ? value : quote(value));

// either writes a text that may have been a number, true, false or null: it then stands for both.
export const either = (text) => (/^(?:AND|OR|NOT|TO)$/.test(text) || !readsAsOther.test(text) ? literal(text) : text);

// fits reports whether the service takes a query this long.
export const fits = (query) => new TextEncoder().encode(query).length <= 4096;

export const condition = (names, value) => `${path(names)}:${literal(value)}`;

// units are the stretches of a query between white space and parentheses at its top: level:error, -(a OR b), OR.
function units(query) {
  const found = [];
  let depth = 0;
  let open = false;
  for (const token of tokens(query)) {
    if (token.type === 'space' && depth === 0) {
      open = false;
      continue;
    }
    if (open) found[found.length - 1] += token.text;
    else found.push(token.text);
    open = true;
    if (token.text === '(') depth++;
    if (token.text === ')') depth--;
  }
  return found;
}

const bare = (unit) => unit.replace(/^-/, '');

// also returns query with a condition that must hold too, in the place of its opposite if that is there.
export function also(query, wanted) {
  const parts = units(query);
  if (parts.includes('OR')) return `(${query.trim()}) ${wanted}`;
  if (parts.includes(wanted)) return query;
  return [...parts.filter((part) => bare(part) !== bare(wanted)), wanted].join(' ');
}

// under returns what the caret is in, for completion: {kind, path, prefix, start, end}, or null.
export function under(query, caret) {
  const all = tokens(query);
  const i = all.findIndex((token) => token.start < caret && caret <= token.end);
  const token = all[i];
  if (!token || token.type === 'space' || token.type === 'paren' || token.type === 'operator') {
    return { kind: 'field', prefix: '', start: caret, end: caret };
  }
  const prefix = query.slice(token.start, caret);
  if (token.type === 'field' && caret === token.end) {
    const value = all[i + 1]?.type === 'value' ? all[i + 1] : null;
    return { kind: 'value', path: token.text.slice(0, -1), prefix: '', start: caret, end: value ? value.end : caret };
  }
  if (token.type === 'value') {
    return { kind: 'value', path: all[i - 1].text.slice(0, -1), prefix, start: token.start, end: token.end };
  }
  if (token.type === 'string') return null;
  return { kind: 'field', prefix, start: token.start, end: token.end };
}
