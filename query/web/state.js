// What the page shows is in its address, and only there: a link or the back button brings it all back.

const defaults = {
  q: '', from: 'now-1h', to: 'now', clock: '', zone: '', by: '', order: 'desc', live: '',
  tab: '', // rows; table, patterns
  id: '', around: '', // the record that is open, and which records around it
  calc: 'count', group: '', every: '', sort: '', // the table: its figures, its groups, lines or bars over time, the figure it is sorted by
  vs: '', // what patterns are compared with
  cols: '', widths: '', wrap: '', ansi: '', // widths are of the columns, in characters; an empty one is as its column needs
};

export function read(address = location.search) {
  const given = new URLSearchParams(address);
  const state = { ...defaults };
  for (const name of Object.keys(defaults)) {
    if (given.get(name)) state[name] = given.get(name);
  }
  if (state.order !== 'asc') state.order = 'desc';
  if (state.clock !== 'inserted_at') state.clock = '';
  if (!['table', 'patterns'].includes(state.tab)) state.tab = '';
  if (state.tab || state.to !== 'now') state.live = ''; // it follows what comes, as rows
  if (state.live) [state.order, state.clock] = ['desc', ''];
  return state;
}

// link writes a state, without what is as by default.
export function link(state) {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value !== defaults[name]) given.set(name, value);
  }
  const text = given.toString().replaceAll('%3A', ':').replaceAll('%2F', '/').replaceAll('%2C', ','); // legible, and as good in a query
  return location.pathname + (text && `?${text}`);
}

// split cuts a list at its commas, but for those in quotes and parentheses.
export function split(list) {
  const parts = [''];
  let [depth, quoted] = [0, false];
  for (const [character] of list.matchAll(/\\.|./gsu)) {
    if (character === '"') quoted = !quoted;
    else if (!quoted) depth += { '(': 1, ')': -1 }[character] ?? 0;
    if (character === ',' && !quoted && depth === 0) parts.push('');
    else parts[parts.length - 1] += character;
  }
  return parts.map((part) => part.trim()).filter(Boolean);
}
