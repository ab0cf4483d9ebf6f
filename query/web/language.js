// The search language as far as the page needs it: colours, what is under the caret, adding and taking away a
// condition. The service alone decides what a query means.

const outside = new RegExp([
  String.raw`(?<space>\s+)`,
  String.raw`(?<paren>[()])`,
  String.raw`(?<operator>(?:AND|OR|NOT|and|or|not)(?=[\s()]|$)|&&|\|\||[-!](?=\S))`,
  String.raw`(?<field>(?:[\p{L}_@](?:\\.|[^\s"():\\=~!<>])*(?:!?[=~]|(?=[<>]))|(?:"(?:\\.|[^"\\])*"|\\.|[^\s"():\\])+:))`,
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

// pathOf returns the path in a token that is a field, without the operator behind it.
const pathOf = (field) => field.replace(/(?::|!?[=~])$/, '');

// quote writes a text so that it stands for itself.
const quote = (text) => `"${text.replace(/[\\"]/g, '\\$&').replace(/[\n\r\t\b\f]/g, (c) => JSON.stringify(c).slice(1, -1))}"`;
const plainWord = /^[\p{L}\p{N}_/@][\p{L}\p{N}_/@.:+-]*$/u;
const readsAsOther = /^(?:true|false|null|AND|OR|NOT|TO|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)$/;
const readsAsPattern = /^\/.*\/i?$|^[\da-f.:]+\/\d+$/i; // a regular expression, a network

const name = (text) => (/^[\p{L}\p{N}_@][\p{L}\p{N}_@-]*$/u.test(text) && !readsAsOther.test(text) || /^\d+$/.test(text) ? text : quote(text));

// path writes the names from a record's top to a member.
export const path = (names) => names.map(name).join('.');

// names reads a path: quotes keep dots from leading further.
export const names = (text) => [...text.matchAll(/("(?:\\.|[^"\\])*"|(?:\\.|[^".\\])*)(?:\.|$)/gsu)]
  .map(([, part]) => part).filter((part, i, all) => part || i < all.length - 1)
  .map((part) => (part.startsWith('"') ? unquote(part) : part.replace(/\\(.)/gsu, '$1')));

function unquote(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text.slice(1, -1);
  }
}

// literal writes a single value of JSON as it stands behind field:.
export const literal = (value) => (typeof value !== 'string' ? String(value)
  : plainWord.test(value) && !readsAsOther.test(value) && !readsAsPattern.test(value) ? value : quote(value));

// either writes a text that may have been a number, true, false or null: it then stands for both.
export const either = (text) => (/^(?:AND|OR|NOT|TO)$/.test(text) || !readsAsOther.test(text) ? literal(text) : text);

// fits reports whether the service takes a query this long.
export const fits = (query) => new TextEncoder().encode(query).length <= 4096;

// anyOf writes the condition that a field has one of several literals.
export function anyOf(field, literals) {
  if (literals.length === 1) return `${field}:${literals[0]}`;
  const inList = (text) => (text.startsWith('"') || (/^[\p{L}\p{N}_/@.+-]+$/u.test(text) && !/^(?:and|or|not|to)$/i.test(text)) ? text : quote(text));
  return `${field}:(${literals.map(inList).join(' OR ')})`;
}

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

const isJoin = (unit) => /^(?:and|or|not|&&|\|\|)$/i.test(unit);
const bare = (unit) => unit.replace(/^[-!]/, '');

// conditions returns the units of a query that all must hold; a query with OR at its top is one.
export function conditions(query) {
  const parts = units(query);
  if (parts.some((part) => isJoin(part) && !/^(?:and|&&)$/i.test(part))) return [`(${query.trim()})`];
  return parts.filter((part) => !isJoin(part));
}

// without returns a query without one of its conditions.
export const without = (query, condition) => conditions(query).filter((part) => part !== condition).join(' ');

// also returns query with a condition that must hold too, in the place of its opposite if that is there.
export function also(query, wanted) {
  const parts = conditions(query);
  if (parts.includes(wanted)) return query;
  return [...parts.filter((part) => bare(part) !== bare(wanted)), wanted].join(' ');
}

const canonical = (text) => (text.startsWith('"') ? literal(unquote(text)) : text);
const canonicalPath = (text) => path(names(text));

// test reads a condition on one field's values as {negative, field, values}: values are literals. Others give null.
export function test(condition) {
  const parts = tokens(condition);
  const negative = parts[0]?.type === 'operator' && /^[-!]$/.test(parts[0].text);
  if (negative) parts.shift();
  const [field, ...rest] = parts;
  if (field?.type !== 'field' || !/[:=]$/.test(field.text)) return null;
  const found = { negative: negative !== field.text.endsWith('!='), field: pathOf(field.text), values: [] };
  if (rest.length === 1 && rest[0].type === 'value') {
    const [{ text }] = rest;
    if (/^[<>[{]/.test(text) || (!text.startsWith('"') && (/(?<!\\)\*/.test(text) || readsAsPattern.test(text)))) return null;
    return { ...found, values: [canonical(text)] };
  }
  if (rest[0]?.text !== '(' || rest.at(-1).text !== ')') return null;
  for (const { type, text } of rest.slice(1, -1)) {
    if (type === 'string') found.values.push(canonical(text));
    else if (type === 'word' && !text.includes('*')) found.values.push(...text.split(',').filter(Boolean));
    else if (type !== 'space' && !(type === 'operator' && /^(?:or|\|\|)$/i.test(text))) return null;
  }
  return found.values.length ? found : null;
}

// values returns the literals of a field that a query asks for and those that it leaves out.
export function values(query, field) {
  const of = conditions(query).map(test).filter((part) => part && canonicalPath(part.field) === canonicalPath(field));
  return {
    wanted: of.filter((part) => !part.negative).flatMap((part) => part.values),
    excluded: of.filter((part) => part.negative).flatMap((part) => part.values),
  };
}

// withoutField returns a query without its conditions on the values of a field.
export const withoutField = (query, field) => conditions(query)
  .filter((part) => canonicalPath(test(part)?.field ?? '') !== canonicalPath(field)).join(' ');

// withValue returns a query in which a value of a field is wanted too ('add'), beside others of the field that are; wanted if
// it was not and else no more ('toggle'); or excluded, and no more if it was ('exclude').
export function withValue(query, field, text, how) {
  const value = canonical(text);
  const { wanted, excluded } = values(query, field);
  const drop = (list) => list.filter((one) => one !== value);
  const isWanted = wanted.includes(value);
  let [keep, leaveOut] = [drop(wanted), drop(excluded)];
  if (how === 'exclude') {
    if (!excluded.includes(value) && !(isWanted && keep.length)) leaveOut = [...leaveOut, value];
  } else if (how === 'add' || !isWanted) keep = isWanted ? wanted : [...wanted, value];
  const rest = conditions(query);
  const mine = (part) => {
    const read = test(part);
    return read && canonicalPath(read.field) === canonicalPath(field);
  };
  const at = rest.findIndex(mine);
  const written = [keep.length && anyOf(field, keep), ...leaveOut.map((one) => `-${field}:${one}`)].filter(Boolean);
  const others = rest.filter((part) => !mine(part));
  others.splice(at < 0 ? others.length : rest.slice(0, at).filter((part) => !mine(part)).length, 0, ...written);
  return others.join(' ');
}

// hits returns the expression that finds in a text what a query looks for, or null: its words, phrases and values that are
// not excluded.
export function hits(query) {
  const terms = new Set();
  const parts = units(query);
  parts.forEach((unit, i) => {
    if (/^[-!]/.test(unit) || /^not$/i.test(parts[i - 1] ?? '')) return;
    for (const { type, text } of tokens(unit)) {
      if (!['word', 'string', 'value'].includes(type) || /^[<>[{]|^\/.*\/i?$/.test(text)) continue;
      const pieces = text.startsWith('"') ? [unquote(text)] : text.split(/(?<!\\)\*|,/).map((piece) => piece.replace(/\\(.)/gsu, '$1'));
      for (const piece of pieces) if (piece.length > 1 && piece !== 'i') terms.add(piece);
    }
  });
  if (!terms.size) return null;
  const longest = [...terms].sort((a, b) => b.length - a.length).slice(0, 30);
  return new RegExp(`(${longest.map((term) => term.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&')).join('|')})`, 'giu');
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
    return { kind: 'value', path: pathOf(token.text), prefix: '', start: caret, end: value ? value.end : caret };
  }
  if (token.type === 'value') {
    return { kind: 'value', path: pathOf(all[i - 1].text), prefix, start: token.start, end: token.end };
  }
  if (token.type === 'string') return null;
  return { kind: 'field', prefix, start: token.start, end: token.end };
}
